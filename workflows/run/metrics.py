"""The numbers of an iteration, from what its nodes counted."""

from __future__ import annotations

from collections.abc import Iterator

from selfloop.workflows.data.batches import Counts
from selfloop.workflows.flow.graph import Graph
from selfloop.workflows.run.outcome import Outcome
from selfloop.workflows.run.signal import signal_metrics

__all__ = ["left_out", "metrics_of"]


def metrics_of(graph: Graph, outcome: Outcome, seconds: float) -> dict[str, float]:
    """One flat dict of an iteration's numbers: evaluation, training, counts, the probe's gap, time."""
    metrics: dict[str, float] = {"wall_s": round(seconds, 2), **outcome.numbers}
    gaps = [gap for gap in outcome.gaps.values() if gap is not None]
    if gaps:
        metrics["sync_logprob_gap"] = max(gaps)
    several = len(outcome.trained) > 1
    for node, numbers in outcome.trained.items():
        metrics |= {
            f"{node.replace('-', '_') if several else 'train'}_{name}": value
            for name, value in numbers.items()
        }
    for node in graph:
        counted = outcome.counts.get(node.name)
        if counted is None or node.evaluation or node.op is None:
            continue
        name = node.name.replace("-", "_").replace("@", "_")
        metrics[f"{name}_rows"] = counted.rows
        if counted.failed:
            metrics[f"{name}_failed_rows"] = counted.failed
        if "truncated" in node.op.metrics:
            metrics[f"{name}_truncated_share"] = (counted.truncated or 0) / max(counted.rows, 1)
        if "stripped" in node.op.metrics and counted.stripped:
            metrics[f"{name}_stripped_ends"] = counted.stripped
        if "verdicts" in node.op.metrics:
            metrics |= verdict_metrics(name, counted)
    idle = bool(outcome.trained) and outcome.idle >= set(outcome.trained)
    return metrics | signal_metrics(graph, outcome.counts, idle)


def verdict_metrics(name: str, counted: Counts) -> dict[str, float]:
    """Mean score of a judge node, and how many verdicts are none."""
    metrics: dict[str, float] = {}
    for column, (states, score) in counted.verdicts.items():
        metrics |= {
            f"{name}_{column}_state_{state}": count for state, count in states.items() if state != "score"
        }
        if states.get("score"):
            metrics[f"{name}_{column}_mean"] = (score or 0.0) / states["score"]
    return metrics


def left_out(metrics: dict[str, float]) -> Iterator[str]:
    """What is said of rows that an iteration did not use."""
    words = {
        "_failed_rows": "rows failed: their column `error` says why",
        "_examples_too_long": "rows were not learned from: they are longer than the model takes",
        "_examples_identical": "pairs were not learned from: their sides are the same",
    }
    for name, count in metrics.items():
        for end, told in words.items():
            if name.endswith(end) and count:
                yield f"  {name.removesuffix(end)}: {count:,.0f} {told} ({name})"
