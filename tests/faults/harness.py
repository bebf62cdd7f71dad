"""Runs that are killed: start a run as a user does, kill something when an event shows, resume, compare."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from selfloop.workflows.store.folder import RunFolder
from selfloop.workflows.store.parts import read_table, row_hash

SELFLOOP = str(Path(sys.executable).with_name("selfloop"))
Event = dict[str, Any]


def start(
    config: Path, run: Path, *overrides: str, command: Sequence[str] = (SELFLOOP,)
) -> subprocess.Popen[str]:
    """Start a run in a process group of its own. Its output goes to a file beside the run."""
    return launch([*command, "run", str(config), *overrides, "--run-dir", str(run)], run)


def go_on(run: Path, *overrides: str) -> subprocess.Popen[str]:
    """`selfloop resume` with other settings, as `start` starts it."""
    return launch([SELFLOOP, "resume", str(run), *overrides], run)


def launch(command: Sequence[str], run: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(run.with_suffix(".log"), "a", encoding="utf-8") as log:
        return subprocess.Popen(
            command, env=env, text=True, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def finish(process: subprocess.Popen[str], run: Path, seconds: float = 500) -> str:
    """Wait for a run; its output. Anything but success is a failure of the test."""
    process.wait(timeout=seconds)
    output = run.with_suffix(".log").read_text(encoding="utf-8")
    assert process.returncode == 0, output
    return output


def events(run: Path) -> list[Event]:
    """What is in events.jsonl so far; a line half written is not there yet."""
    path = run / "events.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def wait_for(
    run: Path, shows: Callable[[list[Event]], bool], process: subprocess.Popen[str], seconds: float = 300
) -> None:
    """Return once the events show something."""
    deadline = time.monotonic() + seconds
    while not shows(events(run)):
        assert process.poll() is None, (
            f"the run ended before: {run.with_suffix('.log').read_text(encoding='utf-8')}"
        )
        assert time.monotonic() < deadline, f"not seen in {seconds} s: {events(run)[-3:]}"
        time.sleep(0.02)


def kill_driver(process: subprocess.Popen[str]) -> None:
    """kill -9 of the driver alone; Ray's processes end with it."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def kill_actor(name: str, below: int, how: int = signal.SIGKILL) -> bool:
    """kill -9 (or another signal) one process of this Ray actor class that descends from the driver `below`."""
    for pid in descendants(below):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if title.startswith(f"ray::{name}"):
            os.kill(pid, how)
            return True
    return False


def kill_program(name: str, below: int) -> bool:
    """kill -9 the process of this program (raylet, gcs_server) that descends from the driver `below`."""
    for pid in descendants(below):
        with suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode().endswith(f"/{name}"):
                os.kill(pid, signal.SIGKILL)
                return True
    return False


def descendants(pid: int) -> list[int]:
    """All processes below this one."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found, stack = [], [pid]
    while stack:
        below = parents.get(stack.pop(), [])
        found += below
        stack += below
    return found


def result(run: Path, iterations: int) -> dict[str, str]:
    """What a run gave: a hash of the rows of every node, and the checksum of the last policy."""
    folder = RunFolder(run)
    hashes = {}
    for index in range(iterations + 1):
        for node in folder.manifest(index)["nodes"]:
            parts = folder.parts(index, node)
            if parts:
                hashes[f"{index}/{node}"] = row_hash([read_table(part.path) for part in parts])
    return {**hashes, "policy": folder.manifest(iterations)["roles"]["policy"]["checksum"]}


def committed_twice(run: Path) -> list[tuple[Any, ...]]:
    """Batches that were started again although they were committed before."""
    done: dict[tuple[int, str], int] = {}
    found = []
    for event in events(run):
        if event["event"] == "commit":
            done[event["iteration"], event["node"]] = event["batches"]
        if event["event"] == "batch" and event["batch"] < done.get((event["iteration"], event["node"]), 0):
            found.append((event["iteration"], event["node"], event["batch"]))
    return found
