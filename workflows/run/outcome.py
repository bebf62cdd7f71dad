"""What running an iteration's graph gave, apart from its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from selfloop.workflows.data.batches import Counts, summary_numbers
from selfloop.workflows.store.parts import Stored, read_stored

__all__ = ["Outcome"]


@dataclass
class Outcome:
    """counts: by node. numbers: of the evaluation. trained, curves: by train node. gaps: probe gap by model, nats.
    idle: train nodes that had nothing to learn."""

    counts: dict[str, Counts] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    trained: dict[str, dict[str, float]] = field(default_factory=dict)
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    gaps: dict[str, float | None] = field(default_factory=dict)
    idle: set[str] = field(default_factory=set)

    def read_summary(self, stored: Sequence[Stored]) -> None:
        for table in read_stored(stored):
            self.numbers |= summary_numbers(table)
