"""Settings that have a value of their own in each iteration: [0.5, 0.7] is 0.5 in the first and 0.7 in all later ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

__all__ = ["Positives", "Shares", "of_iteration"]


def listed(value: Any) -> Any:
    """A number alone is the value of every iteration."""
    return (value,) if isinstance(value, int | float) else value


Positives = Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(listed)]
Shares = Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], BeforeValidator(listed)]


def of_iteration(values: Sequence[float], iteration: int) -> float:
    """The value of iteration 1, 2, ...; the last one for all later iterations."""
    return values[min(iteration, len(values)) - 1]
