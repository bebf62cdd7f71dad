"""Real kills of real processes, with fake engines that are slow enough to be hit in the middle.

The same with vLLM and DeepSpeed: `make faults` (tests/faults/matrix.py).
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import (
    committed_twice,
    events,
    finish,
    go_on,
    kill_actor,
    kill_driver,
    kill_program,
    result,
    start,
    wait_for,
)

pytestmark = pytest.mark.real
CONFIG = """
recipe: self-consistency-reward
settings: {samples: 4, epochs: 1, threshold: 0.0}
prompts: {heldout: 8, per_iteration: 60, options: {size: 200}}
iterations: 2
batch_size: 4
generator: {engine: fake, max_tokens: 8, replicas: 2, options: {length: 2, latency_s: 0.1}}
evaluation: {samples: 1, bootstrap: 100}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "slow.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(start(config, run), run)
    return result(run, 2)


def sampling(iteration: int, batches: int) -> Any:
    """That this many batches of an iteration's samples were sent."""
    return lambda seen: sum(one["event"] == "batch" and one["iteration"] == iteration and one["node"] == "sample"
                            for one in seen) >= batches  # fmt: skip


def test_a_killed_driver_goes_on_from_the_last_committed_batch(
    config: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for iteration, batches in ((1, 8), (2, 12)):
        process = start(config, run)
        wait_for(run, sampling(iteration, batches), process)
        kill_driver(process)
    finish(start(config, run), run)
    assert result(run, 2) == undisturbed
    assert committed_twice(run) == []


@pytest.mark.parametrize(("before", "then"), [(2, 1), (1, 2)])
def test_a_run_killed_on_some_replicas_goes_on_with_others(
    before: int, then: int, config: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(config, run, f"generator.replicas={before}")
    wait_for(run, sampling(2, 6), process)
    kill_driver(process)
    said = finish(go_on(run, f"generator.replicas={then}"), run)
    assert f"generator.replicas was {before} and is now {then}" in said
    assert result(run, 2) == undisturbed
    assert committed_twice(run) == []


@pytest.mark.parametrize("what", ["raylet", "gcs_server"])
def test_a_run_whose_ray_ends_says_so_and_can_go_on(
    what: str, config: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(config, run)
    wait_for(run, sampling(2, 6), process)
    assert kill_program(what, process.pid)
    assert process.wait(timeout=60) == 1
    last = run.with_suffix(".log").read_text().splitlines()[-3:]
    assert last[0].startswith("Failed: Ray itself ended under this run: the ")
    assert last[2] == f"  go on with:  selfloop resume {run}"
    finish(go_on(run), run)
    assert result(run, 2) == undisturbed


def test_a_driver_killed_after_training_goes_on_with_the_model_it_made(
    config: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(config, run)
    wait_for(run, lambda seen: any(one["event"] == "serve" and "#" in one["model"] for one in seen), process)
    kill_driver(process)
    finish(start(config, run), run)
    assert result(run, 2) == undisturbed
    assert sum(one["event"] == "train" and one["iteration"] == 1 for one in events(run)) == 1


def test_a_killed_generator_is_replaced_and_its_batches_are_sent_again(
    config: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(config, run)
    wait_for(run, sampling(2, 6), process)
    assert kill_actor("Generator", process.pid)
    finish(process, run)
    assert [one["replica"] for one in events(run) if one["event"] == "died"]
    assert result(run, 2) == undisturbed


def test_a_generator_that_hangs_is_replaced(
    config: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(config, run, "generator.patience=6")
    wait_for(run, sampling(2, 6), process)
    assert kill_actor("Generator", process.pid, signal.SIGSTOP)
    finish(process, run)
    assert [one["replica"] for one in events(run) if one["event"] == "stuck"]
    assert result(run, 2) == undisturbed


def test_a_stopped_run_says_how_to_go_on(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(config, run)
    wait_for(run, sampling(1, 6), process)
    began = time.monotonic()
    process.terminate()
    assert process.wait(timeout=60) == 130 and time.monotonic() - began < 30
    assert f"selfloop resume {run}" in run.with_suffix(".log").read_text()
    assert not Path(f"/proc/{process.pid}").exists()


def test_a_killed_worker_is_replaced(config: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(config, run)
    wait_for(run, sampling(1, 6), process)
    assert kill_actor("Worker", process.pid)
    finish(process, run)
    assert result(run, 2) == undisturbed


def test_a_poison_row_fails_alone(config: Path, tmp_path: Path) -> None:
    """A prompt that ends every process it is sent to becomes failed rows; all others are there."""
    from selfloop.workflows.config import load_config
    from selfloop.workflows.models.codec import Codec
    from selfloop.workflows.run.setup import Setup

    setup = Setup(load_config(str(config), []))
    poison = Codec(setup.folder).encode(setup.sources["prompts"]["prompt"][0].as_py())
    run = tmp_path / "run"
    fail = f"generator.options.fail_on={{ids: {poison}, how: exit}}"
    finish(start(config, run, fail, "iterations=1", "prompts.per_iteration=200", "max_failed_rows=0.05"), run)
    from tests.unit.flows import rows_of

    rows = rows_of(run, 1, "sample")
    failed = [row for row in rows if row["status"] == "failed"]
    assert len(rows) == 800 and len(failed) == 4 and "ended the generator" in failed[0]["error"]
    assert len({row["prompt_id"] for row in failed}) == 1
