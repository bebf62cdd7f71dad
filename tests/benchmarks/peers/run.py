"""Selfloop beside TRL 1.16 on the same work: completions a second, the first optimizer step, five iterations, memory.

    python -m tests.benchmarks.peers.run [--rounds 3] [--steps 7] [--work grpo-small dpo-small grpo-pocket dpo-pocket]

Every side is started anew each round, one after the other: on one core (one engine and one rank that take turns; TRL on
one thread) and on two (two engines, two ranks; TRL on two threads). TRL's own environment is made at
`--venv` if it is not there, from the extra `dev-peers`. Steady state: medians of the steps from the third on. The first
step and five iterations count from the start of the process. Memory: the largest sum over a side's processes, shared
pages counted once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.machine import Load, describe, spread, tree
from tests.benchmarks.peers.models import pocket_prompts, questions, small_qwen2

ROOT = Path(__file__).parents[3]
POCKET = ROOT / "workflows" / "pocket" / "base"
WORKS = {
    # method, model, prompts a step, samples, longest completion, reward
    "grpo-small": ("grpo", "small", 32, 8, 64, "sum"),
    "dpo-small": ("dpo", "small", 128, 2, 64, "sum"),
    "grpo-pocket": ("grpo", "pocket", 32, 8, 16, "exact"),
    "dpo-pocket": ("dpo", "pocket", 128, 2, 16, "sum"),
}
ALONE = ["generator.replicas=1", "trainer.ranks=1"]  # engine and trainer take turns on one core
SCRIPTS = {"grpo": "trl_grpo.py", "dpo": "trl_online_dpo.py"}


@dataclass
class Side:
    """One run of one side. times: seconds from its start to the end of each step."""

    times: list[float] = field(default_factory=list)
    peak: float = 0.0

    def figures(self, completions: int) -> dict[str, float]:
        gaps = [after - before for before, after in zip(self.times[1:], self.times[2:], strict=False)]
        return {
            "completions/s": completions / statistics.median(gaps),
            "first step s": self.times[0],
            "five iterations s": self.times[4] if len(self.times) > 4 else float("nan"),
            "peak MiB": self.peak,
        }


def make_environment(venv: Path) -> Path:
    """The peer's own environment, with the same torch and transformers as ours."""
    python = venv / "bin" / "python"
    if python.exists():
        return python
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    given = dict(os.environ)
    found = subprocess.run([sys.executable, "-m", "pip", "config", "get", "global.find-links"],
                           capture_output=True, text=True, check=False).stdout.strip()  # fmt: skip
    found = found or subprocess.run(["pip", "config", "get", "global.find-links"], capture_output=True, text=True,
                                    check=False).stdout.strip()  # fmt: skip
    if found:
        given.setdefault("UV_FIND_LINKS", ",".join(found.split()))
    subprocess.run([uv, "venv", "--python", sys.executable, str(venv)], check=True, env=given)
    torch = ["torch==2.13.0", "transformers>=5.19,<5.20", "--constraints", str(ROOT / "constraints" / "cpu.txt"),
             "--overrides", str(ROOT / "constraints" / "overrides-cpu.txt")]  # fmt: skip
    subprocess.run(
        [uv, "pip", "install", "--python", str(python), *asked["dev-peers"], *torch], check=True, env=given
    )
    return python


def memory(pid: int) -> float:
    """MiB of a process tree now, shared pages counted once."""
    total = 0
    for one in tree(pid):
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return total / 1024


def timed(command: list[str], threads: int, log: Path) -> Side:
    """Run a side to its end, reading its clock and watching its memory."""
    side, began = Side(), time.time()
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    with open(log, "a", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=env, cwd=ROOT
        )
    done = threading.Event()

    def watch() -> None:
        while not done.wait(2.0):
            side.peak = max(side.peak, memory(process.pid))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith('{"step"'):
            side.times.append(json.loads(line)["time"] - began)
    status = process.wait()
    done.set()
    watcher.join()
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {status}; see {log}")
    return side


def commands(
    name: str, place: Path, python: Path, steps: int, ours: list[str]
) -> dict[str, tuple[list[str], int]]:
    """What is run for a work: a name, a command, and OpenMP threads."""
    method, model, prompts, samples, tokens, reward = WORKS[name]
    folder = POCKET if model == "pocket" else place / "small"
    count = prompts * (steps + 1) + 1
    rows = place / f"{name}.jsonl"
    if not rows.exists():
        (pocket_prompts if model == "pocket" else questions)(rows, count)
    shared = ["--model", str(folder), "--prompts", str(rows), "--reward", reward, "--prompts-per-step", str(prompts),
              "--samples", str(samples), "--tokens", str(tokens), "--steps", str(steps)]  # fmt: skip
    theirs = [str(python), str(Path(__file__).with_name(SCRIPTS[method])), *shared, "--micro"]
    mine = [sys.executable, "-m", "tests.benchmarks.peers.ours", "--method", method, *shared, "--folder"]
    return {
        "selfloop, 1 core": ([*mine, tempfile.mkdtemp(dir=place), *ALONE, *ours], 1),
        "TRL, 1 thread": ([*theirs, str(prompts * samples)], 1),
        "selfloop, 2 cores": ([*mine, tempfile.mkdtemp(dir=place), *ours], 1),
        "TRL, 2 threads": ([*theirs, str(prompts * samples)], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--work", nargs="+", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--venv", type=Path, default=Path.home() / ".cache" / "selfloop-peers")
    parser.add_argument("--sides", nargs="+", help="only these")
    parser.add_argument("overrides", nargs="*", help="key=value for Selfloop's config")
    given = parser.parse_args()
    python = make_environment(given.venv)
    place = Path(tempfile.mkdtemp(prefix="selfloop-peers-"))
    small_qwen2(place / "small")
    print(describe())
    for name in given.work:
        completions = WORKS[name][2] * WORKS[name][3]
        found: dict[str, list[dict[str, float]]] = {}
        load = Load()
        for _ in range(given.rounds):
            for side, (command, threads) in commands(
                name, place, python, given.steps, given.overrides
            ).items():
                if given.sides is None or side in given.sides:
                    result = timed(command, threads, place / "errors.log")
                    found.setdefault(side, []).append(result.figures(completions))
        print(
            f"\n{name}: {completions} completions a step of at most {WORKS[name][4]} tokens; {load.sentence()}"
        )
        for side, rounds in found.items():
            figures: dict[str, Any] = {key: spread([one[key] for one in rounds]) for key in rounds[0]}
            print(
                f"  {side:<16}" + "   ".join(f"{key} {value}" for key, value in figures.items()), flush=True
            )
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
