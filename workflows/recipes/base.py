"""The base of every recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from selfloop.workflows.flow.stream import Iteration, Model

__all__ = ["Recipe"]


class Recipe(BaseModel):
    """A method. Fields are the method's own settings; `iteration` returns a small graph that ends in the new models.

    title, paper, kind: for `selfloop methods` and the docs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    kind: ClassVar[str] = "loop"
    label_free: ClassVar[bool] = False

    def iteration(self, it: Iteration) -> Model | dict[str, Model]:
        """The graph of iteration `it.index`, ending in the new policy (or in several roles)."""
        raise NotImplementedError

    def stop(self, history: Sequence[dict[str, Any]]) -> bool:
        """Whether to stop before the configured number of iterations, from the metrics of all iterations so far."""
        return False
