"""MUSCLE: compatible model updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfloop import MUSCLE as Distillation
from selfloop import SFT, Iteration, Model, Recipe


class Muscle(Recipe):
    """The update imitates the model in use exactly where it is itself wrong. In a loop the model in use is the policy, and
    the update is tuned from the initial policy on newer data."""

    epochs: float = 10
    regressions: float = 0.1  # stop when more of the held-out answers turn wrong

    def iteration(self, it: Iteration) -> Model:
        lessons = it.prompts().demonstrate(it.initial)
        new = it.initial.train(
            lessons, SFT(), reference=None, optimizer="fresh", epochs=self.epochs, name="update"
        )
        teachers = {"first": it.policy, "second": new}
        return new.train(
            lessons, Distillation(), reference=None, optimizer="fresh", epochs=self.epochs, frozen=teachers
        )

    def stop(self, history: Sequence[dict[str, Any]]) -> bool:
        return history[-1].get("negative_flips", 0.0) > self.regressions
