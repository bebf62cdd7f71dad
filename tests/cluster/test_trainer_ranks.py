from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfloop.actors.train.trainer import Trainer
from selfloop.workflows.objectives.dpo import DPO
from tests.cluster.trainer_ranks import lora_spec, lora_work, other_works
from tests.unit.train.trainer_rows import Shifted, pair_rows, response_rows, spec_of, tiny_model, work_of

pytestmark = pytest.mark.real


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks found, started once for all tests of this file."""
    folder = tmp_path_factory.mktemp("two")
    model, other = tiny_model(folder / "model"), tiny_model(folder / "other", seed=1)
    port = free_port()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.trainer_ranks", str(folder), model, other, str(rank), str(port)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    logs = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert ranks[0].returncode == 0, logs[0]
    assert ranks[1].returncode == -signal.SIGKILL, logs[1]
    found = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]
    death = (folder / "death.txt").read_text()
    return {"ranks": found, "death": death, "folder": folder, "model": model, "other": other}


@pytest.fixture(scope="module")
def alone(two: dict[str, Any]) -> list[list[float]]:
    """The same two train nodes on one rank."""
    trainer = Trainer(spec_of(two["model"], lr=1e-2))
    place = two["folder"] / "alone"
    first = work_of(place / "1", two["model"], DPO(nll_coefficient=0.1), pair_rows(15), reference=two["other"],
                    epochs=2, optimizer="continued")  # fmt: skip
    one = trainer.train(first)
    second = work_of(place / "2", first.out, Shifted(), response_rows(9), optimizer="continued", version=2,
                     start_state=first.state_out)  # fmt: skip
    results = [one, trainer.train(second)]
    return [[line["loss"] for line in result.curve] for result in results]


@pytest.mark.parametrize("zero", range(4))
def test_two_ranks_and_every_stage_follow_one_rank(two: dict[str, Any], alone: list[list[float]], zero: int):
    """An odd number of rows: one rank works on dummies at times. The second node continues the optimizer, and its
    objective needs sums over ranks."""
    found = two["ranks"][0][f"zero{zero}"]
    for curve, wanted in zip(found["curves"], alone, strict=True):
        np.testing.assert_allclose(curve, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("zero", range(4))
def test_one_rank_goes_on_from_the_state_of_two(two: dict[str, Any], alone: list[list[float]], zero: int):
    """Weights and moments lie in the state folder whole, whatever cut them up in memory."""
    first = work_of(two["folder"] / f"zero{zero}/1", two["model"], Shifted(), response_rows(9))
    then = work_of(two["folder"] / f"one-after-{zero}", first.out, Shifted(), response_rows(9), optimizer="continued",
                   version=2, start_state=first.state_out)  # fmt: skip
    found = Trainer(spec_of(two["model"], lr=1e-2)).train(then)
    curve = [line["loss"] for line in found.curve]
    np.testing.assert_allclose(curve, alone[1], rtol=1e-4, atol=1e-4)


def test_two_ranks_go_on_under_another_stage(two: dict[str, Any], alone: list[list[float]]):
    np.testing.assert_allclose(two["ranks"][0]["zero1 after zero3"], alone[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("zero", range(4))
def test_weights_are_whole_on_the_first_rank(two: dict[str, Any], zero: int):
    first, second = (rank[f"zero{zero}"] for rank in two["ranks"])
    assert first["receipts"][0]
    assert first["tensors"] == first["receipts"][1] > 0
    assert second["tensors"] == 0
    assert first["state"] == second["state"]
    assert first["scores"] == second["scores"]
    for scores, wanted in zip(first["scores"], two["ranks"][0]["zero0"]["scores"], strict=True):
        np.testing.assert_allclose(scores, wanted, rtol=1e-3, atol=1e-3)


def test_adapters_on_two_sharded_ranks_follow_one_rank(two: dict[str, Any]):
    first, second = (rank["lora"] for rank in two["ranks"])
    alone = Trainer(lora_spec(two["model"])).train(lora_work(two["folder"] / "lora-alone", two["model"]))
    np.testing.assert_allclose(first["curve"], [line["loss"] for line in alone.curve], atol=1e-4)
    assert second["curve"] == first["curve"]
    assert first["received"]
    assert first["curve"][-1] < first["curve"][0]


@pytest.mark.parametrize("name", ["reward", "student"])
def test_scalar_heads_and_teachers_on_two_sharded_ranks_follow_one_rank(two: dict[str, Any], name: str):
    first, second = (rank[name] for rank in two["ranks"])
    works = other_works(two["folder"] / "one", two["model"], two["other"])
    alone = Trainer(spec_of(two["model"], lr=1e-2)).train(works[name])
    np.testing.assert_allclose(first["curve"], [line["loss"] for line in alone.curve], rtol=1e-3, atol=1e-3)
    assert second["curve"] == first["curve"]
    assert first["received"]


def test_bad_rows_stop_every_rank(two: dict[str, Any]):
    for rank in two["ranks"]:
        assert (rank["empty"], rank["missing"]) == ("TrainerError", "ObjectiveError")


def test_the_death_of_a_rank_is_a_trainer_error_on_the_others(two: dict[str, Any]):
    assert two["death"].startswith("TrainerError: training policy@1 broke on rank 0 of 2")
    assert not (Path(two["folder"]) / "dead/policy").exists()
