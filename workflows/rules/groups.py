"""Rules of reinforcement learning on prompt groups: which groups are learned from, rewards, advantages."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from selfloop.workflows.objectives.advantages import group_normalized, informative, length_penalty
from selfloop.workflows.rules.base import Row, Rule

__all__ = ["Advantages", "Groups", "Rewards", "Truncated"]

Truncated = Literal["judged", "wrong", "left-out"]
"""What an answer is that was cut: judged like any other, wrong, or no part of its group."""


class Groups(Rule):
    """Keeps the judged rows of a prompt, at least two; with `dynamic` only if some are right and some wrong."""

    dynamic: bool = False
    truncated: Truncated = "judged"

    def __call__(self, rows: Sequence[Row], rng: random.Random) -> list[Row]:
        judged = [row for row in rows if row["score_state"] != "failed"]
        judged = [row for row in judged if self.truncated != "left-out" or row["finish"] != "length"]
        useful = not self.dynamic or informative([right(row, self.truncated) for row in judged])
        return judged if useful and len(judged) > 1 else []


class Rewards(Rule):
    """The reward of a wrong or right answer, and DAPO's penalty over the last `share` of the longest length."""

    values: tuple[float, float] = (0.0, 1.0)
    truncated: Truncated = "judged"
    longest: int
    share: float = 0.0

    def __call__(self, rows: Sequence[Row], rng: random.Random) -> list[float]:
        cache = round(self.share * self.longest)
        lengths = [len(row["response_ids"]) for row in rows]
        return [self.values[right(row, self.truncated)] + length_penalty(length, limit=self.longest, cache=cache)
                for row, length in zip(rows, lengths, strict=True)]  # fmt: skip


class Advantages(Rule):
    """What each reward is above its prompt group's mean, in standard deviations (n - 1) where `scale`."""

    scale: bool = True

    def __call__(self, rows: Sequence[Row], rng: random.Random) -> list[float]:
        return group_normalized([row["reward"] for row in rows], scale=self.scale)


def right(row: Row, truncated: str) -> bool:
    """Accuracy, whatever the reward is; an answer that cannot be read is wrong."""
    return (row["score"] or 0.0) >= 0.5 and not (truncated == "wrong" and row["finish"] == "length")
