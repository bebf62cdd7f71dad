"""The "must hold" lines of the self-consistency card that the recipe answers for; votes and rule have their own tests."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfloop import configs
from selfloop.workflows.flow.verbs.rules import Pair
from selfloop.workflows.judges.answers import extract_answer
from selfloop.workflows.objectives.dpo import ScPO
from selfloop.workflows.rules.pairs import MostAgainstLeast
from selfloop.workflows.run.setup import Setup
from selfloop.workflows.run.voting import vote_notes
from tests.recipes import runs
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


def test_the_threshold_of_each_iteration() -> None:
    """A list is one value an iteration, the last one for all later ones; a number alone is the value of all."""

    def thresholds(settings: dict[str, Any]) -> list[float]:
        planner = Setup(pocket_config("self-consistency-reward", settings, iterations=3)).planner
        ops = [planner.graph(index).nodes["pair"].op for index in (1, 2, 3)]
        return [
            op.rule.threshold for op in ops if isinstance(op, Pair) and isinstance(op.rule, MostAgainstLeast)
        ]

    assert thresholds({"threshold": [0.5, 0.6]}) == [0.5, 0.6, 0.6]
    assert thresholds({"threshold": 0.25}) == [0.25] * 3
    assert thresholds({}) == [0.5, 0.7, 0.7]


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


def same_number(answer: str, seed: int, version: int) -> str:
    """The answer, written in three ways."""
    return f"{'0' * (seed % 3)}{answer}"


def test_equivalent_answers_are_never_a_pair(tmp_path: Path) -> None:
    def pairs(extract: str) -> list[dict[str, Any]]:
        settings = {"threshold": 0.0, "extract": extract}
        config = pocket_config("self-consistency-reward", settings, iterations=1)
        trainer = fake_trainer(config)
        run_recipe(config, tmp_path / extract, same_number, trainer)
        return [row for work in trainer.works for row in trained_rows(work)]

    assert pairs("text") and not pairs("number")


def test_unreadable_answers_are_rejected_only_where_asked(tmp_path: Path) -> None:
    rejected = {}
    for unparsed in ("exclude", "lose"):
        settings = {"threshold": 0.25, "extract": "number", "unparsed": unparsed}
        config = pocket_config("self-consistency-reward", settings, iterations=1)
        trainer = fake_trainer(config)
        run_recipe(config, tmp_path / unparsed, sometimes_silent, trainer)
        rejected[unparsed] = {row["rejected"][0]["content"] for row in trained_rows(trainer.works[0])}
    assert "hm" not in rejected["exclude"] and rejected["lose"] == {"hm"}


def sometimes_silent(answer: str, seed: int, version: int) -> str:
    return "hm" if seed % 3 == 0 else by_seed(answer, seed, version)


def test_shipped_configs_for_mathematics_vote_by_number() -> None:
    paths = Path(configs.__file__).parent.glob("*.yaml")
    found = {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths}
    votes = {name: config for name, config in found.items() if config["recipe"] == "self-consistency-reward"}
    real = {name: config for name, config in votes.items() if config["model"] != "pocket"}
    assert len(real) >= 2 and "quickstart.yaml" in votes
    assert {(config["settings"]["extract"], config["judge"]) for config in real.values()} == {
        ("number", "number")
    }


def test_a_note_says_that_text_votes_are_numbers() -> None:
    told = {}
    for name, source, judge in (("number", "pocket", "number"), ("pocket", "pocket", None)):
        more = {"judge": judge, "prompts": {"source": source, "heldout": 8, "options": {"size": 24}}}
        told[name] = list(vote_notes(Setup(pocket_config("self-consistency-reward", **more))))
    assert told["pocket"] == []  # checked as exact text, voted as exact text
    assert len(told["number"]) == 1 and "settings.extract=number" in told["number"][0]


def test_the_note_is_printed_after_the_first_votes_where_no_answers_are_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs.Script, "__call__", lambda self, ids, seed, version: f"so\n{seed % 3}.0")
    path = tmp_path / "bare.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"What is {n} + 1?"}) + "\n" for n in range(16)))
    for extract in ("text", "number"):
        config = pocket_config("self-consistency-reward", {"threshold": 0.0, "extract": extract}, iterations=2,
                               prompts={"source": str(path), "heldout": 4})  # fmt: skip
        run_recipe(config, tmp_path / extract)
    assert capsys.readouterr().out.count("Note: most of the answers are numbers") == 1


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
