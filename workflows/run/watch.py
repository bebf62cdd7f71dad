"""Who is told how a run goes, and how far its nodes are."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

from selfloop.actors.train.telling import Told

__all__ = ["Progress", "Stage", "Watcher"]


class Watcher(Protocol):
    """Somebody who is told how a run goes: a screen, a log, a benchmark."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def line(self, text: str) -> None:
        """Something to read, once."""
        ...

    def note(self, text: str) -> None:
        """Something worth knowing of the run."""
        ...

    def doing(self, what: str) -> AbstractContextManager[None]:
        """Something that no node tells of, and that may take long."""
        ...

    def stage(
        self,
        node: str,
        rows: int,
        total: int | None = None,
        tokens_per_s: float | None = None,
        queued: int | None = None,
        done: bool = False,
        what: str = "",
    ) -> None:
        """How far a node is, in rows. what: what it does, in words."""
        ...

    def training(
        self,
        node: str,
        doing: str = "",
        step: int = 0,
        steps: int = 0,
        loss: float | None = None,
        tokens_per_s: float | None = None,
        left_s: float | None = None,
    ) -> None:
        """How far a train node is. doing: what it does before or after its steps."""
        ...

    def iteration(self, index: int, metrics: Mapping[str, Any], cut: str = "") -> None:
        """An iteration is complete. cut: what the method does with cut answers."""
        ...

    def done(self, folder: object | None = None) -> None:
        """The run is complete."""
        ...


@dataclass(frozen=True)
class Stage:
    """How far a node is. batches, rows, tokens: committed; total: batches it will have, if that is known; queued: batches
    on their way; what: what it does, in words."""

    batches: int
    total: int | None
    rows: int
    tokens: int = 0
    queued: int = 0
    complete: bool = False
    what: str = ""


class Progress:
    """Tells the console how far each node is, with its rate of sampled tokens."""

    def __init__(self, console: Watcher):
        self.console = console
        self.started: dict[str, tuple[float, int]] = {}

    def __call__(self, node: str, state: Stage | Told) -> None:
        if isinstance(state, Told):
            self.console.training(node, **asdict(state))
            return
        now, tokens = time.monotonic(), state.tokens
        since, before = self.started.setdefault(node, (now, tokens))
        rate = (tokens - before) / (now - since) if now - since > 0.5 else None
        expected = round(state.rows / state.batches * state.total) if state.batches and state.total else None
        queued, done, what = state.queued or None, state.complete, state.what
        self.console.stage(node, state.rows, expected, rate or None, queued, done, what)
