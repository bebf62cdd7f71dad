"""The "must hold" lines of SPIN's card that the recipe answers for; the loss's own are in the objectives' tests."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from selfloop.workflows.models.codec import codec_of
from selfloop.workflows.objectives.dpo import SPIN
from selfloop.workflows.recipes.preference.per_iteration import of_iteration
from selfloop.workflows.recipes.preference.spin import SelfPlay
from selfloop.workflows.run.setup import Setup
from tests.recipes.runs import fake_trainer, graph_of, pocket_config, real_trainer, run_recipe, trained_rows
from tests.unit.flows import rows_of

PROMPTS = 24


def wrong(answer: str, seed: int, version: int) -> str:
    """An opponent that is never right, and says which weights speak."""
    return f"{answer}{version}"


def same(answer: str, seed: int, version: int) -> str:
    return answer


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A run of three iterations, and what its trainer was given."""
    path = tmp_path_factory.mktemp("spin") / "run"
    config = pocket_config("spin", iterations=3)
    trainer = fake_trainer(config)
    run_recipe(config, path, wrong, trainer)
    return path, trainer.works


def test_pairs_double_from_the_second_iteration_on_and_never_come_from_before_the_last(three: Any) -> None:
    writers = [[row["rejected_version"] for row in trained_rows(work)] for work in three[1]]
    assert [len(versions) for versions in writers] == [PROMPTS, 2 * PROMPTS, 2 * PROMPTS]
    assert [set(versions) for versions in writers] == [{0}, {0, 1}, {1, 2}]
    assert all(versions.count(version) == PROMPTS for versions in writers for version in set(versions))


def test_pairs_carried_over_keep_their_old_opponent(three: Any) -> None:
    first, second = (trained_rows(work) for work in three[1][:2])
    old = {row["prompt_id"]: row["rejected_ids"] for row in first}
    carried = [row for row in second if row["rejected_version"] == 0]
    assert {row["prompt_id"]: row["rejected_ids"] for row in carried} == old


def test_every_pair_is_measured_against_the_weights_that_training_starts_from(three: Any) -> None:
    path, works = three
    for index, work in enumerate(works):
        assert work.reference == work.start and work.optimizer == "fresh" and work.epochs == 2
        if index:
            assert Path(work.start) == path / f"iteration={index:04d}" / "policy"


def test_chosen_is_the_demonstration_with_its_end_token_and_no_weights_wrote_it(three: Any) -> None:
    setup = Setup(pocket_config("spin"))
    codec = codec_of(str(setup.folder))
    for row in trained_rows(three[1][1]):
        assert row["chosen"] == [{"role": "assistant", "content": row["answer"]}]
        assert row["chosen_ids"] == codec.encode_response(row["answer"])
        assert row["prompt_ids"] == codec.encode(row["prompt"])
        assert row["chosen_version"] is None and row["chosen_logprobs"] is None and row["model"] == "prompts"
    shown = rows_of(three[0], 1, "demonstrate")
    assert {row["status"] for row in shown} == {"ok"} and {row["finish"] for row in shown} == {"stop"}


def test_an_opponent_equal_to_the_demonstration_is_kept(tmp_path: Path) -> None:
    config = pocket_config("spin", iterations=1)
    trainer = fake_trainer(config)
    run_recipe(config, tmp_path / "run", same, trainer)
    rows = trained_rows(trainer.works[0])
    assert len(rows) == PROMPTS and all(row["chosen_ids"] == row["rejected_ids"] for row in rows)


def test_a_cut_opponent_gets_no_false_end_token(tmp_path: Path) -> None:
    generator = {"engine": "fake", "max_tokens": 3, "options": {}}
    config = pocket_config("spin", iterations=1, generator=generator)
    trainer = fake_trainer(config)
    metrics = run_recipe(config, tmp_path / "run", wrong, trainer)
    end = codec_of(str(Setup(config).folder)).encode_response("")[-1]
    cut = {row["prompt_id"] for row in rows_of(tmp_path / "run", 1, "sample") if row["finish"] == "length"}
    assert 0 < len(cut) < PROMPTS
    assert metrics[1]["sample_truncated_share"] == len(cut) / PROMPTS
    for row in trained_rows(trainer.works[0]):
        assert (row["rejected_ids"][-1] == end) == (row["prompt_id"] not in cut)
        assert row["chosen_ids"][-1] == end


def test_strength_and_learning_rate_follow_the_paper_s_schedule() -> None:
    settings = {"lr": [5e-7, 5e-7, 1e-7, 1e-7]}
    trainings = [graph_of(pocket_config("spin", settings, iterations=6), index).nodes["train"].training
                 for index in range(1, 7)]  # fmt: skip
    assert all(one is not None and isinstance(one.objective, SPIN) for one in trainings)
    assert [one.objective.beta for one in trainings if one] == [0.1, 0.1, 0.1, 5.0, 5.0, 5.0]  # type: ignore[attr-defined]
    assert [one.lr for one in trainings if one] == [5e-7, 5e-7, 1e-7, 1e-7, 1e-7, 1e-7]
    assert SelfPlay().lr == () and [of_iteration((1, 2), index) for index in (1, 2, 3)] == [1, 2, 2]


def test_demonstrations_may_come_from_a_source_of_their_own() -> None:
    data = {"demos": {"source": "pocket", "options": {"size": 30}}}
    graph = graph_of(pocket_config("spin", {"demonstrations": "demos"}, data=data), 1)
    assert "prompts" not in graph.nodes and graph.nodes["demonstrate"].inputs == ("demos",)
    assert graph.nodes["demonstrate"].op.source == "demos"  # type: ignore[union-attr]


@pytest.mark.real
def test_the_first_step_is_ln_2_in_every_iteration_and_training_tells_the_sides_apart(tmp_path: Path) -> None:
    config = pocket_config("spin", iterations=2)
    trainer = real_trainer(config, lr=1e-3, batch_size=2 * PROMPTS)
    run_recipe(config, tmp_path / "run", wrong, trainer)
    for result in trainer.results:
        assert result.curve[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert result.curve[-1]["loss"] < math.log(2)
        assert result.curve[0]["chosen_logprob"] < 0 and result.curve[0]["rejected_logprob"] < 0
    carried = [row for row in trained_rows(trainer.works[1]) if row["rejected_version"] == 0]
    sides = {side: gain(trainer, carried, side) for side in ("chosen", "rejected")}
    assert sides["chosen"] > sides["rejected"]
    assert all(abs(value) > 1e-3 for value in sides.values())  # so the references were computed anew


def gain(trainer: Any, rows: list[dict[str, Any]], side: str) -> float:
    """How much the log-prob of a side has changed from the first iteration's reference to the second's."""
    contexts, targets = [row["prompt_ids"] for row in rows], [row[f"{side}_ids"] for row in rows]
    before, after = (
        sum(map(sum, trainer.logprobs(work.reference, contexts, targets))) for work in trainer.works
    )
    return after - before
