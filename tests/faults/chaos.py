"""Thirty random kills during a run of four iterations, with real vLLM and DeepSpeed: python -m tests.faults.chaos [--seed 0]

Whatever shows progress is hit after a random moment: the driver (then resumed), a generator, the trainer's rank, or a
CPU worker. At the end: all rows of all nodes and the final weights against an undisturbed run, byte for byte.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults.harness import committed_twice, events, finish, kill_actor, kill_driver, result, start
from tests.faults.matrix import CONFIG

ITERATIONS = 4
ROLES = ("driver", "Generator", "Generator", "RankActor", "Worker")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=30)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    place = Path(tempfile.mkdtemp(prefix="selfloop-chaos-"))
    config = place / "chaos.yaml"
    config.write_text(CONFIG.replace("iterations: 2", f"iterations: {ITERATIONS}").replace(
        "per_iteration: 192", "per_iteration: 768"))  # fmt: skip
    began = time.monotonic()
    finish(start(config, place / "undisturbed"), place / "undisturbed", 900)
    print(f"undisturbed: {time.monotonic() - began:.0f} s", flush=True)
    expected = result(place / "undisturbed", ITERATIONS)

    run, killed = place / "run", Counter[str]()
    began = time.monotonic()
    process = start(config, run)
    seen = 0
    while killed.total() < given.kills and process.poll() is None:
        if len(events(run)) <= seen:
            time.sleep(0.05)
            continue
        time.sleep(rng.uniform(0.0, 4.0))
        role = rng.choice(ROLES)
        seen = len(events(run))
        if process.poll() is not None:
            break
        if role == "driver":
            kill_driver(process)
            process = start(config, run)
        elif not kill_actor(role, process.pid):
            continue
        killed[role] += 1
        print(f"{time.monotonic() - began:5.0f} s: {role} killed", flush=True)
    finish(process, run, 1800)
    found = result(run, ITERATIONS)
    other = [node for node in expected if found.get(node) != expected[node]]
    print(f"{killed.total()} kills {dict(killed)}, done in {time.monotonic() - began:.0f} s")
    print(
        f"rows of {len(expected) - 1} nodes and the weights: {'the same bytes' if not other else f'NOT THE SAME: {other}'}"
    )
    print(f"batches run again though committed: {len(committed_twice(run))}")
    sys.exit(1 if other or committed_twice(run) or killed.total() < given.kills else 0)


if __name__ == "__main__":
    main()
