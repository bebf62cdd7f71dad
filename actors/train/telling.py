"""How far a training is, told while it runs: for people to read, and nothing that is made depends on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Teller", "Told"]


@dataclass(frozen=True)
class Told:
    """What a training does now. doing: in words, before and after the steps. step: how many of `steps` are done.
    tokens_per_s, left_s: at the pace of the steps that this process has done; None before the first."""

    doing: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    tokens_per_s: float | None = None
    left_s: float | None = None


class Teller:
    """Tells of one training. tell: who listens. clock: seconds."""

    def __init__(self, tell: Callable[[Told], None], clock: Callable[[], float] = time.perf_counter):
        self.tell = tell
        self.clock = clock
        self.doing("its rows are read")

    def doing(self, what: str) -> None:
        """What is done instead of steps."""
        self.tell(Told(what))

    def begin(self, step: int, steps: int) -> None:
        """The first step comes now, after `step` of `steps` that were done before."""
        self.first, self.steps, self.began, self.tokens = step, steps, self.clock(), 0.0
        self.tell(Told("", step, steps))

    def stepped(self, line: dict[str, float]) -> None:
        """A step is done; its line of the curve."""
        step, seconds = (
            int(line["step"]),
            max(self.clock() - self.began, 1e-9),
        )  # no division by a clock's tick
        self.tokens += line["tokens"]
        left = seconds / (step - self.first) * (self.steps - step)
        self.tell(Told("", step, self.steps, line["loss"], self.tokens / seconds, left))
