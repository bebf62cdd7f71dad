"""Who is told how a run goes, and how far its nodes are."""

from __future__ import annotations

import time
from dataclasses import asdict

from selfloop.workflows.data.batches import Meta
from selfloop.workflows.report.console import Console

__all__ = ["Progress"]


class Progress:
    """Tells the console how far each node is, with its rate of sampled tokens."""

    def __init__(self, console: Console):
        self.console = console
        self.started: dict[str, tuple[float, int]] = {}

    def __call__(self, node: str, state: Meta) -> None:
        if "told" in state:
            self.console.training(node, **asdict(state["told"]))
            return
        now, tokens = time.monotonic(), state.get("tokens", 0)
        since, before = self.started.setdefault(node, (now, tokens))
        rate = (tokens - before) / (now - since) if now - since > 0.5 else None
        rows, batches, total = state.get("rows", 0), state["batches"], state["total"]
        expected = round(rows / batches * total) if batches and total else None
        self.console.stage(node, rows, expected, rate or None, state["queued"] or None, state["complete"])
