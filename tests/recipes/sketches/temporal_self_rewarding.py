"""Temporal Self-Rewarding."""

from __future__ import annotations

import random
from typing import Any

from selfloop import DPO, Iteration, Model, Recipe, scored_rows
from selfloop.workflows.pocket.roles import PocketPointJudge


class TemporalSelfRewarding(Recipe):
    """Rejected answers come from the past (the initial policy), chosen ones from the future (a policy one step ahead)."""

    samples: int = 7
    beta: float = 0.1

    def iteration(self, it: Iteration) -> Model:
        prompts, judge, present = it.prompts(), PocketPointJudge(), it.policy
        now = prompts.sample(present, n=self.samples, name="present")
        past = prompts.sample(it.initial, n=self.samples, name="past")
        scored = now.merge(past).judge(judge, by=present)
        objective = DPO(beta=self.beta)
        ahead = present.train(
            scored.pair(past_and_future), objective, reference=present, optimizer="fresh", name="ahead"
        )
        future = prompts.sample(ahead, n=self.samples, name="future").judge(judge, by=present)
        pairs = scored.merge(future).pair(past_and_future)
        return present.train(pairs, objective, reference=present, optimizer="fresh")


def past_and_future(rows: list[Any], rng: random.Random) -> list[tuple[Any, Any]]:
    """Best of the present, or of the future if that is better, against the worst of present and past."""
    by = {
        name: [row for row in scored_rows(rows) if row["node"] == name]
        for name in ("present", "past", "future")
    }
    if not by["present"]:
        return []
    chosen = max(
        by["present"] + by["future"], key=lambda row: row["score"]
    )  # the first of equals: the present's
    rejected = min(by["present"] + by["past"], key=lambda row: row["score"])
    return [(chosen, rejected)] if chosen["score"] > rejected["score"] else []
