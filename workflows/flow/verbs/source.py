"""What a graph begins with: rows of a named source (prompts, data), and rows that an earlier iteration saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from selfloop.workflows.flow.telling import Told, counted
from selfloop.workflows.flow.verbs.base import PROMPT_COLUMNS, Op, Place
from selfloop.workflows.store.keys import identity

__all__ = ["Saved", "Source"]


@dataclass(frozen=True)
class Source(Op):
    """Rows of a named source, from row `start` of its seeded order. The driver slices them."""

    verb: ClassVar[str] = "prompts"
    place: ClassVar[Place] = "driver"
    phrase: ClassVar[str] = "prompts are read"
    source: str = "prompts"
    start: int = 0
    count: int = 0
    has: frozenset[str] = PROMPT_COLUMNS

    def columns(self, inputs: Sequence[frozenset[str]]) -> frozenset[str]:
        return self.has

    def rows(self, n: int, groups: int) -> int:
        return min(n, self.count) if self.count else n

    def tell(self, told: Told) -> Iterator[str]:
        yield f"a prompt of the source {self.source!r} ({told.origin(self.source)})"

    @property
    def taken(self) -> tuple[Any, ...]:
        """Two sources that agree in this have the same rows in the same batches."""
        return self.source, self.start, self.count


@dataclass(frozen=True)
class Saved(Op):
    """The committed rows of a node of an earlier iteration, in the batches in which they were committed."""

    verb: ClassVar[str] = "prompts"
    place: ClassVar[Place] = "driver"
    phrase: ClassVar[str] = "prompts are read"
    iteration: int
    node: str
    has: frozenset[str]

    @property
    def source(self) -> str:
        """Its name where rows and content keys name a source."""
        return f"@{self.iteration}/{self.node}"

    @property
    def taken(self) -> tuple[Any, ...]:
        return self.iteration, self.node

    @property
    def settings(self) -> dict[str, Any]:
        """A source's: a content key knows no other kind."""
        return {"source": self.source, "start": 0, "count": 0, "has": identity(self.has)}

    def columns(self, inputs: Sequence[frozenset[str]]) -> frozenset[str]:
        return self.has

    def tell(self, told: Told) -> Iterator[str]:
        yield f"{counted(told.rows)} of {self.node!r} of iteration {self.iteration}, read again"
