"""The failure contract with real vLLM and DeepSpeed: python -m tests.faults.matrix [--only WORD]

The same run, undisturbed, in every way of running it (replicas, batch size, streaming), and with every kind of process
killed by kill -9 at every stage. Each line says whether all rows of all nodes and the final weights are the same bytes.
The model judges itself with a prompt and is trained twice, so every role works in every iteration.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.harness import (
    committed_twice,
    events,
    finish,
    go_on,
    kill_actor,
    kill_driver,
    result,
    start,
    wait_for,
)

CONFIG = """
recipe: self-rewarding
settings: {judge: pocket, samples: 6, votes: 1, temperature: 1.0, top_p: 1.0, epochs: 4}
prompts: {heldout: 64, per_iteration: 192, options: {size: 1024}}
iterations: 2
batch_size: 8
generator: {replicas: 2, max_tokens: 16, max_model_len: 512, memory: 0.5}
trainer: {lr: 3.0e-5, batch_size: 32, checkpoint_steps: 5}
evaluation: {samples: 2, bootstrap: 100}
"""
BARRIER = (sys.executable, "-m", "tests.faults.barrier")
Seen = Callable[[list[dict[str, object]]], bool]


def sent(node: str, iteration: int, batches: int) -> Seen:
    """That this many batches of a node were sent."""
    return lambda seen: sum(one["event"] == "batch" and one["iteration"] == iteration and one["node"] == node
                            for one in seen) >= batches  # fmt: skip


def training(iteration: int) -> Seen:
    return lambda seen: any(one["event"] == "train" and one["iteration"] == iteration for one in seen)


def ways(config: Path) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Every way of running it: a name, and what runs it in a folder."""

    def plain(*overrides: str, barrier: bool = False) -> Callable[[Path], None]:
        def go(run: Path) -> None:
            more = {"command": BARRIER} if barrier else {}
            finish(start(config, run, *overrides, **more), run)

        return go

    for replicas in (1, 2):
        for batch in (8, 64):
            for barrier in (False, True):
                name = f"{replicas} replica(s), batches of {batch}, {'barrier' if barrier else 'streaming'}"
                yield name, plain(f"generator.replicas={replicas}", f"batch_size={batch}", barrier=barrier)


def kills(config: Path) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Every role killed at a stage of it."""

    def driver(shows: Seen, delay: float = 0.0) -> Callable[[Path], None]:
        def go(run: Path) -> None:
            process = start(config, run)
            wait_for(run, shows, process)
            time.sleep(delay)
            kill_driver(process)
            finish(start(config, run), run)

        return go

    def actor(name: str, shows: Seen, delay: float = 0.0) -> Callable[[Path], None]:
        def go(run: Path) -> None:
            process = start(config, run)
            wait_for(run, shows, process)
            time.sleep(delay)
            assert kill_actor(name, process.pid), f"there is no {name}"
            finish(process, run)

        return go

    def elsewhere(before: str, then: str, shows: Seen) -> Callable[[Path], None]:
        """Kill the driver, and go on with other resources."""

        def go(run: Path) -> None:
            process = start(config, run, before)
            wait_for(run, shows, process)
            kill_driver(process)
            finish(go_on(run, then), run)

        return go

    def before_publishing(run: Path) -> None:
        """Kill the driver once the training is committed, and before its weights are served."""
        from selfloop.workflows.store.folder import RunFolder

        process = start(config, run)
        while "train" not in RunFolder(run).manifest(1)["nodes"]:
            assert process.poll() is None
            time.sleep(0.002)
        kill_driver(process)
        assert not any(one["event"] == "serve" and "#" in one["model"] for one in events(run)), "too late"
        finish(start(config, run), run)

    yield "driver killed while generating", driver(sent("sample", 2, 6))
    yield "driver killed while judging", driver(sent("judge", 2, 12))
    yield "driver killed while training", driver(training(1), 0.7)
    yield "driver killed between training and publishing", before_publishing
    yield "generator killed while generating", actor("Generator", sent("sample", 2, 6))
    yield "generator killed while judging", actor("Generator", sent("judge", 1, 12))
    yield "trainer rank killed while training", actor("RankActor", training(1), 0.7)
    yield "trainer rank killed while generating", actor("RankActor", sent("sample", 2, 6))
    for before, then in ((2, 1), (1, 2)):
        replicas = f"generator.replicas={before}", f"generator.replicas={then}"
        yield f"killed on {before} replica(s), resumed on {then}", elsewhere(*replicas, sent("sample", 2, 6))
    yield (
        "killed on batches of 8, resumed on 64",
        elsewhere("batch_size=8", "batch_size=64", sent("sample", 1, 6)),
    )
    yield "worker killed", actor("Worker", sent("pair", 1, 4))


def nodes_lost(config: Path) -> Callable[[Path], None]:
    def go(run: Path) -> None:
        command = [sys.executable, "-m", "tests.faults.three_nodes", str(config), str(run), "--after", "20"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0 and "killed node" in done.stdout, done.stdout + done.stderr

    return go


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="only lines with this in their name")
    only = parser.parse_args().only
    place = Path(tempfile.mkdtemp(prefix="selfloop-faults-"))
    config = place / "faults.yaml"
    config.write_text(CONFIG)
    finish(start(config, place / "undisturbed"), place / "undisturbed")
    expected = result(place / "undisturbed", 2)
    print(f"undisturbed: {len(expected) - 1} nodes' rows, weights {expected['policy']}", flush=True)
    lines = [*ways(config), *kills(config), ("one of three nodes killed", nodes_lost(config))]
    wrong = 0
    for number, (name, go) in enumerate(lines):
        if only not in name:
            continue
        run, began = place / f"run-{number}", time.monotonic()
        try:
            go(run)
            found = result(run, 2)
            other = [node for node in expected if found.get(node) != expected[node]]
            twice = committed_twice(run)
            verdict = "same bytes" if not other and not twice else f"NOT THE SAME: {other} {twice}"
        except AssertionError as error:
            verdict = f"FAILED: {str(error)[-600:]}"
        wrong += verdict != "same bytes"
        print(f"{name:<50} {verdict:<14} {time.monotonic() - began:5.0f} s", flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
