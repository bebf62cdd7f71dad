"""metrics.jsonl: one line an iteration."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfloop.workflows.store.disk import append, storing

__all__ = ["Metrics", "MetricsFile", "metric_name", "read_metrics"]

Metrics = Mapping[str, float]


def metric_name(name: str) -> str:
    """A name that Prometheus and `ray.util.metrics` take: [a-z0-9_]."""
    return re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_")


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, one an iteration, in order; a line cut off by a kill is left out."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    rows: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            rows.setdefault(int(row["iteration"]), row)
    return [rows[index] for index in sorted(rows)]


class MetricsFile:
    """metrics.jsonl of a run. An iteration that is already in it is not logged again."""

    def __init__(self, run_dir: Path):
        self.path = Path(run_dir) / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.mend()
        self.logged = {int(row["iteration"]) for row in read_metrics(self.path.parent)}

    def mend(self) -> None:
        """Cut off a last line that a kill left unfinished."""
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with open(self.path, "r+b") as file:
                file.truncate(len(whole))

    def log(self, iteration: int, metrics: Metrics, step: int | None = None) -> None:
        """Append one line, `{"iteration": 2, "step": 40, "heldout_accuracy": 0.71}`, and tell whoever else listens."""
        if iteration in self.logged:
            return
        finite = {metric_name(name): float(value) for name, value in metrics.items() if math.isfinite(value)}
        row = {"iteration": iteration, **({} if step is None else {"step": step}), **finite}
        self.append((json.dumps(row) + "\n").encode())
        self.logged.add(iteration)
        self.tell(iteration, finite)

    def append(self, line: bytes) -> None:
        """One write, flushed to disk: a kill leaves the whole line or a tail that `mend` cuts off."""
        with storing(self.path.parent, "metrics.jsonl"):
            append(self.path, line, sync=True)

    def tell(self, iteration: int, metrics: Metrics) -> None:
        """What is to happen with a line that is new."""

    def close(self) -> None:
        """The run has ended."""
