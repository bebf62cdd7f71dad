"""The "must hold" lines of the expert-iteration card that the recipe answers for; its rule's are in test_rules.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfloop.workflows.errors import NoSignalError
from selfloop.workflows.objectives.sft import SFT
from selfloop.workflows.run.setup import Setup
from tests.recipes.runs import (
    by_seed,
    fake_trainer,
    graph_of,
    pocket_config,
    real_trainer,
    run_recipe,
    trained_rows,
)
from tests.unit.flows import rows_of

SETTINGS = {"samples": 8, "cap": 3}


def never_right(answer: str, seed: int, version: int) -> str:
    return f"{answer}{seed % 10}"


def later_ones_differ(answer: str, seed: int, version: int) -> str:
    """The same answers whatever the weights, but for wrong ones."""
    return by_seed(answer, seed, version) if seed % 2 else f"{answer}{version}"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A run of two iterations, and what its trainer was given."""
    path = tmp_path_factory.mktemp("expert-iteration") / "run"
    config = pocket_config("expert-iteration", SETTINGS)
    trainer = fake_trainer(config)
    run_recipe(config, path, trainer=trainer)
    return path, trainer.works


def test_training_starts_from_the_initial_policy_in_every_iteration(two: tuple[Path, list[Any]]) -> None:
    initial = str(Setup(pocket_config("expert-iteration")).folder)
    assert [(work.start, work.start_state, work.reference) for work in two[1]] == [(initial, None, None)] * 2
    assert [work.version for work in two[1]] == [1, 2]


@pytest.mark.parametrize("index", [1, 2, 3])
def test_the_last_policy_samples_and_the_base_learns(index: int) -> None:
    graph = graph_of(pocket_config("expert-iteration", SETTINGS, iterations=3), index)
    assert [model.name for model in graph.nodes["sample"].models] == [f"policy@{index - 1}"]
    training = graph.nodes["train"].training
    assert training is not None and training.start.name == "policy@0" and isinstance(training.objective, SFT)
    going_on = graph_of(pocket_config("expert-iteration", {"start": "policy"}, iterations=3), index)
    assert going_on.nodes["train"].models[0].name == f"policy@{index - 1}"


def test_only_right_answers_are_learned_from_at_most_the_cap_a_problem(two: tuple[Path, list[Any]]) -> None:
    for index, work in enumerate(two[1], 1):
        right: dict[str, int] = {}
        for row in rows_of(two[0], index, "judge"):
            right[row["prompt_id"]] = right.get(row["prompt_id"], 0) + (row["score"] == 1)
        rows = trained_rows(work)
        assert all(row["response"] == row["answer"] and row["version"] == index - 1 for row in rows)
        found = {name: sum(row["prompt_id"] == name for row in rows) for name in right}
        assert found == {name: min(3, count) for name, count in right.items()}


def test_no_right_answer_at_all_stops_the_run(tmp_path: Path) -> None:
    config = pocket_config("expert-iteration", SETTINGS)
    with pytest.raises(
        NoSignalError, match="nothing to train on in iterations 1 and 2: every answer is wrong"
    ):
        run_recipe(config, tmp_path / "fake", never_right)


@pytest.mark.real
def test_with_the_same_data_the_result_does_not_depend_on_the_last_policy(tmp_path: Path) -> None:
    """The second iteration starts from the base: given the first one's rows it makes the first one's weights."""
    config = pocket_config("expert-iteration", SETTINGS)
    trainer = real_trainer(config, lr=1e-3, batch_size=16)
    run_recipe(config, tmp_path / "run", later_ones_differ, trainer)
    first, second = trainer.works
    assert trainer.results[0].checksum != trainer.results[1].checksum
    from dataclasses import replace

    out = {name: str(tmp_path / name) for name in ("out", "state_out", "step_dir")}
    again = trainer.trainer.train(replace(second, table=first.table, seed=first.seed, **out))
    assert again.checksum == trainer.results[0].checksum
