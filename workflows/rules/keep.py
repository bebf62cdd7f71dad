"""Which responses of a prompt are kept. Only rows with a score count: failed rows, abstentions and failed verdicts are
never chosen and never rejected.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from selfloop.workflows.rules.base import Row, Rule

__all__ = ["BestOfN", "Correct", "scored_rows"]


def scored_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows that did not fail and have a score, by sample number."""
    usable = [
        row
        for row in rows
        if row.get("status", "ok") != "failed"
        and row.get("score_state", "score") == "score"
        and row.get("score") is not None
    ]
    return sorted(usable, key=_sample)


def _sample(row: Row) -> int:
    return row.get("sample") or 0


class BestOfN(Rule):
    """Keeps the `keep` responses with the highest scores, equal ones by sample number; none if none is scored."""

    reads: ClassVar[tuple[str, ...]] = ("score",)
    keep: int = Field(default=1, ge=1)

    def __call__(self, rows: Sequence[Row], rng: random.Random) -> list[Row]:
        return sorted(scored_rows(rows), key=lambda row: -row["score"])[: self.keep]


class Correct(Rule):
    """Keeps correct responses, at most `cap` random ones a prompt (ReST-EM, arXiv 2312.06585: 10; STaR: 1).

    Correct is a score of at least `threshold`. dedup: of equal texts only the first counts.
    """

    reads: ClassVar[tuple[str, ...]] = ("score",)
    cap: int | None = Field(default=10, ge=1, description="most kept a prompt; None: all")
    dedup: bool = False
    threshold: float = 0.5

    def __call__(self, rows: Sequence[Row], rng: random.Random) -> list[Row]:
        right = [row for row in scored_rows(rows) if row["score"] >= self.threshold]
        if self.dedup:
            first: dict[str, Row] = {}
            for row in right:
                first.setdefault(row["response"], row)
            right = list(first.values())
        if self.cap is not None and len(right) > self.cap:
            right = sorted(rng.sample(right, self.cap), key=_sample)
        return right
