"""Which responses of a prompt form a preference pair."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from selfloop.workflows.judges.answers import Extract
from selfloop.workflows.judges.votes import voted
from selfloop.workflows.rules.base import Pair, Row, Rule, reads
from selfloop.workflows.rules.keep import scored_rows

__all__ = ["MostAgainstLeast", "best_against_worst"]


@reads("score")
def best_against_worst(rows: Sequence[Row], rng: random.Random) -> list[Pair]:
    """Highest against lowest mean score (Self-Rewarding, arXiv 2401.10020, section 2.2).

    Equal scores or fewer than two scored responses give no pair. Among equal scores the response whose judgements
    vary less is taken (NeMo-Aligner), then the lower sample number.
    """
    usable = scored_rows(rows)
    if not usable:
        return []
    best = min(usable, key=lambda row: (-row["score"], _spread(row)))
    worst = min(usable, key=lambda row: (row["score"], _spread(row)))
    return [(best, worst)] if best["score"] > worst["score"] else []


def _spread(row: Row) -> float:
    """Variance of the valid judgements behind a score; 0 for fewer than two."""
    scores = [one["score"] for one in row.get("score_judgements") or () if one["score"] is not None]
    return statistics.pvariance(scores) if len(scores) > 1 else 0.0


class MostAgainstLeast(Rule):
    """A response of the most voted answer against one of the least voted (ScPO, arXiv 2411.04109).

    Scores are vote shares (`VoteShare`). Both are random within their answer; a tie for most goes to the answer seen
    first. The pair needs a share of `threshold` for the most voted, and its `weight` is the margin (V+ - V-) / k.
    Answers that mean the same are one answer, so they have one share and are never a pair. extract: as in the judge.
    """

    reads: ClassVar[tuple[str, ...]] = ("score",)
    threshold: float = Field(default=0.5, ge=0, le=1, description="tau, as a share of k")
    extract: Extract = "text"

    def __call__(self, rows: Sequence[Row], rng: random.Random) -> list[Pair]:
        usable = scored_rows(rows)
        if not usable:
            return []
        most, least = (choose(row["score"] for row in usable) for choose in (max, min))
        if most <= least or most < self.threshold - 1e-9:
            return []
        leaders = [row for row in usable if row["score"] == most]
        winner = voted(leaders[0], self.extract)
        chosen = rng.choice([row for row in leaders if voted(row, self.extract) == winner])
        rejected = rng.choice([row for row in usable if row["score"] == least])
        return [(chosen, rejected, {"weight": most - least})]
