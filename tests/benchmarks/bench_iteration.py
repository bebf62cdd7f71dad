"""Whole iterations beside the bare engines on the same work, interleaved: the same prompts, tokens and training rows.

    python -m tests.benchmarks.bench_iteration [--configs self-rewarding grpo] [--iterations 5] [key=value ...]

After each iteration of a real run (Ray, vLLM, DeepSpeed), bare vLLM samples and judges the prompts that it committed,
as many tokens each, and a bare DeepSpeed loop trains on its rows. All engines were started before. An iteration is
everything from the end of the one before it: planning, publishing, proof, sampling, judging, committing, training,
checkpoint. Iterations from 2 on count, without the last, which alone is evaluated. The ratio is the median of each
iteration's own. Processor seconds, of all processes of a side, are told beside the wall clock: other work on the
machine changes them less.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfloop.actors.train.rows.plan import Plan
from selfloop.workflows.config import Config, load_config
from selfloop.workflows.executor.connect import HUGE_PAGES
from selfloop.workflows.executor.run import run
from selfloop.workflows.flow.graph import Graph
from selfloop.workflows.flow.verbs.sample import Sample
from selfloop.workflows.judges.base import PromptJudge
from selfloop.workflows.models.codec import Codec
from selfloop.workflows.report.console import Console
from selfloop.workflows.run.setup import Setup
from selfloop.workflows.store.folder import RunFolder
from selfloop.workflows.store.parts import read_batches
from tests.benchmarks import bare
from tests.benchmarks.machine import Load, cpu_of, describe, equal_priority, spread, tree

__all__ = ["measure"]


KINDS = {"ray::Generator": "cpu engines", "ray::RankActor": "cpu trainer", "ray::Worker": "cpu workers, writer", "python": "cpu driver",
         "": "cpu Ray itself"}  # fmt: skip


def kind_of(pid: int) -> str:
    """What a process of a run does, by its title."""
    if pid == os.getpid():
        return KINDS["python"]
    try:
        title = Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # it has ended
        title = ""
    return next(
        (kind for name, kind in KINDS.items() if name and name != "python" and title.startswith(name)),
        KINDS[""],
    )


class Interleaved(Console):
    """A console that says nothing and, when an iteration has ended, lets the bare engines do its work again."""

    def __init__(self, setup: Setup, folder: RunFolder):
        super().__init__(live=False)
        self.setup, self.folder = setup, folder
        engine, self.spec, _ = setup.specs(0)
        replicas = setup.config.generator.replicas
        self.engines = [bare.Worker(bare.vllm, engine) for _ in range(replicas)]
        self.trainer = bare.Worker(bare.trainer, self.spec)
        self.codec = Codec(setup.folder)
        self.found: list[dict[str, float]] = []
        self.workers = {worker.process.pid or 0 for worker in (*self.engines, self.trainer)}
        self.since = self.spent_by_now()

    def spent_by_now(self) -> dict[str, float]:
        """The clock, and the processor seconds of everything but the bare engines, by what it is."""
        pids, kinds = tree(os.getpid(), self.workers), dict.fromkeys(KINDS.values(), 0.0)
        for pid in pids:
            kinds[kind_of(pid)] += cpu_of([pid])
        return {"selfloop": time.perf_counter(), "cpu selfloop": sum(kinds.values()), **kinds}

    def line(self, text: str) -> None:
        """Nothing is printed beside a measurement."""

    def iteration(self, index: int, metrics: Mapping[str, Any], cut: str = "") -> None:
        """Measure the same work on the bare engines, unless this iteration only warmed up, or was evaluated."""
        spent = {name: value - self.since[name] for name, value in self.spent_by_now().items()}
        if 1 <= index < self.setup.config.iterations:
            phases, before = self.phases(index), cpu_of(self.workers)
            figures = self.bare(index)
            figures |= {"cpu bare": cpu_of(self.workers) - before, **spent}
            figures |= phases
            figures |= {
                f"trainer {name}": metrics[f"train_{name}"] for name in ("prepare_s", "train_s", "save_s")
            }
            if index > 1:  # the first iteration warms both sides up
                self.found.append(figures)
        self.since = self.spent_by_now()

    def phases(self, index: int) -> dict[str, float]:
        """Where our seconds went, by the run's own events: publish, rows, train."""
        lines = (self.folder.path / "events.jsonl").read_text("utf-8").splitlines()
        events = [json.loads(line) for line in lines]
        began = next(e["time"] for e in events if e["event"] == "iteration" and e["iteration"] == index)
        mine = [e for e in events if e["time"] >= began]
        served = next((e["time"] for e in mine if e["event"] == "serve"), began)
        trains = next(e["time"] for e in mine if e["event"] == "train")
        return {
            "publish and prove": served - began,
            "rows": trains - served,
            "train and save": time.time() - trains,
        }

    def bare(self, index: int) -> dict[str, float]:
        """Seconds of bare vLLM a node, of the bare DeepSpeed loop, and of all of it."""
        graph = self.setup.planner.graph(index)
        figures: dict[str, float] = {}
        for node in graph:
            if node.op is not None and node.op.place == "engine" and not node.evaluation:
                work = requests(node.op, self.rows(graph, node.name), self.codec)
                figures[f"bare {node.name}"] = bare.together(self.engines, split(work, len(self.engines)))
            if node.training is not None:
                rows = self.rows(graph, node.inputs[0])
                self.trainer.send(training(node.training, rows, self.spec, self.seed(graph, node.name)))
                figures["bare DeepSpeed"] = self.trainer.receive()[0]
        return figures | {"bare": sum(figures.values())}

    def seed(self, graph: Graph, node: str) -> int:
        from selfloop.workflows.data.seeds import derive_seed

        return derive_seed(self.setup.config.seed, graph.iteration, node)

    def rows(self, graph: Graph, node: str) -> list[dict[str, Any]]:
        """The committed rows of a node, in their order."""
        parts = self.folder.parts(graph.iteration, node)
        return [row for part in parts for table in read_batches(part.stored()) for row in table.to_pylist()]

    def close(self) -> None:
        for worker in (*self.engines, self.trainer):
            worker.close()


def requests(op: Any, rows: list[dict[str, Any]], codec: Codec) -> tuple[Any, ...]:
    """What the run asked its engine for at this node, as bare vLLM gets it."""
    if isinstance(op, Sample):
        sampling = {"temperature": op.temperature, "top_p": op.top_p}
        return (
            "sample",
            [(row["prompt_ids"], len(row["response_ids"]), row["seed"]) for row in rows],
            [],
            sampling,
        )
    judge = op.judge
    assert isinstance(judge, PromptJudge) and judge.labels, "judges that write text are not replayed yet"
    labels = [codec.token(label) for label in judge.labels]
    return "label", [(codec.encode(judge.messages(row)), 1, 0) for row in rows], labels, {}


def split(work: tuple[Any, ...], parts: int) -> list[tuple[Any, ...]]:
    """The same work for several engines, in equal shares of neighbouring requests."""
    what, asked, *rest = work
    size = -(-len(asked) // parts)
    return [(what, asked[start : start + size], *rest) for start in range(0, len(asked), size)]


def training(node: Any, rows: list[dict[str, Any]], spec: Any, seed: int) -> tuple[Any, ...]:
    """The run's own training rows in the run's own optimizer steps, as the bare loop gets them."""
    plan = Plan(len(rows), node.batch_size or spec.batch_size, node.epochs, seed)
    steps = [[int(row) for row in plan.step(index)] for index in range(plan.steps)]
    name, settings = type(node.objective).__name__.lower(), node.objective.model_dump()
    columns = {
        "grpo": ("prompt_ids", "response_ids", "advantages"),
        "dpo": ("prompt_ids", "chosen_ids", "rejected_ids"),
    }
    return name, settings, [tuple(row[column] for column in columns[name]) for row in rows], steps


def measure(name: str, iterations: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Medians of seconds, and of the ratio of each iteration to its own bare work."""
    every = [f"iterations={iterations + 2}", "evaluation.every=1000000", "checkpoints.keep=2"]
    config: Config = load_config(name, [*every, *overrides])
    place = Path(tempfile.mkdtemp(prefix="selfloop-bench-"))
    console = Interleaved(Setup(config), RunFolder(place / "run"))
    load = Load()
    try:
        run(config, place / "run", console)
    finally:
        console.close()
        shutil.rmtree(place, ignore_errors=True)
    ratios = [line["selfloop"] / line["bare"] for line in console.found]
    return {
        "medians": {key: statistics.median(line[key] for line in console.found) for key in console.found[0]},
        "wall": ratios, "cpu": [line["cpu selfloop"] / line["cpu bare"] for line in console.found],
        "load": load.sentence(), "threads": (config.generator.threads, config.trainer.threads),
        "replicas": config.generator.replicas, "ranks": config.trainer.ranks,
    }  # fmt: skip


def report(name: str, found: dict[str, Any]) -> None:
    medians, (sampling, training) = found["medians"], found["threads"]
    print(
        f"{name}: {found['replicas']} engine(s) of {sampling} thread(s), {found['ranks']} rank(s) of {training}; {found['load']}"
    )
    for key, value in medians.items():
        print(f"  {key:<22} {value:8.3f} s")
    print(
        f"  selfloop / bare        {spread(found['wall'])} by the clock, {spread(found['cpu'])} in processor seconds",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--configs", nargs="+", default=["self-rewarding", "grpo"])
    parser.add_argument(
        "--iterations", type=int, default=5, help="that are measured, beside the first and the last"
    )
    parser.add_argument("overrides", nargs="*", help="key=value, for every config")
    chosen = parser.parse_args()
    equal_priority()
    os.environ.setdefault("GLIBC_TUNABLES", HUGE_PAGES)  # for the bare side, too
    print(describe())
    for name in chosen.configs:
        report(name, measure(name, chosen.iterations, chosen.overrides))


if __name__ == "__main__":
    main()
