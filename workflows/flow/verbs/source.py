"""The verb prompts, and data(…): rows of a named source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from selfloop.workflows.flow.verbs.base import PROMPT_COLUMNS, Op, Place

__all__ = ["Source"]


@dataclass(frozen=True)
class Source(Op):
    """Rows of a named source, from row `start` of its seeded order. The driver slices them."""

    verb: ClassVar[str] = "prompts"
    place: ClassVar[Place] = "driver"
    source: str = "prompts"
    start: int = 0
    count: int = 0
    has: frozenset[str] = PROMPT_COLUMNS

    def columns(self, inputs: Sequence[frozenset[str]]) -> frozenset[str]:
        return self.has
