"""Rules that several recipes share: which responses of a prompt are kept, and which form a preference pair.

A rule is a function of one prompt group: `rule(rows, rng)`. Keep rules return rows; pair rules return (chosen,
rejected) or (chosen, rejected, {more columns}). What they draw comes from `rng`, after sorting by sample number, so
a rule gives the same for the same group whatever the order of its rows. Only rows with a score count: failed rows,
abstentions and failed verdicts are never chosen and never rejected.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from selfloop.workflows.judges.answers import Extract
from selfloop.workflows.judges.votes import voted

__all__ = [
    "BestOfN",
    "Correct",
    "MostAgainstLeast",
    "Pair",
    "Rule",
    "best_against_worst",
    "reads",
    "scored_rows",
]

RuleFunction = TypeVar("RuleFunction", bound=Callable[..., Any])
Row = Mapping[str, Any]
Pair = tuple[Any, Any] | tuple[Any, Any, dict[str, Any]]


class Rule(BaseModel):
    """A rule with settings. reads: columns without which it could not choose; the lint asks for them."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    reads: ClassVar[tuple[str, ...]] = ()


def reads(*columns: str) -> Callable[[RuleFunction], RuleFunction]:
    """Declares the `reads` of a rule that is a plain function."""

    def declare(rule: RuleFunction) -> RuleFunction:
        vars(rule)["reads"] = columns
        return rule

    return declare


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
