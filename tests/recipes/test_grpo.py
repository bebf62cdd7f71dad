"""The "must hold" lines of GRPO's card that the recipe answers for; the loss's own are in the objectives' tests."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from selfloop.workflows.config import load_config
from selfloop.workflows.errors import NoSignalError
from selfloop.workflows.objectives.policy_gradient import GRPO
from selfloop.workflows.recipes.reinforcement.grpo import VARIANTS, GroupRelative
from selfloop.workflows.report.graph import describe
from selfloop.workflows.report.pages.reference import reference
from selfloop.workflows.rules.groups import Advantages, Groups, Rewards
from selfloop.workflows.run.setup import Setup
from tests.recipes.runs import fake_trainer, graph_of, pocket_config, real_trainer, run_recipe, trained_rows
from tests.unit.flows import rows_of

RNG = random.Random(0)
VARIANT = pytest.mark.parametrize("variant", sorted(VARIANTS))


def row(score: float | None = 1.0, length: int = 4, **more: Any) -> dict[str, Any]:
    state = "abstain" if score is None else "score"
    return {"score": score, "score_state": state, "response_ids": [5] * length, "finish": "stop", **more}


def advantages(rewards: list[float], scale: bool) -> list[float]:
    return Advantages(scale=scale)([{"reward": reward} for reward in rewards], RNG)


def objective_of(**settings: Any) -> GRPO:
    training = graph_of(pocket_config("grpo", settings), 1).nodes["train"].training
    assert training is not None and isinstance(training.objective, GRPO)
    return training.objective


def always_right(answer: str, seed: int, version: int) -> str:
    return answer


def test_advantages_of_one_right_answer_in_four() -> None:
    assert advantages([1, 0, 0, 0], scale=True) == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-5)
    assert advantages([1, 0, 0, 0], scale=False) == pytest.approx([0.75, -0.25, -0.25, -0.25])


def test_equal_rewards_have_no_advantage_and_a_lonely_answer_is_left_out() -> None:
    for scale in (True, False):
        assert advantages([1.0, 1.0, 1.0], scale) == [0.0, 0.0, 0.0]
        assert advantages([0.1, 0.1, 0.1], scale) == [0.0, 0.0, 0.0]
    assert Groups()([row()], RNG) == []


def test_scaled_advantages_do_not_change_with_the_rewards_scale_and_dr_grpo_s_do() -> None:
    few, many = [1.0, 0.0, 0.0, 1.0], [10.0, 0.0, 0.0, 10.0]
    assert advantages(many, scale=True) == pytest.approx(advantages(few, scale=True), rel=1e-4)
    assert advantages(many, scale=False) == pytest.approx([10 * one for one in advantages(few, scale=False)])


def test_the_length_penalty_of_dapo() -> None:
    rewards = Rewards(values=(-1.0, 1.0), longest=20480, share=0.2)
    rows = [row(length=length) for length in (16384, 17408, 18432, 20480)]
    assert rewards(rows, RNG) == pytest.approx([1.0, 0.75, 0.5, 0.0])
    assert rewards([row(0.0, 20480), row(None)], RNG) == pytest.approx([-2.0, -1.0])
    assert Rewards(longest=16)([row(length=16), row(0.0, 16)], RNG) == [1.0, 0.0]


@pytest.mark.parametrize(("correct", "kept"), [(0, 0), (1, 4), (3, 4), (4, 0)])
def test_dynamic_sampling_keeps_a_prompt_iff_some_but_not_all_are_right(correct: int, kept: int) -> None:
    rows = [row(1.0)] * correct + [row(0.0)] * (4 - correct)
    assert len(Groups(dynamic=True)(rows, RNG)) == kept
    assert len(Groups(dynamic=False)(rows, RNG)) == 4


def test_dynamic_sampling_looks_at_accuracy_not_at_the_shaped_reward() -> None:
    rows = [row(1.0, 16), row(1.0, 20), row(1.0, 18)]
    rewards = Rewards(values=(-1.0, 1.0), longest=20, share=0.2)(rows, RNG)
    assert len(set(rewards)) == 3 and Groups(dynamic=True)(rows, RNG) == []
    graph = graph_of(pocket_config("grpo", {"variant": "dapo"}), 1)
    assert "reward" not in graph.nodes["grow/round-1/keep"].columns
    assert graph.nodes["reward"].inputs == ("grow/pool",)


def test_unread_answers_are_wrong_and_broken_verdicts_are_left_out() -> None:
    broken = {**row(None), "score_state": "failed"}
    rows = [row(1.0), row(None), broken]
    assert Groups(dynamic=True)(rows, RNG) == rows[:2]
    assert Rewards(longest=16)(rows[:2], RNG) == [1.0, 0.0]


def test_cut_answers_are_judged_or_wrong_or_left_out() -> None:
    rows = [row(1.0, finish="length"), row(1.0), row(0.0)]
    assert Rewards(longest=16)(rows, RNG) == [1.0, 1.0, 0.0]
    assert Rewards(longest=16, truncated="wrong")(rows, RNG) == [0.0, 1.0, 0.0]
    assert Groups(truncated="left-out")(rows, RNG) == rows[1:]
    assert Groups(truncated="wrong", dynamic=True)([rows[0], rows[2]], RNG) == []


def test_variants_fill_in_what_is_not_given() -> None:
    dapo, dr = GroupRelative.model_validate({"variant": "dapo"}), GroupRelative(variant="dr-grpo")
    assert GroupRelative(variant="dapo", samples=4).samples == 4
    assert (dapo.epsilon_high, dapo.dual_clip, dapo.aggregation, dapo.rewards) == (
        0.28,
        10.0,
        "dapo",
        (-1.0, 1.0),
    )
    assert (GroupRelative().samples, dapo.samples, dr.samples) == (64, 16, 8)
    gspo = GroupRelative(variant="gspo")
    assert (gspo.ratio, gspo.epsilon, gspo.epsilon_high, gspo.kl) == ("gspo", 3e-4, 4e-4, 0.0)
    assert dapo.rounds == 10 and dapo.length_share == 0.2 and dapo.kl == 0 and dapo.scale
    assert not dr.scale and dr.aggregation == "dr_grpo" and dr.truncated == "wrong" and dr.kl == 0
    assert GroupRelative(variant="dapo", epsilon_high=0.25).epsilon_high == 0.25
    with pytest.raises(ValueError, match="grpo"):
        GroupRelative.model_validate({"variant": "drgrpo"})


@VARIANT
def test_what_a_variant_sets_stands_in_config_json_in_check_and_in_the_reference(
    variant: str, tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text(f"recipe: grpo\nsettings: {{variant: {variant}, epsilon: 0.5}}\n")
    config = load_config(str(tmp_path / "run.yaml"))
    fills = GroupRelative.variant_settings(variant)
    assert set(fills) == {name for settings in VARIANTS.values() for name in settings}
    given = {**fills, "variant": variant, "epsilon": 0.5, "rewards": list(fills["rewards"])}
    assert config.settings == given
    recipe, lines = Setup(config).recipe, describe(config).splitlines()
    assert f"Settings, as variant {variant} fills them in:" in lines
    for name in set(fills) - {"epsilon"}:
        assert getattr(recipe, name) == fills[name] and f"  {name}: {fills[name]}" in lines
    assert f"  epsilon: 0.5  (variant {variant}: {fills['epsilon']})" in lines
    head, rows = "| key | grpo | dr-grpo | dapo | gspo |", reference()
    place = head.split(" | ").index(variant if variant != "gspo" else "gspo |")
    samples = next(row for row in rows.partition(head)[2].splitlines() if "settings.samples" in row)
    assert samples.split(" | ")[place].strip(" |`") == str(fills["samples"])


def test_the_objective_is_the_variant_s() -> None:
    plain, dr, dapo = objective_of(), objective_of(variant="dr-grpo"), objective_of(variant="dapo")
    assert (plain.loss, dr.loss, dapo.loss) == ("grpo", "dr_grpo", "dapo")
    assert objective_of(variant="gspo").ratio == "gspo" and plain.ratio == "token"
    assert dr.max_length == 32 and plain.beta == 0.04 and (dapo.epsilon_high, dapo.delta) == (0.28, 10.0)
    assert all("old_logprobs" in one.reads["response"] for one in (plain, dr, dapo))
    assert "reference_logprobs" not in dapo.reads["response"] and plain.needs_reference
    assert "sampling_logprobs" in objective_of(importance_cap=2.0).reads["response"]


def test_the_reference_is_the_initial_policy_or_one_replaced_now_and_then() -> None:
    def references(**settings: Any) -> list[str | None]:
        config = pocket_config("grpo", settings, iterations=6)
        trainings = [graph_of(config, index).nodes["train"].training for index in range(1, 7)]
        return [one.reference.name if one and one.reference else None for one in trainings]

    assert references() == ["policy@0"] * 6
    assert references(reference_every=2) == [
        "policy@0",
        "policy@0",
        "policy@2",
        "policy@2",
        "policy@4",
        "policy@4",
    ]
    assert references(variant="dapo") == [None] * 6


@VARIANT
def test_groups_survive_batches_and_their_advantages_sum_to_nothing(variant: str, tmp_path: Path) -> None:
    config = pocket_config("grpo", {"variant": variant, "samples": 6}, batch_size=7)
    trainer = fake_trainer(config)
    run_recipe(config, tmp_path / "run", trainer=trainer)
    for work in trainer.works:
        assert work.optimizer == "continued"
        groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for one in trained_rows(work):
            groups[one["prompt_id"]].append(one)
        for rows in groups.values():
            assert len(rows) == 6
            assert sum(one["advantages"] for one in rows) == pytest.approx(0, abs=1e-9)
            scores = [one["score"] or 0.0 for one in rows]
            assert variant != "dapo" or 0 < sum(scores) < 6
            best = max(rows, key=lambda one: one["reward"])
            assert best["advantages"] == max(one["advantages"] for one in rows)


def test_dynamic_sampling_takes_more_prompts_until_the_batch_is_full(tmp_path: Path) -> None:
    prompts = {"heldout": 8, "per_iteration": 8, "options": {"size": 400}}
    config = pocket_config("grpo", {"variant": "dapo", "samples": 3, "rounds": 5}, prompts=prompts)
    trainer = fake_trainer(config)
    run_recipe(config, tmp_path / "run", trainer=trainer)
    for index, work in enumerate(trainer.works, 1):
        rounds = [rows_of(tmp_path / "run", index, f"grow/round-{number}/judge") for number in range(1, 6)]
        kept = [rows_of(tmp_path / "run", index, f"grow/round-{number}/keep") for number in range(1, 6)]
        needed = next(n for n in range(1, 6) if sum(map(len, kept[:n])) >= 8 * 3)
        assert [len(rows) for rows in rounds] == [8 * 3] * needed + [0] * (5 - needed) and needed > 1
        surplus = [row["prompt_id"] for rows in kept for row in rows][8 * 3 :]
        trained = {row["prompt_id"] for row in trained_rows(work)}
        assert len(trained) == 8 and work.table.num_rows == 8 * 3 and not trained & set(surplus)


def test_prompts_all_right_leave_nothing_to_learn_and_the_run_says_so(tmp_path: Path) -> None:
    config = pocket_config("grpo", {"variant": "dapo", "samples": 4})
    with pytest.raises(
        NoSignalError, match="nothing to train on in iterations 1 and 2: every answer is right"
    ):
        run_recipe(config, tmp_path / "run", always_right)


@pytest.mark.real
def test_the_first_update_is_on_policy_and_the_optimizer_goes_on(tmp_path: Path) -> None:
    """One update an iteration: the ratio is 1 and nothing is clipped; the moments come from the last iteration."""
    config = pocket_config("grpo", {"variant": "dr-grpo", "samples": 4})
    trainer = real_trainer(config, lr=1e-3, batch_size=24 * 4)
    run_recipe(config, tmp_path / "run", trainer=trainer)
    for result in trainer.results:
        assert result.steps == 1
        assert result.curve[0]["ratio"] == pytest.approx(1.0, abs=1e-5) and result.curve[0]["clipped"] == 0.0
        assert result.curve[0]["grad_norm"] > 0
        assert result.metrics["sampler_gap"] > 0  # the fake sampler's log-probs are not the trainer's
    state = trainer.works[1].start_state
    assert state is not None and '"optimizer_step": 1' in "".join(
        path.read_text() for path in Path(state).glob("*.json")
    )


@pytest.mark.real
@pytest.mark.parametrize("variant", ["dr-grpo", "gspo"])
def test_without_any_advantage_the_gradient_is_zero(variant: str, tmp_path: Path) -> None:
    """What a run relies on when it does not train such rows: the trainer itself, asked to, finds loss and gradient 0."""
    config = pocket_config("grpo", {"variant": variant, "samples": 3}, iterations=1)
    trainer = real_trainer(config, lr=1e-3, batch_size=24 * 3)
    run_recipe(config, tmp_path / "run", trainer=trainer)
    assert trainer.results[0].curve[0]["grad_norm"] > 0
    (work,) = trainer.works
    place = work.table.column_names.index("advantages")
    flat = work.table.set_column(place, "advantages", pa.array([0.0] * work.table.num_rows))
    again = trainer.train(replace(work, table=flat, out=str(tmp_path / "out"), state_out=None, step_dir=None))
    assert again.curve[0]["grad_norm"] == 0.0 and again.curve[0]["loss"] == 0.0
