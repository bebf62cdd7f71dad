"""A graph of two stages whose service times are known (importable by workers, which a benchmark's own file is not)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from selfloop.workflows.flow.iteration import Iteration
from selfloop.workflows.flow.recipe import Recipe
from selfloop.workflows.flow.stream import Model
from selfloop.workflows.judges.base import GroupJudge
from selfloop.workflows.objectives.sft import SFT
from selfloop.workflows.pocket.roles import PocketPointJudge

__all__ = ["Sleeper", "Stages"]


class Sleeper(GroupJudge):
    """Takes a known time for every prompt group."""

    seconds: float

    def verify_group(self, rows: Sequence[Any]) -> Sequence[float | None]:
        time.sleep(self.seconds)
        return [1.0] * len(rows)


class Stages(Recipe):
    """sample -> judge, and nothing that costs after them. Without `judge`, the policy judges itself."""

    judge: float | None
    prompts: int

    def iteration(self, it: Iteration) -> Model:
        answers = it.prompts().sample(it.policy, n=2)
        if self.judge is None:
            judged = answers.judge(PocketPointJudge(), by=it.policy)
        else:
            judged = answers.judge(Sleeper(seconds=self.judge / self.prompts))
        return it.policy.train(judged, SFT(), reference=None, optimizer="fresh")
