"""The "must hold" lines of the self-consistency card that the recipe answers for; votes and rule have their own tests."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from selfloop.workflows.judges.answers import extract_answer
from selfloop.workflows.objectives.dpo import ScPO

from .runs import (
    fake_trainer,
    graph_of,
    pocket_config,
    real_trainer,
    rows_of,
    run_recipe,
    trained_rows,
)

SETTINGS = {"samples": 8, "threshold": 0.25}


def common_mistake(answer: str, seed: int, version: int) -> str:
    """Wrong in the same way for most seeds: the majority misleads."""
    return f"{answer}1" if seed % 3 else answer


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A run of two iterations, and what its trainer was given."""
    path = tmp_path_factory.mktemp("self-consistency") / "run"
    config = pocket_config("self-consistency-reward", SETTINGS)
    trainer = fake_trainer(config)
    run_recipe(config, path, trainer=trainer)
    return path, trainer.works


def test_weights_are_vote_margins_and_voters_contain_the_trained(two: tuple[Path, list[Any]]) -> None:
    for index, work in enumerate(two[1], 1):
        said: dict[str, list[str | None]] = {}
        for row in rows_of(two[0], index, "sample"):
            said.setdefault(row["prompt_id"], []).append(extract_answer(row["response"], "text"))
        rows = trained_rows(work)
        assert rows
        for row in rows:
            votes = said[row["prompt_id"]]
            most, least = (
                votes.count(extract_answer(row[side][0]["content"], "text"))
                for side in ("chosen", "rejected")
            )
            assert most == max(map(votes.count, votes)) and least == min(map(votes.count, votes))
            assert most >= 0.25 * 8 and row["weight"] == pytest.approx((most - least) / 8)


def test_a_question_below_the_threshold_is_dropped(tmp_path: Path) -> None:
    counts = []
    for threshold in (0.25, 0.75):
        config = pocket_config("self-consistency-reward", {"threshold": threshold}, iterations=1)
        trainer = fake_trainer(config)
        run_recipe(config, tmp_path / str(threshold), trainer=trainer)
        counts.append(len(trained_rows(trainer.works[0])))
    assert counts[0] > counts[1] > 0


def test_the_majority_is_preferred_even_where_it_is_wrong(tmp_path: Path) -> None:
    """Nothing that trains sees a gold answer; the evaluation does."""
    config = pocket_config("self-consistency-reward", SETTINGS, iterations=1)
    trainer = fake_trainer(config)
    metrics = run_recipe(config, tmp_path / "run", common_mistake, trainer)
    assert "answer" not in trainer.works[0].table.column_names
    assert 0 < metrics[1]["heldout_accuracy"] < 1
    pairs = trained_rows(trainer.works[0])
    misled = [row for row in pairs if row["chosen"][0]["content"] > row["rejected"][0]["content"]]
    assert len(misled) > len(pairs) / 2


@pytest.mark.parametrize("index", [1, 2])
def test_samples_start_and_reference_are_the_last_policy(index: int) -> None:
    graph = graph_of(pocket_config("self-consistency-reward"), index)
    assert {model.name for node in graph if not node.evaluation for model in node.models} == {
        f"policy@{index - 1}"
    }
    training = graph.nodes["train"].training
    assert training is not None and isinstance(training.objective, ScPO)
    assert (training.objective.beta, training.objective.nll_coefficient) == (0.5, 1.0)


@pytest.mark.real
def test_the_first_step_is_ln_2_times_the_weights(tmp_path: Path) -> None:
    config = pocket_config("self-consistency-reward", {**SETTINGS, "nll": 0.0}, iterations=1)
    trainer = real_trainer(config, lr=1e-3, batch_size=64)
    run_recipe(config, tmp_path / "run", trainer=trainer)
    weights = [row["weight"] for row in trained_rows(trainer.works[0])]
    expected = math.log(2) * sum(weights) / len(weights)
    assert trainer.results[0].curve[0]["loss"] == pytest.approx(expected, rel=1e-5)
