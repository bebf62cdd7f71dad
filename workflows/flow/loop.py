"""The run: iteration after iteration, from the config to a model that has improved itself."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from selfloop.workflows.config import Config
from selfloop.workflows.errors import InputError, NoSignalError
from selfloop.workflows.flow.findings import row_findings
from selfloop.workflows.flow.going_on import refuse_changed_data, take_data
from selfloop.workflows.flow.gold import graph_problems
from selfloop.workflows.flow.graph import Graph
from selfloop.workflows.flow.job import Job, Meta, Place
from selfloop.workflows.flow.outcome import Outcome
from selfloop.workflows.flow.setup import Setup
from selfloop.workflows.flow.signal import IDLE, idle_iterations, signal_metrics
from selfloop.workflows.flow.voting import voted_notes
from selfloop.workflows.report.console import Console
from selfloop.workflows.report.way_out import idle_line, way_out
from selfloop.workflows.store.run import RunFolder
from selfloop.workflows.trackers import Trackers, read_metrics

__all__ = ["Runtime", "local_runtime", "loop", "run"]


class Runtime(Protocol):
    """Something that runs one iteration's graph."""

    def run(self, graph: Graph) -> Outcome: ...


def run(
    config: Config, run_dir: str | Path, console: Console | None = None, confirmed: bool = False
) -> list[dict[str, Any]]:
    """Run (or go on with) a run in its folder over Ray. Returns the metrics of every iteration.

    confirmed: the user has said yes to what must be asked first. Raises the typed errors of `selfloop.workflows.errors`; the
    folder can be resumed after any of them, unless it was a start that committed nothing: then it is as it was before.
    """
    folder = RunFolder(run_dir)
    setup = Setup(config, folder.path)
    console = console or Console(config.iterations)
    with console:
        with console.doing("prompts are read, and the graph is checked with them"):
            problems, notes = row_findings(setup, setup.base)
            problems = [*unbuilt(config), *graph_problems(setup), *problems]
            problems += refuse_changed_data(setup, folder, confirmed)
        if problems:
            raise InputError.of(problems)
        going_on = folder.open(config.model_dump(mode="json"), confirmed)
        for note in notes:
            console.note(note)
        try:
            if going_on:
                refuse_without_signal(setup, folder, folder.completed())
            if going_on and folder.completed() >= config.iterations:
                console.line(f"This run is finished: {config.iterations} iterations are in {folder.path}.")
                return read_metrics(folder.path)
            return run_over_ray(setup, folder, console)
        except Exception:
            if not going_on and not folder.committed():
                folder.undo()
            raise
        finally:
            folder.close()


def run_over_ray(setup: Setup, folder: RunFolder, console: Console) -> list[dict[str, Any]]:
    from selfloop.workflows.flow.ray_runtime import ray_runtime

    take_data(setup, folder)
    with ray_runtime(setup, folder, console) as (runtime, job):
        history = loop(setup, folder, runtime, job, console)
    console.done(folder.path)
    return history


def unbuilt(config: Config) -> list[str]:
    """Settings whose names are fixed and that nothing obeys yet: refused, so that no run only seems to follow them."""
    return [
        f"{name} is set, and this version of Selfloop does not act on it yet. Leave it out"
        for name in ("judge_model",)
        if getattr(config, name) is not None
    ]


def loop(
    setup: Setup, folder: RunFolder, runtime: Runtime, job: Job, console: Console
) -> list[dict[str, Any]]:
    """Iterate from the first incomplete iteration to the last, or until the recipe stops."""
    config = setup.config
    trackers = Trackers(folder.path, config)
    try:
        last = restore(job, setup, folder)
        if stopped(setup, folder, last, console):
            return read_metrics(folder.path)
        for index in range(last + 1, config.iterations + 1):
            graph = setup.planner.graph(index)
            started = time.monotonic()
            job.progress, job.doing, job.say = Progress(console), console.doing, console.line
            folder.event("iteration", iteration=index)
            outcome = runtime.run(graph)
            roles = job.settle(graph)
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


def stopped(setup: Setup, folder: RunFolder, index: int, console: Console) -> bool:
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


def restore(job: Job, setup: Setup, folder: RunFolder) -> int:
    """Note where the models of the complete iterations are; returns the last of these."""
    job.places["policy@0"] = Place(str(setup.folder), None, None, setup.model_hash)
    last = folder.completed()
    for index in range(last + 1):
        made = {role: Place.of(entry, folder) for role, entry in folder.manifest(index)["roles"].items()}
        earlier = {
            name.split("@")[0]: place for name, place in job.places.items() if name.endswith(f"@{index - 1}")
        }
        job.places |= {f"{role}@{index}": place for role, place in (earlier | made).items()}
    return last


def prune(setup: Setup, folder: RunFolder, index: int) -> None:
    """Delete the checkpoints before the last `checkpoints.keep`, but none that the next iteration goes back to, and none of
    a role that was carried over since."""
    keep = setup.config.checkpoints.keep
    if keep is None:
        return
    models = [model for node in setup.planner.graph(index + 1) for model in node.models]
    back = max((index - model.version for model in models if model.node is None and model.version), default=0)
    held: dict[str, Any] = {}
    kept: set[str] = set()  # folders that a model of a later iteration is in; some models were carried over
    first = index + 1 - max(keep, back + 1)
    for past in range(1, index + 1):
        held |= folder.manifest(past)["roles"]
        if past >= first:
            kept |= {made[name] for made in held.values() for name in ("folder", "state") if made[name]}
    for old in range(1, first):
        for made in folder.manifest(old)["roles"].values():
            for name in {made["folder"], made["state"]} - kept - {None}:
                path = Path(folder.resolved(name))
                if path.parent == folder.iteration(old):
                    shutil.rmtree(path, ignore_errors=True)


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
        if counted is None or node.evaluation:
            continue
        name = node.name.replace("-", "_").replace("@", "_")
        metrics[f"{name}_rows"] = counted["rows"]
        if counted.get("failed"):
            metrics[f"{name}_failed_rows"] = counted["failed"]
        if node.verb == "sample":
            metrics[f"{name}_truncated_share"] = counted.get("truncated", 0) / max(counted["rows"], 1)
        if node.verb == "demonstrate" and counted.get("stripped"):
            metrics[f"{name}_stripped_ends"] = counted["stripped"]
        if node.verb in ("judge", "measure"):
            metrics |= verdict_metrics(name, counted)
    idle = bool(outcome.trained) and outcome.idle >= set(outcome.trained)
    return metrics | signal_metrics(graph, outcome.counts, idle)


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


def verdict_metrics(name: str, counted: Meta) -> dict[str, float]:
    """Mean score of a judge node, and how many verdicts are none."""
    metrics: dict[str, float] = {}
    for column, states in counted.items():
        if isinstance(states, dict):
            metrics |= {
                f"{name}_{column}_{state}": count for state, count in states.items() if state != "score"
            }
            if states.get("score"):
                score = column.removesuffix("_state")
                metrics[f"{name}_{score}_mean"] = counted.get(f"{score}_sum", 0.0) / states["score"]
    return metrics


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


def local_runtime(setup: Setup, folder: RunFolder, engine: Any, trainer: Any) -> tuple[Runtime, Job]:
    """The same run in this process: an engine and a trainer of any kind, no Ray (tests, breakpoints)."""
    from selfloop.workflows.flow.codec import Codec
    from selfloop.workflows.flow.local import LocalRuntime

    job = make_job(setup, folder, {})
    return LocalRuntime(job, engine, trainer, Codec(setup.folder)), job


def make_job(setup: Setup, folder: RunFolder, versions: dict[str, Any]) -> Job:
    config = setup.config
    return Job(
        folder, config.seed, config.batch_size, setup.sources, config.max_failed_rows, versions=versions,
        reuse=RunFolder(config.reuse) if config.reuse else None, graph_of=setup.planner.graph,
        span=config.iterations if config.trainer.schedule.over == "run" else None, hashes=setup.hashes,
    )  # fmt: skip
