"""The executor alone: many rows through sample -> judge -> keep -> pair with fake engines, committing on.

python -m tests.benchmarks.bench_executor [--rows 1000000]
Prints the driver's memory at 10 % and at 100 % of the rows, and the time a batch and node: of the wall clock, and the
driver's own processor seconds in its main thread and in all (Ray's core works in threads of the driver). One row = one
sample; 64 prompts x 4 samples a batch.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from selfloop.workflows.config import Config
from selfloop.workflows.executor.run import ray_runtime
from selfloop.workflows.flow.iteration import Iteration
from selfloop.workflows.flow.recipe import Recipe
from selfloop.workflows.flow.stream import Model
from selfloop.workflows.judges.votes import VoteShare
from selfloop.workflows.objectives.dpo import DPO
from selfloop.workflows.report.console import Console
from selfloop.workflows.rules.pairs import MostAgainstLeast
from selfloop.workflows.run.job import Job
from selfloop.workflows.run.setup import Setup
from selfloop.workflows.store.folder import RunFolder
from tests.benchmarks.machine import Load, describe, equal_priority

SAMPLES = 4
NODES = ("sample", "judge", "keep", "pair")


def everything(rows: list[Any], rng: Any) -> list[Any]:
    return rows


class Chain(Recipe):
    """sample -> judge -> keep -> pair, nothing else."""

    def iteration(self, it: Iteration) -> Model:
        kept = it.prompts().sample(it.policy, n=SAMPLES).judge(VoteShare()).keep(everything)
        pairs = kept.pair(MostAgainstLeast(threshold=0.0))
        return it.policy.train(pairs, DPO(), reference=it.policy, optimizer="fresh")


class ChainSetup(Setup):
    recipe = Chain()  # type: ignore[assignment]


def resident() -> float:
    """Memory of this process, MB, without what is shared."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / 1024


class Watch:
    """Notes the driver's memory as the last node advances."""

    def __init__(self, job: Job, batches: int):
        self.job, self.batches, self.memory = job, batches, {}

    def __call__(self, node: str, state: Any) -> None:
        if node == "pair":
            self.memory[round(100 * state.batches / self.batches)] = resident()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    prompts = rows // SAMPLES
    place = Path(tempfile.mkdtemp(prefix="selfloop-bench-"))
    with open(place / "prompts.jsonl", "w", encoding="utf-8") as file:
        file.writelines(
            json.dumps({"prompt": f"question number {index}"}) + "\n" for index in range(prompts + 16)
        )
    equal_priority()
    config = Config(recipe="self-consistency-reward", iterations=1, batch_size=64,
                    prompts={"source": str(place / "prompts.jsonl"), "heldout": 16},
                    generator={"engine": "fake", "max_tokens": 16}, evaluation={"samples": 1})  # fmt: skip
    setup, folder = ChainSetup(config), RunFolder(place / "run")
    folder.open(config.model_dump(mode="json"))
    with ray_runtime(setup, folder, Console(live=False)) as (runtime, job):
        job.models.restore(setup.initial)
        graph = setup.planner.graph(1)
        batches = -(-prompts // config.batch_size)
        watch = job.progress = Watch(job, batches)
        load, started = Load(), (time.monotonic(), time.thread_time(), time.process_time())
        runtime.run(graph)
        ended = (time.monotonic(), time.thread_time(), time.process_time())
        seconds, thread, process = (after - before for after, before in zip(ended, started, strict=True))
    each = 1000 / batches / len(NODES)
    early, late = watch.memory.get(10, 0.0), max(watch.memory.values())
    print(f"{rows:,} rows in {batches:,} batches through {len(NODES)} nodes: {seconds:.1f} s, "
          f"{each * seconds:.2f} ms a batch and node, {rows / seconds:,.0f} rows/s")  # fmt: skip
    print(
        f"driver, a batch and node: {each * thread:.2f} ms of its main thread, {each * process:.2f} ms of all its threads"
    )
    print(
        f"driver memory: {early:.0f} MB at 10 %, {watch.memory.get(100, 0):.0f} MB at 100 % (largest {late:.0f} MB)"
    )
    print(f"{describe()}; {load.sentence()}")
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
