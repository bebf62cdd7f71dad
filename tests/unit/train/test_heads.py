from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from selfloop.actors.train.spec import TrainWork
from selfloop.actors.train.trainer import Trainer
from selfloop.actors.weights.receipt import receipt_of
from selfloop.workflows.config import Lora
from selfloop.workflows.errors import TrainerError
from selfloop.workflows.objectives.policy_gradient import PPO, ValueLoss
from selfloop.workflows.objectives.reward_model import BradleyTerry, BradleyTerryRanking
from tests.unit.train.trainer_rows import (
    IDS,
    Death,
    Died,
    Likelihood,
    losses,
    pair_rows,
    response_rows,
    spec_of,
    tiny_model,
    tokens,
    work_of,
)

FLOATS = pa.list_(pa.float32())


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("start"), tied=False)


@pytest.fixture(scope="module")
def trainer(start: str) -> Trainer:
    return Trainer(spec_of(start))


@pytest.fixture(scope="module")
def reward(trainer: Trainer, start: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A reward model of a few steps, whose head is not zero any more."""
    work = head_work(tmp_path_factory.mktemp("reward"), start, BradleyTerry(), pair_rows(), epochs=3)
    trainer.train(work)
    return work.out


def head_work(folder: Path, start: str, objective: Any, table: pa.Table, **changes: Any) -> TrainWork:
    return work_of(
        folder, start, objective, table, **({"role": "reward", "head": True, "reference": None} | changes)
    )


def value_rows(count: int = 24) -> pa.Table:
    """Responses with returns and the critic's old values at each token."""
    table = response_rows(count)
    rng = np.random.default_rng(1)
    for name in ("returns", "old_values"):
        values = [rng.normal(size=len(ids)).tolist() for ids in table["response_ids"].to_pylist()]
        table = table.append_column(name, pa.array(values, FLOATS))
    return table


def ranked_rows(count: int = 12) -> pa.Table:
    """Three to five candidates a prompt; the first two are tied."""
    rng = np.random.default_rng(2)
    sizes = [int(rng.integers(3, 6)) for _ in range(count)]
    return pa.table({
        "prompt_id": [f"p{row:03d}" for row in range(count)],
        "prompt_ids": pa.array([tokens(rng, 2, 12) for _ in range(count)], IDS),
        "ranked_ids": pa.array([[tokens(rng, 1, 15) for _ in range(size)] for size in sizes], pa.list_(IDS)),
        "rank": pa.array([[0, 0, *range(1, size - 1)] for size in sizes], pa.list_(pa.int64())),
    })  # fmt: skip


def classifier(folder: str) -> Any:
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()


def test_a_new_reward_model_starts_at_ln_2_and_learns(trainer: Trainer, start: str, tmp_path: Path):
    rows = pair_rows().drop_columns(["weight"])
    work = head_work(tmp_path, start, BradleyTerry(), rows, epochs=20)
    result = trainer.train(work)
    assert result.curve[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert result.curve[-1]["loss"] < 0.3
    assert (
        result.curve[-1]["reward_margin"] > result.curve[10]["reward_margin"] > 0
    )  # separable: it keeps growing
    chosen, rejected = (
        trainer.rewards(work.out, rows["prompt_ids"].to_pylist(), rows[f"{side}_ids"].to_pylist())
        for side in ("chosen", "rejected")
    )
    assert np.mean(np.array(chosen) > np.array(rejected)) > 0.9


def test_equal_answers_with_opposite_labels_stay_at_ln_2(trainer: Trainer, start: str, tmp_path: Path):
    """Each pair once in either order: what one pulls, the other pulls back."""
    rows = pair_rows(8).drop_columns(["weight"])
    sides = [rows[name].to_pylist() for name in ("chosen_ids", "rejected_ids", "prompt_ids")]
    turned = [sides[0][:4] + sides[1][:4], sides[1][:4] + sides[0][:4], sides[2][:4] * 2]
    for name, values in zip(("chosen_ids", "rejected_ids", "prompt_ids"), turned, strict=True):
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, name, pa.array(values, rows.schema.field(name).type))
    result = trainer.train(head_work(tmp_path, start, BradleyTerry(), rows, epochs=3))
    assert [line["loss"] for line in result.curve] == pytest.approx(
        [math.log(2)] * 3, abs=1e-3
    )  # Adam makes steps of rounding
    assert result.curve[0]["grad_norm"] == pytest.approx(0, abs=1e-5)


def test_a_reward_model_is_a_normal_checkpoint(trainer: Trainer, start: str, reward: str):
    """transformers gives the same reward, alone and behind padding; the end of the sequence counts, not a token id."""
    model = classifier(reward)
    rows = pair_rows(6)
    contexts, targets = rows["prompt_ids"].to_pylist(), rows["chosen_ids"].to_pylist()
    found = trainer.rewards(reward, contexts, targets)
    with torch.no_grad():
        alone = [
            float(model(input_ids=torch.tensor([a + b])).logits)
            for a, b in zip(contexts, targets, strict=True)
        ]
    assert found == pytest.approx(alone, abs=1e-5)
    model.config.pad_token_id = 0
    longest = max(len(a) + len(b) for a, b in zip(contexts, targets, strict=True))
    for left in (False, True):
        lines = []
        for a, b in zip(contexts, targets, strict=True):
            fill = [0] * (longest - len(a) - len(b))
            lines.append(fill + a + b if left else a + b + fill)
        mask = torch.tensor([[int(token != 0) for token in line] for line in lines])
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        padded = model(
            input_ids=torch.tensor(lines), attention_mask=mask, position_ids=places
        ).logits.reshape(-1)
        assert found == pytest.approx(padded.tolist(), abs=1e-5)
    config = json.loads((Path(reward) / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForSequenceClassification"]
    names = set(load_file(Path(reward) / "model.safetensors"))
    assert names == set(load_file(Path(start) / "model.safetensors")) - {"lm_head.weight"} | {"score.weight"}
    assert (Path(reward) / "chat_template.jinja").exists()


def test_the_reward_does_not_depend_on_its_neighbours(trainer: Trainer, reward: str):
    rows = pair_rows(12, longest=60)
    contexts, targets = rows["prompt_ids"].to_pylist(), rows["chosen_ids"].to_pylist()
    together = trainer.rewards(reward, contexts, targets)
    apart = [trainer.rewards(reward, [a], [b])[0] for a, b in zip(contexts, targets, strict=True)]
    assert together == pytest.approx(apart, abs=1e-5)
    assert trainer.rewards(reward, [], []) == []


def test_a_value_is_that_of_the_state_before_its_token(trainer: Trainer, reward: str):
    model = classifier(reward)
    with torch.no_grad():
        states = model.model(input_ids=torch.tensor([[3, 4, 5, 6, 7]])).last_hidden_state
        wanted = model.score(states)[0, :, 0].tolist()
    assert trainer.values(reward, [[3, 4]], [[5, 6, 7]])[0] == pytest.approx(wanted[1:4], abs=1e-5)
    assert trainer.rewards(reward, [[3, 4]], [[5, 6, 7]])[0] == pytest.approx(wanted[4], abs=1e-5)
    assert trainer.rewards(reward, [[3, 4, 5, 6]], [[7]])[0] == pytest.approx(wanted[4], abs=1e-5)


def test_a_step_is_that_of_a_plain_loop(trainer: Trainer, reward: str, tmp_path: Path):
    """One clipped AdamW step of Bradley-Terry, written out with transformers alone."""
    rows = pair_rows(8, seed=5).drop_columns(["weight"])
    work = head_work(tmp_path, reward, BradleyTerry(), rows, batch_size=8)
    result = trainer.train(work)
    model = classifier(reward).train()
    gaps = []
    for row in rows.to_pylist():
        one, other = (model(input_ids=torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]])).logits[0, 0]
                      for side in ("chosen", "rejected"))  # fmt: skip
        gaps.append(one - other)
    loss = -torch.nn.functional.logsigmoid(torch.stack(gaps)).mean()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0).step()
    assert result.curve[0]["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert result.curve[0]["grad_norm"] == pytest.approx(float(norm), rel=1e-3)
    made = load_file(Path(work.out) / "model.safetensors")
    for name, param in model.named_parameters():
        assert param.grad is not None
        known = (
            param.grad.abs() > 1e-6
        )  # Adam makes noise of what is exactly zero, like the gradient of keys' biases
        torch.testing.assert_close(made[name][known], param.data[known], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("objective", "rows"),
    [
        (BradleyTerry(centering=0.1), pair_rows()),
        (BradleyTerryRanking(), ranked_rows()),
        (ValueLoss(), value_rows()),
    ],
)
def test_micro_batches_do_not_matter(
    trainer: Trainer, reward: str, tmp_path: Path, objective: Any, rows: pa.Table
):
    curves = [
        losses(trainer, head_work(tmp_path / str(budget), reward, objective, rows, epochs=3), tokens_per_micro_batch=budget)
        for budget in (40, 200, 100_000)
    ]  # fmt: skip
    np.testing.assert_allclose(curves[0], curves[2], rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(curves[1], curves[2], rtol=2e-4, atol=1e-5)
    assert curves[2][-1] < curves[2][0]


def test_a_ranking_costs_what_its_pairs_cost(trainer: Trainer, reward: str, tmp_path: Path):
    rows = ranked_rows(4)
    found = losses(trainer, head_work(tmp_path, reward, BradleyTerryRanking(), rows))[0]
    costs = []
    for row in rows.to_pylist():
        scores = trainer.rewards(reward, [row["prompt_ids"]] * len(row["rank"]), row["ranked_ids"])
        pairs = [
            (a, b)
            for a, i in zip(scores, row["rank"], strict=True)
            for b, j in zip(scores, row["rank"], strict=True)
            if i < j
        ]
        costs.append(np.mean([math.log1p(math.exp(b - a)) for a, b in pairs]))
    assert found == pytest.approx(np.mean(costs), abs=1e-5)


def test_a_critic_of_its_own_old_values_costs_the_squared_error(
    trainer: Trainer, reward: str, tmp_path: Path
):
    rows = value_rows(8)
    values = trainer.values(reward, rows["prompt_ids"].to_pylist(), rows["response_ids"].to_pylist())
    place = rows.schema.get_field_index("old_values")
    rows = rows.set_column(place, "old_values", pa.array(values, FLOATS))
    found = losses(trainer, head_work(tmp_path, reward, ValueLoss(), rows, role="critic"))[0]
    errors = np.concatenate(
        [np.array(a) - np.array(b) for a, b in zip(values, rows["returns"].to_pylist(), strict=True)]
    )
    assert found == pytest.approx(0.5 * np.mean(errors**2), rel=1e-5)


def test_policy_and_reward_model_live_in_one_trainer(
    trainer: Trainer, start: str, reward: str, tmp_path: Path
):
    policy = work_of(tmp_path / "policy", start, Likelihood(), response_rows(), optimizer="continued")
    first = trainer.train(policy)
    head = trainer.train(head_work(tmp_path / "reward", start, BradleyTerry(), pair_rows()))
    assert trainer.weights()[0] == head.receipt
    assert "score.weight" in head.receipt
    assert trainer.logprobs(policy.out, [[1, 2]], [[3]]) == trainer.logprobs(policy.out, [[1, 2]], [[3]])
    trainer.rewards(reward, [[1, 2]], [[3]])
    after = replace(policy, start=policy.out, start_state=policy.state_out, version=2, state_out=None)
    kept = trainer.train(replace(after, out=str(tmp_path / "2/policy")))
    anew = Trainer(trainer.spec).train(replace(after, out=str(tmp_path / "3/policy")))
    assert kept.checksum == anew.checksum != first.checksum


def test_a_critic_continues_its_own_optimizer_and_not_the_policys(
    trainer: Trainer, start: str, tmp_path: Path
):
    policy = work_of(tmp_path / "policy", start, Likelihood(), response_rows(), optimizer="continued")
    trainer.train(policy)
    one = head_work(tmp_path / "1", policy.out, ValueLoss(), value_rows(), optimizer="continued",
                    start_state=policy.state_out)  # fmt: skip
    fresh = replace(
        one, optimizer="fresh", out=str(tmp_path / "fresh"), state_out=str(tmp_path / "fresh-state")
    )
    assert trainer.train(one).curve == trainer.train(fresh).curve
    states = [json.loads((Path(str(work.state_out)) / "state.json").read_text()) for work in (policy, one)]
    assert [state.get("head", False) for state in states] == [False, True]
    assert states[1]["optimizer_step"] == 3
    two = replace(one, start=one.out, start_state=one.state_out, version=2)
    kept = trainer.train(replace(two, out=str(tmp_path / "2")))
    lost = trainer.train(replace(two, optimizer="fresh", out=str(tmp_path / "3")))
    assert kept.checksum != lost.checksum


@pytest.mark.parametrize("lora", [None, Lora(rank=4, dropout=0.1)])
def test_a_resumed_critic_has_the_same_bytes(
    start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: Lora | None
):
    spec = spec_of(start, lora=lora, checkpoint_steps=4)
    rank = Trainer(spec)
    wanted = rank.train(head_work(tmp_path / "whole", start, ValueLoss(), value_rows(), epochs=3))
    Death(step=7).install(monkeypatch)
    broken = head_work(tmp_path / "broken", start, ValueLoss(), value_rows(), epochs=3)
    with pytest.raises(Died):
        rank.train(broken)
    resumed = Trainer(spec).train(broken)
    assert resumed.metrics["resumed_at_step"] == 4
    assert resumed.curve == wanted.curve
    assert resumed.checksum == wanted.checksum


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_every_stage_follows_stage_0(trainer: Trainer, start: str, tmp_path: Path, zero: int):
    rank = Trainer(replace(trainer.spec, zero=zero))
    curves = []
    for name, one in (("0", trainer), ("zero", rank)):
        work = head_work(tmp_path / name, start, BradleyTerry(), pair_rows(), epochs=3)
        result = one.train(work)
        curves.append([line["loss"] for line in result.curve])
        assert one.weights()[0] == result.receipt
        assert receipt_of(load_file(Path(work.out) / "model.safetensors").items()) == result.receipt
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-3, atol=1e-4)


def test_adapters_under_a_head_are_peft_s(start: str, tmp_path: Path):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    rank = Trainer(spec_of(start, lora=Lora(rank=4), lr=1e-2))
    work = head_work(tmp_path, start, BradleyTerry(), pair_rows(), epochs=3)
    result = rank.train(work)
    assert result.curve[-1]["loss"] < result.curve[0]["loss"]
    before, after = (load_file(Path(folder) / "model.safetensors") for folder in (start, work.out))
    frozen = [name for name in after if not name.endswith(("_proj.weight", "score.weight"))]
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    base = AutoModelForSequenceClassification.from_pretrained(start, num_labels=1, dtype=torch.float32)
    loaded: Any = PeftModel.from_pretrained(base, work.state_out).eval()
    wanted = float(loaded(input_ids=torch.tensor([[3, 4, 5, 6]])).logits)
    assert rank.rewards(work.out, [[3, 4]], [[5, 6]])[0] == pytest.approx(wanted, abs=1e-5)
    assert wanted != 0
    again = replace(work, start=work.out, start_state=work.state_out, version=2, out=str(tmp_path / "2"))
    assert rank.train(again).curve[0]["loss"] < result.curve[0]["loss"]


def test_bfloat16_keeps_the_reward_in_float32(start: str, tmp_path: Path):
    rank = Trainer(spec_of(start, dtype="bfloat16"))
    work = head_work(tmp_path, start, BradleyTerry(), pair_rows(), epochs=3)
    assert losses(rank, work)[-1] < math.log(2)
    found = rank.rewards(work.out, [[3, 4]] * 8, [[5, token] for token in range(8)])
    assert any(value != float(torch.tensor(value).bfloat16()) for value in found)


def test_what_cannot_be_is_refused(trainer: Trainer, start: str, tmp_path: Path):
    refused: list[tuple[TrainWork, str]] = [
        (work_of(tmp_path, start, BradleyTerry(), pair_rows()), "reads the rewards of a scalar head"),
        (head_work(tmp_path, start, Likelihood(), response_rows()), "reads no scalar head's values"),
        (head_work(tmp_path, start, PPO(vf_coefficient=0.1), value_rows()), "heads on a shared trunk"),
    ]
    for work, message in refused:
        with pytest.raises(TrainerError, match=message):
            trainer.train(work)
    with pytest.raises(TrainerError, match="holds a language model without a scalar head"):
        trainer.rewards(start, [[1]], [[2]])
    assert trainer.values(start, [[1, 2]], [[3, 4]]) == [[0.0, 0.0]]
