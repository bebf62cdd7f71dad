"""The loss of a cluster node with rows on it that are committed nowhere, with fake engines that fill it quickly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.harness import committed_twice, events, finish, result, start

pytestmark = pytest.mark.real
CONFIG = """
recipe: expert-iteration
settings: {samples: 192, epochs: 1}
judge: tests.models:slow_even_length
prompts: {heldout: 8, per_iteration: 40, options: {size: 200}}
iterations: 1
batch_size: 4
generator: {engine: fake, max_tokens: 8, replicas: 2, options: {length: 2, latency_s: 0.1}}
evaluation: {samples: 1, bootstrap: 100}
"""


def test_a_run_goes_on_when_one_of_three_nodes_is_killed(tmp_path: Path) -> None:
    config, calm, run = tmp_path / "slow.yaml", tmp_path / "calm", tmp_path / "run"
    config.write_text(CONFIG)
    finish(start(config, calm), calm)
    command = [sys.executable, "-m", "tests.faults.three_nodes", str(config), str(run), "--after", "12"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, text=True, capture_output=True, timeout=400, check=False)
    assert done.returncode == 0 and "killed node" in done.stdout, done.stdout + done.stderr
    assert {one["event"] for one in events(run)} & {"died", "lost"}
    assert result(run, 1) == result(calm, 1)
    assert committed_twice(run) == []
