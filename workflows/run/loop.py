"""The run: iteration after iteration, from the config to a model that has improved itself."""

from __future__ import annotations

import time
from typing import Any, Protocol

from selfloop.workflows.config import Config
from selfloop.workflows.errors import NoSignalError
from selfloop.workflows.flow.graph import Graph
from selfloop.workflows.run.job import Job
from selfloop.workflows.run.keep import prune
from selfloop.workflows.run.metrics import left_out, metrics_of
from selfloop.workflows.run.outcome import Outcome
from selfloop.workflows.run.setup import Setup
from selfloop.workflows.run.signal import IDLE, idle_iterations
from selfloop.workflows.run.voting import voted_notes
from selfloop.workflows.run.watch import Progress, Watcher
from selfloop.workflows.run.way_out import idle_line, way_out
from selfloop.workflows.store.folder import RunFolder
from selfloop.workflows.store.metrics import MetricsFile, read_metrics

__all__ = ["Runtime", "loop", "refuse_without_signal", "unbuilt"]


class Runtime(Protocol):
    """Something that runs one iteration's graph."""

    def run(self, graph: Graph) -> Outcome: ...


def unbuilt(config: Config) -> list[str]:
    """Settings whose names are fixed and that nothing obeys yet: refused, so that no run only seems to follow them."""
    return [
        f"{name} is set, and this version of Selfloop does not act on it yet. Leave it out"
        for name in ("judge_model",)
        if getattr(config, name) is not None
    ]


def loop(
    setup: Setup,
    folder: RunFolder,
    runtime: Runtime,
    job: Job,
    console: Watcher,
    kept: MetricsFile | None = None,
) -> list[dict[str, Any]]:
    """Iterate from the first incomplete iteration to the last, or until the recipe stops. kept: where metrics go, if not to
    metrics.jsonl alone."""
    config = setup.config
    trackers = kept or MetricsFile(folder.path)
    try:
        last = job.models.restore(setup.initial)
        if stopped(setup, folder, last, console):
            return read_metrics(folder.path)
        for index in range(last + 1, config.iterations + 1):
            graph = setup.planner.graph(index)
            started = time.monotonic()
            job.progress, job.doing, job.say = Progress(console), console.doing, console.line
            folder.event("iteration", iteration=index)
            outcome = runtime.run(graph)
            roles = job.models.settle(graph)
            metrics = metrics_of(graph, outcome, time.monotonic() - started)
            trackers.log(index, metrics)
            folder.commit_iteration(index, {role: place.entry(folder) for role, place in roles.items()})
            console.iteration(index, metrics, setup.recipe.cut_answers)
            for line in left_out(metrics):
                console.line(line)
            if len(idle_iterations(folder, index)) in range(1, IDLE):
                console.line(idle_line(setup, folder, index))
            for note in voted_notes(setup, graph, folder) if index == 1 else ():
                console.line(f"Note: {note}.")
            prune(setup, folder, index)
            if stopped(setup, folder, index, console):
                break
        return read_metrics(folder.path)
    finally:
        trackers.close()


def stopped(setup: Setup, folder: RunFolder, index: int, console: Watcher) -> bool:
    """Whether the recipe's own rule ends the run after this iteration."""
    stops = index > 0 and setup.recipe.stop(read_metrics(folder.path))
    if stops:
        console.line(
            f"The recipe stops after iteration {index}: its own rule says that there is nothing left to gain."
        )
    else:
        refuse_without_signal(setup, folder, index)
    return stops


def refuse_without_signal(setup: Setup, folder: RunFolder, index: int) -> None:
    """Raise NoSignalError if nothing was trained in the last complete iterations, by their manifests, unless the recipe's own
    rule ends the run there."""
    idle = idle_iterations(folder, index)
    if len(idle) >= IDLE and not setup.recipe.stop(read_metrics(folder.path)):
        raise NoSignalError(way_out(setup, folder, idle))
