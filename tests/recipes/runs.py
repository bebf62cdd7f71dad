"""Whole runs of a recipe on the local runtime with a fake engine that answers pocket tasks and judge prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfloop.actors.generate.fake import FakeEngine
from selfloop.actors.generate.spec import EngineSpec
from selfloop.actors.train.fake import FakeTrainer
from selfloop.actors.train.spec import TrainerSpec, TrainResult, TrainWork
from selfloop.actors.train.trainer import Trainer
from selfloop.workflows.config import Config
from selfloop.workflows.flow.graph import Graph
from selfloop.workflows.models.codec import codec_of
from selfloop.workflows.report.console import Console
from selfloop.workflows.run.job import Job
from selfloop.workflows.run.local import local_runtime
from selfloop.workflows.run.loop import Runtime, loop
from selfloop.workflows.run.setup import Setup
from selfloop.workflows.store.folder import RunFolder
from tests.unit.flows import fake_config, rows_of

__all__ = [
    "Script",
    "Watched",
    "by_seed",
    "fake_trainer",
    "graph_of",
    "pocket_config",
    "real_trainer",
    "rows_of",
    "run_recipe",
    "trained_rows",
]

Reply = Callable[[str, int, int], str]
"""(gold answer, seed, version) -> text."""


def by_seed(answer: str, seed: int, version: int) -> str:
    """Right for half of the seeds, else one of three wrong answers."""
    return answer if seed % 2 else f"{answer}{seed // 2 % 3}"


class Script:
    """A FakeEngine script: known prompts are answered by `reply`, all others (judge prompts) with a score."""

    def __init__(self, setup: Setup, reply: Reply = by_seed):
        codec = codec_of(str(setup.folder))
        self.reply = reply
        self.answers: dict[tuple[int, ...], str] = {}
        for table in setup.sources.values():
            for messages, answer in zip(
                table["prompt"].to_pylist(), table["answer"].to_pylist(), strict=True
            ):
                if answer is not None:
                    self.answers[tuple(codec.encode(messages))] = answer

    def __call__(self, prompt_ids: Sequence[int], seed: int, version: int) -> str:
        answer = self.answers.get(tuple(prompt_ids))
        return f"Score: {seed % 6}" if answer is None else self.reply(answer, seed, version)


def pocket_config(recipe: str, settings: dict[str, Any] | None = None, **more: Any) -> Config:
    """Two iterations over 24 prompts of the pocket world."""
    return fake_config(recipe, settings=settings or {}, **more)


def graph_of(config: Config, iteration: int) -> Graph:
    return Setup(config).planner.graph(iteration)


class Watched:
    """A trainer that remembers what it was given and what it gave."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.works: list[TrainWork] = []
        self.results: list[TrainResult] = []

    def train(self, work: TrainWork) -> TrainResult:
        self.works.append(work)
        self.results.append(self.trainer.train(work))
        return self.results[-1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.trainer, name)


def real_trainer(config: Config, **changes: Any) -> Watched:
    """The DeepSpeed trainer in this process, on the config's model."""
    return Watched(Trainer(TrainerSpec(str(Setup(config).folder), **changes)))


def fake_trainer(config: Config) -> Watched:
    return Watched(FakeTrainer(str(Setup(config).folder)))


def trained_rows(work: TrainWork) -> list[dict[str, Any]]:
    return work.table.to_pylist()


@contextmanager
def local(setup: Setup, folder: RunFolder, trainer: Any, reply: Reply) -> Iterator[tuple[Runtime, Job]]:
    options = {"script": Script(setup, reply)}
    engine = FakeEngine(EngineSpec("fake", str(setup.folder), options=options))
    yield local_runtime(setup, folder, engine, trainer)


def run_recipe(
    config: Config, path: Path, reply: Reply = by_seed, trainer: Any = None
) -> list[dict[str, Any]]:
    """A whole run in this process; returns its metrics."""
    setup, folder = Setup(config), RunFolder(path)
    folder.open(config.model_dump(mode="json"))
    try:
        with local(setup, folder, trainer or FakeTrainer(str(setup.folder)), reply) as (runtime, job):
            return loop(setup, folder, runtime, job, Console(live=False))
    finally:
        folder.close()
