"""Forwards over rows, on every rank: what they give, in which micro-batches, and scores without gradient."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from selfloop.actors.batching import Micro, Shapes, cut, deal, dummy, micro_of
from selfloop.actors.examples import SCALARS, View
from selfloop.workflows.errors import TrainerError
from selfloop.workflows.objectives.base import Objective

if TYPE_CHECKING:
    from selfloop.actors.zero import Sharded

__all__ = ["Ranks", "micros_of", "nothing", "score", "target_places", "what_of"]


@dataclass(frozen=True)
class Ranks:
    """Which rank this is, and small messages between all of them."""

    rank: int
    world: int
    group: Any = None

    def all(self, value: Any) -> list[Any]:
        """Every rank's value, in order of rank."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(found, value, group=self.group)
        return found

    def first(self, value: Any) -> Any:
        """The first rank's value."""
        return self.all(value if self.rank == 0 else None)[0]

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


def nothing(micro: Micro, view: str, name: str) -> Tensor:
    """Zeros in the shape of a column that the trainer computes."""
    if name == "hidden":
        return torch.zeros(len(micro.rows), 1)
    return torch.zeros_like(micro.rows_of(view) if name == "rewards" else micro.masks[view])


def micros_of(
    shapes: Shapes,
    views: Mapping[str, View],
    rows: np.ndarray,
    budget: int,
    ranks: Ranks,
    device: torch.device,
) -> Iterator[Micro]:
    """A rank's micro-batches of these rows, dummies last."""
    contexts = shapes.contexts if shapes.flat else None
    for part in deal(cut(shapes, rows, budget, ranks.world), ranks.rank, ranks.world):
        yield dummy(device) if part is None else micro_of(views, part, device, contexts)


def target_places(view: View, rows: np.ndarray) -> np.ndarray:
    """Places of these rows' trained tokens among all of the view's."""
    bounds = view.row_targets()
    return np.concatenate([np.arange(bounds[row], bounds[row + 1]) for row in rows])


def what_of(objective: Objective, head: bool) -> str:
    """What a forward must give the objective: logprobs, or a scalar head's values or rewards."""
    reads = {name for names in objective.reads.values() for name in names}
    found = [name for name in SCALARS if name in reads]
    who = type(objective).__name__
    if len(found) > 1 or (found and "logprobs" in reads):
        raise TrainerError(
            f"{who} reads {' and '.join([*found, *({'logprobs'} & reads)])} of one model: heads on a shared trunk are not "
            "trained here. Train a critic of its own (for PPO: vf_coefficient=0, and ValueLoss on the critic)"
        )
    if bool(found) != head:
        wrong = f"reads the {found[0]} of a scalar head, and the model has none" if found else (
            "reads no scalar head's values or rewards, and the model has a scalar head instead of log-probs")  # fmt: skip
        raise TrainerError(f"{who} {wrong}. A model gets a scalar head by model.adapt(ScalarHead())")
    return found[0] if found else "logprobs"


def score(model: Sharded, ranks: Ranks, view: View, budget: int, what: str = "logprobs") -> list[list[float]]:
    """Log-probs or values of each sequence's trained tokens, or its reward, without gradient."""
    rows, views = np.arange(len(view.row_bounds) - 1), {"": view}
    bounds = np.arange(len(rows) + 1) if what == "rewards" else view.target_bounds
    found = np.zeros(bounds[-1], np.float32)
    for micro in micros_of(Shapes(views, flat=bool(model.flat)), views, rows, budget, ranks, model.device):
        with torch.no_grad():
            outputs = model.outputs(micro, what)
        if len(micro.rows):
            places = micro.rows if what == "rewards" else target_places(view, micro.rows)
            found[places] = outputs.float().cpu().numpy()
    found = ranks.add(found)
    return [found[low:high].tolist() for low, high in itertools.pairwise(bounds)]
