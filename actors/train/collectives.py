"""Small messages between all ranks of a trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

__all__ = ["Collectives"]

T = TypeVar("T")


@dataclass(frozen=True)
class Collectives:
    """Which rank this is of `world`, and what it says to all and hears of all. Every rank must take part in each call."""

    rank: int
    world: int
    group: Any = None

    def all(self, value: T) -> list[T]:
        """Every rank's value, in order of rank."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(found, value, group=self.group)
        return found

    def first(self, value: T) -> T:
        """The first rank's value."""
        found: list[Any] = self.all(value if self.rank == 0 else None)
        return found[0]

    def agree(self, error: Exception | None) -> None:
        """Raise on all ranks what one of them met."""
        for met in self.all(error):
            if met is not None:
                raise met

    def add(self, values: np.ndarray) -> np.ndarray:
        """The sum over ranks of a float32 array."""
        if self.world == 1:
            return values
        total = torch.from_numpy(values)
        torch.distributed.all_reduce(total, group=self.group)
        return total.numpy()
