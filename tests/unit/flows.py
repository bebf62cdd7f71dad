"""What the tests of both runtimes share: a small config with fake engines, and the two runtimes by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfloop.actors.generate.generator import make_engine
from selfloop.actors.generate.spec import EngineSpec
from selfloop.actors.train.fake import FakeTrainer
from selfloop.workflows.config import Config
from selfloop.workflows.flow.recipe import Recipe
from selfloop.workflows.report.console import Console
from selfloop.workflows.run.job import Job
from selfloop.workflows.run.local import local_runtime
from selfloop.workflows.run.loop import Runtime, loop
from selfloop.workflows.run.setup import Setup
from selfloop.workflows.store.folder import RunFolder
from selfloop.workflows.store.parts import read_table

PREFERENCES = {
    "train": {"options": {"preferences": True, "size": 24}},
    "test": {"split": "heldout", "options": {"preferences": True, "size": 16}},
}


def fake_config(recipe: str = "self-rewarding", **more: Any) -> Config:
    """Two iterations over 24 prompts with fake engines."""
    fields: dict[str, Any] = {
        "recipe": recipe,
        "iterations": 2,
        "batch_size": 5,
        "prompts": {"heldout": 8, "options": {"size": 24}},
        "generator": {"engine": "fake", "max_tokens": 32, "options": {"emit_version": False}},
        "evaluation": {"samples": 2, "bootstrap": 100},
        "max_failed_rows": 1.0,
        "data": PREFERENCES if recipe == "finetune" else {},
        **more,
    }
    return Config(**fields)


class FixedSetup(Setup):
    """A setup whose recipe is given as an object: graphs that are no registered recipe."""

    fixed: Recipe | None = None

    @property
    def recipe(self) -> Recipe:  # pyright: ignore[reportIncompatibleVariableOverride]
        assert self.fixed is not None
        return self.fixed


def setup_of(config: Config, recipe: Recipe | None = None) -> Setup:
    if recipe is None:
        return Setup(config)
    made = FixedSetup(config)
    object.__setattr__(made, "fixed", recipe)
    return made


@contextmanager
def runtime_of(name: str, setup: Setup, folder: RunFolder) -> Iterator[tuple[Runtime, Job]]:
    """The local or the Ray runtime on this setup, both with the engine that the config names and a fake trainer."""
    if name == "local":
        generator = setup.config.generator
        spec = EngineSpec(generator.engine, str(setup.folder), options=dict(generator.options))
        yield local_runtime(setup, folder, make_engine(spec), FakeTrainer(str(setup.folder)))
        return
    from selfloop.workflows.executor.schedule import Executor
    from selfloop.workflows.run.job import make_job

    actors = shared_actors(setup)
    actors.engines.model = actors.trainer.loaded = ""
    job = make_job(setup, folder, {})
    yield Executor(job, actors), job


ACTORS: dict[str, Any] = {}


def shared_actors(setup: Setup) -> Any:
    """Ray and a run's actors, started once a test session and kind of generator."""
    import ray

    from selfloop.workflows.executor.actors import Actors
    from selfloop.workflows.executor.connect import connect
    from selfloop.workflows.executor.specs import Specs

    kind = setup.config.generator.model_dump_json()
    if kind not in ACTORS:
        if not ray.is_initialized():
            ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
        connect(setup.config)
        ACTORS[kind] = Actors(setup.config, Specs(*setup.specs(0)[:2], setup.probe_messages, 1e-3), 0)
    actors = ACTORS[kind]
    for pool in (actors.engines, actors.workers, actors.trainer.pool):
        for replica in pool.replicas:
            replica.in_flight = 0  # a run that ended in an error leaves its calls behind
    return actors


def close_shared_actors() -> None:
    import ray

    for actors in ACTORS.values():
        actors.close()
    ACTORS.clear()
    ray.shutdown()


def run_on(name: str, config: Config, path: Path, recipe: Recipe | None = None) -> list[dict[str, Any]]:
    """A whole run; returns its metrics."""
    setup = setup_of(config, recipe)
    folder = RunFolder(path)
    folder.open(config.model_dump(mode="json"))
    try:
        with runtime_of(name, setup, folder) as (runtime, job):
            return loop(setup, folder, runtime, job, Console(live=False))
    finally:
        folder.close()


def rows_of(path: Path, iteration: int, node: str) -> list[dict[str, Any]]:
    """The committed rows of a node, in order."""
    parts = RunFolder(path).parts(iteration, node)
    return [row for part in parts for row in read_table(part.path).to_pylist()]
