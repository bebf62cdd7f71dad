"""Reward-augmented relabelling: every scored pair becomes two, each asking for the score of one of its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["goal_pairs", "goal_reward", "goal_text"]


def goal_reward(score: float, goal: float) -> float:
    """R(x, y, g) = -(g - r(x, y))^2: how well an answer of this score meets the goal."""
    return -((goal - score) ** 2)


def goal_text(goal: float) -> str:
    """The goal as it is printed: 8.0 is "8", 6.5 is "6.5"."""
    return f"{goal:g}"


def goal_pairs(pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Two rows a pair: {goal: chosen_score} in the old order, {goal: rejected_score} with the sides swapped.

    Every column `chosen...` is swapped with its `rejected...` twin. Pairs of equal scores are dropped: their two rows
    would contradict each other. Where the paper's text and the released script differ (models without a system role
    keep the order there), this follows the paper.
    """
    rows: list[dict[str, Any]] = []
    for pair in pairs:
        if pair["chosen_score"] == pair["rejected_score"]:
            continue
        rows.append({**pair, "goal": goal_text(pair["chosen_score"])})
        rows.append({**_swapped(pair), "goal": goal_text(pair["rejected_score"])})
    return rows


def _swapped(pair: Mapping[str, Any]) -> dict[str, Any]:
    twins = {"chosen": "rejected", "rejected": "chosen"}
    swapped: dict[str, Any] = {}
    for name, value in pair.items():
        side = next((side for side in twins if name == side or name.startswith(f"{side}_")), None)
        swapped[name if side is None else twins[side] + name[len(side) :]] = value
    return swapped
