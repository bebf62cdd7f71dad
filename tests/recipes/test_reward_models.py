"""Reward models and critics in whole runs: PPO, and a reward model as a judge, with the real trainer on the pocket model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfloop.workflows.config import Config
from selfloop.workflows.flow.iteration import Iteration
from selfloop.workflows.flow.lint import lint
from selfloop.workflows.flow.recipe import Recipe
from selfloop.workflows.flow.stream import Model
from selfloop.workflows.flow.surgery import ScalarHead
from selfloop.workflows.objectives import MUSCLE, PPO, SFT, BradleyTerry, ValueLoss
from selfloop.workflows.report.console import Console
from selfloop.workflows.run.loop import loop
from selfloop.workflows.store.folder import RunFolder
from tests.recipes.runs import Watched, by_seed, fake_trainer, local, pocket_config, real_trainer
from tests.recipes.sketches.muscle import Muscle
from tests.recipes.sketches.ppo import ProximalPolicy, RewardJudged
from tests.unit.flows import rows_of, setup_of


def run(recipe: Recipe, path: Path, trainer: Any = None, **more: Any) -> tuple[list[dict[str, Any]], Watched]:
    config: Config = pocket_config("spin", **more)
    trainer = trainer or real_trainer(config, lr=3e-4, batch_size=32)
    setup, folder = setup_of(config, recipe), RunFolder(path)
    folder.open(config.model_dump(mode="json"))
    try:
        with local(setup, folder, trainer, by_seed) as (runtime, job):
            return loop(setup, folder, runtime, job, Console(live=False)), trainer
    finally:
        folder.close()


@pytest.fixture(scope="module")
def ppo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]], Watched]:
    path = tmp_path_factory.mktemp("ppo") / "run"
    return path, *run(ProximalPolicy(), path)


@pytest.mark.real
def test_two_iterations_of_ppo(ppo: Any):
    """The first step is on-policy; the critic starts at 0, goes on from itself, and the reward model is carried over."""
    path, metrics, trainer = ppo
    assert [line["iteration"] for line in metrics] == [0, 1, 2]
    works = {(work.role, work.version): work for work in trainer.works}
    assert list(works) == [("reward", 1), ("policy", 1), ("critic", 1), ("policy", 2), ("critic", 2)]
    results = dict(zip(works, trainer.results, strict=True))
    for version in (1, 2):
        first = results["policy", version].curve[0]
        assert first["ratio"] == pytest.approx(1.0, abs=1e-4)
        assert first["clipped"] == 0.0
        losses = [line["loss"] for line in results["critic", version].curve]
        assert len(losses) == 12
        assert np.mean(losses[-3:]) < np.mean(losses[:3])  # the last epoch against the first
    assert works["critic", 2].start.endswith("iteration=0001/critic")
    assert str(works["critic", 2].start_state).endswith("iteration=0001/critic-state")
    state = json.loads((path / "iteration=0002/critic-state/state.json").read_text())
    assert state["optimizer_step"] == results["critic", 1].steps + results["critic", 2].steps
    assert not (path / "iteration=0002/reward").exists()
    roles = RunFolder(path).manifest(2)["roles"]
    assert roles["reward"]["folder"].endswith("iteration=0001/reward")


@pytest.mark.real
def test_values_and_rewards_are_what_the_checkpoints_say(ppo: Any):
    from transformers import AutoModelForSequenceClassification

    path, _, _ = ppo
    assert all(set(row["old_values"]) == {0.0} for row in rows_of(path, 1, "valued"))
    kinds: Any = AutoModelForSequenceClassification
    reward, critic = (
        kinds.from_pretrained(path / "iteration=0001" / role).eval() for role in ("reward", "critic")
    )
    for row in rows_of(path, 2, "valued")[:6]:
        ids = torch.tensor([row["prompt_ids"] + row["response_ids"]])
        with torch.no_grad():
            assert float(reward(input_ids=ids).logits) == pytest.approx(row["score"], abs=1e-4)
            states = critic.model(input_ids=ids).last_hidden_state
            values = critic.score(states)[0, :, 0].tolist()
        wanted = values[len(row["prompt_ids"]) - 1 : -1]
        assert row["old_values"] == pytest.approx(wanted, abs=1e-4)
        assert row["score_state"] == "score"


@pytest.mark.real
def test_the_reward_model_prefers_right_answers(ppo: Any):
    """Accuracy on comparisons of answers that it was not trained on (iteration 2), well over chance."""
    path, _, trainer = ppo
    assert trainer.results[0].curve[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert trainer.results[0].metrics["loss_last"] < 0.6
    prompts = setup_of(pocket_config("spin")).sources["prompts"]
    answers = dict(zip(prompts["prompt_id"].to_pylist(), prompts["answer"].to_pylist(), strict=True))
    rows = [row | {"answer": answers[row["prompt_id"]]} for row in rows_of(path, 2, "scored")]
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt_id"], []).append(row)
    gaps = [one["score"] - other["score"] for group in by_prompt.values() for one in group for other in group
            if one["response"] == one["answer"] and other["response"] != other["answer"]]  # fmt: skip
    assert len(gaps) > 20
    assert np.mean(np.array(gaps) > 0) > 0.6


@pytest.mark.real
def test_advantages_are_white_and_returns_are_what_comes(ppo: Any):
    trainer = ppo[2]
    work = next(work for work in trainer.works if (work.role, work.version) == ("policy", 2))
    advantages = np.concatenate(work.table["advantages"].to_pylist())
    assert advantages.mean() == pytest.approx(0, abs=1e-4)
    assert advantages.std() == pytest.approx(1, abs=1e-3)
    row = work.table.to_pylist()[0]
    gap = row["old"][-1] - row["reference"][-1]
    last = row["score"] - 0.05 * gap
    assert row["returns"][-1] == pytest.approx(last, abs=1e-4)


@pytest.mark.real
def test_a_resumed_run_has_the_same_models(ppo: Any, tmp_path: Path):
    """Killed after the policy of iteration 2: the critic is trained by another process that has only the folder."""
    path, _, whole = ppo

    class Died(Exception):
        pass

    class Dying(Watched):
        def train(self, work: Any) -> Any:
            if (work.role, work.version) == ("critic", 2):
                raise Died
            return super().train(work)

    config = pocket_config("spin")
    spec = {"lr": 3e-4, "batch_size": 32}
    with pytest.raises(Died):
        run(ProximalPolicy(), tmp_path / "run", Dying(real_trainer(config, **spec).trainer))
    _, after = run(ProximalPolicy(), tmp_path / "run", real_trainer(config, **spec))
    assert [(work.role, work.version) for work in after.works] == [("critic", 2)]
    for role in ("policy", "critic"):
        one, other = (
            (root / f"iteration=0002/{role}/model.safetensors").read_bytes()
            for root in (path, tmp_path / "run")
        )
        assert one == other, role
    assert after.results[0].checksum == whole.results[-1].checksum


@pytest.mark.real
def test_a_reward_model_judges_and_rules_read_its_score(tmp_path: Path):
    trainer = real_trainer(pocket_config("spin"), lr=3e-4, batch_size=32)
    real = trainer.trainer.rewards

    def broken(folder: str, contexts: Any, targets: Any) -> list[float]:
        """One row in seven or so gets no number."""
        lengths = [len(context) + sum(target) for context, target in zip(contexts, targets, strict=True)]
        numbers = real(folder, contexts, targets)
        return [float("nan") if size % 7 == 0 else one for size, one in zip(lengths, numbers, strict=True)]

    trainer.trainer.rewards = broken
    metrics, _ = run(RewardJudged(), tmp_path / "run", trainer)
    rows = rows_of(tmp_path / "run", 2, "scored")
    failed = [row for row in rows if row["score_state"] == "failed"]
    assert failed and all(row["score"] is None for row in failed)
    assert len(failed) < len(rows) / 2
    assert metrics[-1]["scored_score_state_failed"] == len(failed)
    pairs = rows_of(tmp_path / "run", 2, "pair")
    assert pairs and all(row["chosen_score"] > row["rejected_score"] for row in pairs)
    best: dict[str, float] = {}
    for row in rows:
        if row["score"] is not None:
            best[row["prompt_id"]] = max(row["score"], best.get(row["prompt_id"], -1e9))
    assert all(row["chosen_score"] == best[row["prompt_id"]] for row in pairs)


@pytest.mark.real
def test_two_teachers_of_a_recipe_reach_the_trainer(tmp_path: Path):
    """MUSCLE: at its start the student is the second teacher, so the loss of the tokens it has right is 0."""
    trainer = real_trainer(pocket_config("spin"), lr=3e-4, batch_size=32)
    _, trainer = run(Muscle(epochs=1, regressions=1.0), tmp_path / "run", trainer)
    works = [work for work in trainer.works if work.frozen]
    assert [work.version for work in works] == [1, 2]
    results = [result for work, result in zip(trainer.works, trainer.results, strict=True) if work.frozen]
    first = results[0].curve[0]
    assert 0 < first["correct"] < 1
    assert 0 < first["loss"] < 1
    assert works[1].frozen["first"].endswith("iteration=0001/policy")


def test_pruning_keeps_a_role_that_is_carried_over(tmp_path: Path):
    config = pocket_config("spin")
    run(RewardJudged(), tmp_path / "run", fake_trainer(config), iterations=3, checkpoints={"keep": 1})
    kept = [(tmp_path / f"run/iteration=000{index}/policy").exists() for index in (1, 2, 3)]
    assert kept == [False, False, True]
    assert (tmp_path / "run/iteration=0001/reward/model.safetensors").exists()


def problems(iteration: Any) -> str:
    class Wrong(Recipe):
        def iteration(self, it: Iteration) -> Any:
            return iteration(it)

    return "\n".join(lint(setup_of(pocket_config("spin"), Wrong()).planner))


def answers_of(it: Iteration) -> Any:
    return it.prompts().sample(it.policy, n=2)


def scalar(it: Iteration, objective: Any = None, **more: Any) -> Model:
    rows = answers_of(it).score(lambda rows, rng: [0.0] * len(rows), column="returns")
    settings: dict[str, Any] = {"reference": None, "optimizer": "fresh", "role": "critic"} | more
    return it.policy.adapt(ScalarHead()).train(rows, objective or ValueLoss(value_clip=None), **settings)


def reward_of_comparisons(it: Iteration) -> Model:
    pairs = it.data("comparisons").pair(lambda rows, rng: [])
    return it.policy.train(pairs, BradleyTerry(), reference=None, optimizer="fresh", role="reward")


@pytest.mark.parametrize(
    ("iteration", "message"),
    [
        (lambda it: {"critic": scalar(it), "policy": it.policy.train(
            answers_of(it).measure(it.policy, "values", column="returns"), SFT(), reference=None, optimizer="fresh")},
         "measures values, and policy@0 has no scalar head"),
        (lambda it: it.policy.train(
            answers_of(it).measure(it.policy.adapt(ScalarHead()), "rewards"), SFT(), reference=None, optimizer="fresh"),
         "was never trained: it says 0 of everything"),
        (lambda it: {"critic": scalar(it), "policy": it.policy.train(
            it.prompts(name="more").sample(scalar(it, name="other")), SFT(), reference=None, optimizer="fresh")},
         "has a scalar head instead, which no engine serves"),
        (lambda it: scalar(it, SFT()), "SFT reads no values or rewards, and policy@0 has a scalar head"),
        (lambda it: scalar(it, role="policy"), "makes a policy with a scalar head, which has no words"),
        (lambda it: {"critic": scalar(it, PPO(vf_coefficient=0.1))}, "reads values and log-probs of one model"),
        (lambda it: {"policy": it.policy.train(answers_of(it).measure(it.model("critic"), "values"), SFT(), reference=None,
                                               optimizer="fresh")}, "uses the role 'critic' in iteration 1"),
        (lambda it: {"critic": it.policy.train(answers_of(it), ValueLoss(value_clip=None), reference=None,
                                               optimizer="fresh", role="critic")}, "reads the values of a scalar head, and policy@0"),
        (lambda it: it.policy.train(answers_of(it), MUSCLE(), reference=None, optimizer="fresh", frozen={"first": it.initial}),
         "MUSCLE learns from the teachers second. Pass frozen={'second': model}"),
    ],
)  # fmt: skip
def test_the_lint_refuses_heads_that_cannot_work(iteration: Any, message: str):
    assert message in problems(iteration)


def test_a_carried_over_role_keeps_its_head():
    def iteration(it: Iteration) -> dict[str, Model]:
        made = scalar(it) if it.index == 1 else it.model("critic")
        rows = (
            answers_of(it).measure(made, "values", column="v", name="v") if it.index > 1 else answers_of(it)
        )
        policy = it.policy.train(rows, SFT(), reference=None, optimizer="fresh")
        return {"policy": policy} | ({"critic": made} if it.index == 1 else {})

    def twice(it: Iteration) -> dict[str, Model]:
        if it.index == 1:
            return {"critic": scalar(it)}
        rows = it.prompts(name="more").sample(it.model("critic"), name="spoken")
        return {"policy": it.policy.train(rows, SFT(), reference=None, optimizer="fresh")}

    assert "scalar head" not in problems(iteration)
    assert "'spoken' needs words of critic@1" in problems(twice)
