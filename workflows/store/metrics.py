"""metrics.jsonl: one line an iteration."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["Metrics", "metric_name", "read_metrics"]

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
