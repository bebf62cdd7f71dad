"""Whether stages overlap: engines and judges of known service time, against the time a perfect pipeline would take.

    python -m tests.benchmarks.bench_overlap [--batches 40] [--sample 0.2] [--judge 0.2] [--repeats 5]

separate: the engine samples while a CPU worker judges (a rule that sleeps), each an actor of its own; ideal is
sample + judge + (batches - 1) * max(sample, judge). shared: the policy judges its own answers on its own engine, which
serves one call after another; ideal is batches * 2 * sample. The clock runs over the whole iteration: sending,
committing, a fake training and the manifest included.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from selfloop.workflows.config import Config
from selfloop.workflows.executor.run import ray_runtime
from selfloop.workflows.report.console import Console
from selfloop.workflows.store.folder import RunFolder
from tests.benchmarks.machine import Load, describe, equal_priority, spread
from tests.benchmarks.stages import Stages
from tests.unit.flows import setup_of

PROMPTS = 4  # a batch


def measure(batches: int, sample: float, judge: float | None, repeats: int) -> list[float]:
    """Seconds of each iteration after the first, with the judge on a worker or, without its time, on the same engine."""
    place = Path(tempfile.mkdtemp(prefix="selfloop-bench-"))
    engine = {"engine": "fake", "max_tokens": 16, "options": {"latency_s": sample}}
    config = Config(recipe="self-rewarding", iterations=repeats + 2, batch_size=PROMPTS, generator=engine,
                    prompts={"per_iteration": PROMPTS * batches, "heldout": 1, "options": {"size": PROMPTS * batches * (repeats + 3)}},
                    evaluation={"every": 1000000})  # fmt: skip
    setup, folder = setup_of(config, Stages(judge=judge, prompts=PROMPTS)), RunFolder(place / "run")
    folder.open(config.model_dump(mode="json"))
    found: list[float] = []
    try:
        with ray_runtime(setup, folder, Console(live=False)) as (runtime, job):
            job.models.restore(setup.initial)
            for index in range(1, repeats + 2):
                graph = setup.planner.graph(index)
                began = time.perf_counter()
                outcome = runtime.run(graph)
                job.models.settle(graph)
                found.append(time.perf_counter() - began)
                assert outcome.counts["judge"].rows == 2 * PROMPTS * batches, "the source ran out of prompts"
    finally:
        folder.close()
        shutil.rmtree(place)
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--sample", type=float, default=0.2)
    parser.add_argument("--judge", type=float, default=0.2)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    batches, sample = given.batches, given.sample
    load = Load()
    equal_priority()
    print(describe())
    for name, judge in (("separate actors", given.judge), ("one engine", None)):
        slow, after = max(sample, judge or 0.0), judge or sample
        ideal = sample + after + (batches - 1) * slow if judge else batches * 2 * sample
        seconds = measure(batches, sample, judge, given.repeats)
        print(f"{name}: {batches} batches, {1000 * sample:.0f} ms to sample, {1000 * after:.0f} ms to judge: "
              f"{spread(seconds)} s; one after the other {batches * (sample + after):.2f} s; ideal {ideal:.2f} s: "
              f"{100 * ideal / statistics.median(seconds):.1f} % of ideal")  # fmt: skip
    print(load.sentence())


if __name__ == "__main__":
    main()
