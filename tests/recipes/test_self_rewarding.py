"""The "must hold" lines of the self-rewarding card that the recipe answers for; its rule's are in test_rules.py."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from selfloop.workflows.flow.verbs.judge import JudgeBy
from selfloop.workflows.judges.prompts.rubric import AdditiveRubric, ScoreOnly
from selfloop.workflows.store.metrics import read_metrics
from tests.recipes.runs import fake_trainer, graph_of, pocket_config, real_trainer, run_recipe, trained_rows
from tests.unit.flows import rows_of

SETTINGS = {"samples": 4, "votes": 3}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A run of two iterations, and what its trainer was given."""
    path = tmp_path_factory.mktemp("self-rewarding") / "run"
    config = pocket_config("self-rewarding", SETTINGS)
    trainer = fake_trainer(config)
    run_recipe(config, path, trainer=trainer)
    return path, trainer.works


@pytest.mark.parametrize("index", [1, 2, 3])
def test_samples_judgements_start_and_reference_come_from_the_same_weights(index: int) -> None:
    graph = graph_of(pocket_config("self-rewarding", SETTINGS, iterations=3), index)
    before = f"policy@{index - 1}"
    used = {model.name for node in graph if not node.evaluation for model in node.models}
    assert used == {before}
    training = graph.nodes["train"].training
    assert training is not None and training.reference == training.start and training.optimizer == "fresh"


def test_every_answer_gets_its_votes_in_whole_points(two: tuple[Path, list[Any]]) -> None:
    rows = rows_of(two[0], 1, "judge")
    assert len(rows) == 24 * 4
    metrics = read_metrics(two[0])
    assert metrics[1]["judge_score_mean"] == pytest.approx(sum(row["score"] for row in rows) / len(rows))
    for row in rows:
        assert len(row["score_judgements"]) == 3 and 0 <= row["score"] <= 5
        assert row["score"] * 3 == pytest.approx(round(row["score"] * 3))
        assert row["score"] == pytest.approx(sum(one["score"] for one in row["score_judgements"]) / 3)


def test_pairs_are_the_best_against_the_worst_of_this_iteration_only(two: tuple[Path, list[Any]]) -> None:
    for index, work in enumerate(two[1]):
        rows = trained_rows(work)
        assert rows and len({row["prompt_id"] for row in rows}) == len(rows)
        assert {row[f"{side}_version"] for row in rows for side in ("chosen", "rejected")} == {index}
        scores: dict[str, list[float]] = {}
        for row in rows_of(two[0], index + 1, "judge"):
            scores.setdefault(row["prompt_id"], []).append(row["score"])
        for row in rows:
            found = scores[row["prompt_id"]]
            assert (row["chosen_score"], row["rejected_score"]) == (max(found), min(found))


def test_the_rationale_comes_before_the_score_and_a_judge_without_one_is_another() -> None:
    row = {"prompt": [{"role": "user", "content": "2 + 2?"}], "response": "4"}
    words, bare = AdditiveRubric().messages(row)[0]["content"], ScoreOnly().messages(row)[0]["content"]
    assert words.index("justify") < words.rindex("Score:") and "justify" not in bare
    assert JudgeBy(AdditiveRubric()).settings != JudgeBy(ScoreOnly()).settings


@pytest.mark.real
def test_the_first_dpo_step_is_ln_2(tmp_path: Path) -> None:
    config = pocket_config("self-rewarding", {**SETTINGS, "judge": "pocket", "votes": 1}, iterations=1)
    trainer = real_trainer(config, lr=1e-3, batch_size=64)
    run_recipe(config, tmp_path / "run", trainer=trainer)
    assert trainer.results[0].curve[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
