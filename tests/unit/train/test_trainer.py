from __future__ import annotations

import hashlib
import json
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from selfloop.actors.train.spec import TrainResult, TrainWork
from selfloop.actors.train.step import schedule
from selfloop.actors.train.trainer import Trainer
from selfloop.actors.weights.receipt import checksum, receipt_of
from selfloop.workflows.errors import ObjectiveError, TrainerError
from selfloop.workflows.objectives.base import Batch, Loss, Term
from selfloop.workflows.objectives.binary import BCO, KTO
from selfloop.workflows.objectives.dpo import DPO
from selfloop.workflows.objectives.odds import ORPO
from selfloop.workflows.objectives.policy_gradient import GRPO
from selfloop.workflows.objectives.reference_free import CPO, SimPO
from selfloop.workflows.objectives.sft import SFT
from tests.unit.train.trainer_rows import (
    IDS,
    Death,
    Died,
    Likelihood,
    Shifted,
    pair_rows,
    response_rows,
    spec_of,
    tiny_model,
    work_of,
)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="module")
def trainer(start: str) -> Trainer:
    return Trainer(spec_of(start))


def train(trainer: Trainer, work: TrainWork, **changes: Any) -> TrainResult:
    """Train under a changed spec, on the engine that is there."""
    before = trainer.spec
    trainer.spec = replace(before, **changes)
    try:
        return trainer.train(work)
    finally:
        trainer.spec = before


def digest(folder: str | Path) -> str:
    return hashlib.sha256((Path(folder) / "model.safetensors").read_bytes()).hexdigest()


def losses(result: TrainResult) -> list[float]:
    return [line["loss"] for line in result.curve]


def test_the_first_dpo_loss_is_ln_2(trainer: Trainer, start: str, tmp_path: Path):
    result = trainer.train(work_of(tmp_path, start, DPO(), pair_rows().drop_columns(["weight"])))
    assert abs(result.curve[0]["loss"] - math.log(2)) < 1e-6
    assert result.curve[-1]["loss"] != result.curve[0]["loss"]
    assert result.steps == len(result.curve) == 3


def test_a_step_is_that_of_a_plain_loop(trainer: Trainer, start: str, tmp_path: Path):
    """One clipped AdamW step on the token mean over all rows, written out with transformers alone."""
    from transformers import AutoModelForCausalLM

    table = response_rows(8)
    result = trainer.train(work_of(tmp_path, start, SFT(), table, batch_size=8))
    model: Any = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    total, count = torch.zeros(()), 0
    for row in table.to_pylist():
        ids = torch.tensor([row["prompt_ids"] + row["response_ids"]])
        logprobs = (
            model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
        )
        total = total - logprobs[-len(row["response_ids"]) :].sum()
        count += len(row["response_ids"])
    loss = total / count
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0).step()
    assert result.curve[0]["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert result.curve[0]["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    made = load_file(Path(tmp_path) / "policy" / "model.safetensors")
    for name, param in model.named_parameters():
        torch.testing.assert_close(made[name], param.data, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "objective", [Likelihood(), Shifted(), BCO(), GRPO(beta=0.1), DPO(nll_coefficient=0.1)]
)
def test_micro_batches_do_not_matter(trainer: Trainer, start: str, tmp_path: Path, objective: Any):
    table = pair_rows() if isinstance(objective, DPO) else response_rows()
    curves = []
    for budget in (40, 200, 100_000):
        work = work_of(tmp_path / str(budget), start, objective, table, epochs=2)
        curves.append(losses(train(trainer, work, tokens_per_micro_batch=budget)))
    np.testing.assert_allclose(curves[0], curves[2], rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(curves[1], curves[2], rtol=2e-4, atol=1e-5)


def test_two_trainings_give_the_same_bytes(trainer: Trainer, start: str, tmp_path: Path):
    table = response_rows()
    first = trainer.train(work_of(tmp_path / "a", start, Likelihood(), table))
    shuffled = table.take(np.random.default_rng(0).permutation(table.num_rows))
    again = trainer.train(work_of(tmp_path / "b", start, Likelihood(), shuffled))
    anew = Trainer(trainer.spec).train(work_of(tmp_path / "c", start, Likelihood(), table))
    assert digest(tmp_path / "a/policy") == digest(tmp_path / "b/policy") == digest(tmp_path / "c/policy")
    assert first.checksum == again.checksum == anew.checksum
    assert first.curve == again.curve == anew.curve
    other_seed = trainer.train(work_of(tmp_path / "d", start, Likelihood(), table, seed=1))
    assert other_seed.checksum != first.checksum


def test_what_is_saved_is_a_normal_checkpoint(trainer: Trainer, start: str, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    result = trainer.train(work_of(tmp_path, start, Likelihood(), response_rows()))
    out = tmp_path / "policy"
    assert {path.name for path in out.iterdir()} >= {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json", "chat_template.jinja",
    }  # fmt: skip
    tensors = load_file(out / "model.safetensors")
    assert set(tensors) == set(load_file(Path(start) / "model.safetensors"))
    assert receipt_of(tensors.items()) == result.receipt
    assert checksum(result.receipt) == result.checksum
    receipt, weights = trainer.weights()
    assert receipt == result.receipt == receipt_of(weights)
    model: Any = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    wanted = model(input_ids=torch.tensor([[3, 4, 5, 6]])).logits.log_softmax(-1)
    found = trainer.logprobs(None, [[3, 4]], [[5, 6]])
    assert found[0] == pytest.approx([wanted[0, 1, 5].item(), wanted[0, 2, 6].item()], abs=1e-5)
    assert not list(tmp_path.glob(".*"))


def test_logprobs_of_another_folder_leave_the_weights_alone(
    trainer: Trainer, start: str, other: str, tmp_path: Path
):
    result = trainer.train(work_of(tmp_path, start, Likelihood(), response_rows()))
    contexts, targets = [[1, 2], [3], [5, 6, 7]], [[4, 5, 6], [], [9]]
    mine = trainer.logprobs(None, contexts, targets)
    theirs = trainer.logprobs(other, contexts, targets)
    assert [len(row) for row in mine] == [3, 0, 1]
    assert mine != theirs
    assert trainer.weights()[0] == result.receipt
    assert trainer.logprobs(None, contexts, targets) == mine
    assert trainer.logprobs(None, [], []) == []
    with pytest.raises(TrainerError, match="a context is empty"):
        trainer.logprobs(None, [[]], [[1]])


def test_a_reference_of_its_own(trainer: Trainer, start: str, other: str, tmp_path: Path):
    work = work_of(tmp_path, start, DPO(beta=0.5), pair_rows(8), reference=other)
    row = trainer.train(work)
    contexts = pair_rows(8)["prompt_ids"].to_pylist()
    margins = np.zeros(8)
    for side, sign in (("chosen", 1), ("rejected", -1)):
        ids = pair_rows(8)[f"{side}_ids"].to_pylist()
        for folder, other_sign in ((start, 1), (other, -1)):
            scored = trainer.logprobs(folder, contexts, ids)
            margins += sign * other_sign * np.array([sum(values) for values in scored])
    weights = pair_rows(8)["weight"].to_numpy()
    wanted = (weights * np.log1p(np.exp(-0.5 * margins))).mean()
    assert row.curve[0]["loss"] == pytest.approx(wanted, rel=1e-4)
    with pytest.raises(TrainerError, match="no reference"):
        trainer.train(replace(work, reference=None))


def test_old_logprobs_are_those_of_the_start_in_every_epoch(trainer: Trainer, start: str, tmp_path: Path):
    """The same numbers whether the trainer computes them or the rows bring them."""
    table = response_rows()
    scored = trainer.logprobs(start, table["prompt_ids"].to_pylist(), table["response_ids"].to_pylist())
    given = table.append_column("response_old_logprobs", pa.array(scored, pa.list_(pa.float32())))
    found = trainer.train(work_of(tmp_path / "a", start, GRPO(), table, epochs=3))
    wanted = trainer.train(work_of(tmp_path / "b", start, GRPO(), given, epochs=3))
    np.testing.assert_allclose(losses(found), losses(wanted), atol=1e-5)


def test_continued_takes_up_the_optimizer_and_fresh_does_not(trainer: Trainer, start: str, tmp_path: Path):
    table = response_rows()

    def chain(name: str, rank: Trainer, kind: Any) -> str:
        one = rank.train(work_of(tmp_path / name / "1", start, Likelihood(), table, optimizer=kind))
        second = work_of(tmp_path / name / "2", str(tmp_path / name / "1/policy"), Likelihood(), table, optimizer=kind,
                         start_state=str(tmp_path / name / "1/policy-state"), version=2)  # fmt: skip
        assert one.steps == 3
        return rank.train(second).checksum

    kept = chain("memory", trainer, "continued")
    fresh = chain("fresh", trainer, "fresh")
    assert kept != fresh
    state = tmp_path / "memory/1/policy-state"
    assert json.loads((state / "state.json").read_text())["optimizer_step"] == 3
    assert not (tmp_path / "fresh/1/policy-state/optimizer.safetensors").exists()
    again = work_of(tmp_path / "disk", str(tmp_path / "memory/1/policy"), Likelihood(), table, version=2,
                    optimizer="continued", start_state=str(state))  # fmt: skip
    trainer.train(work_of(tmp_path / "between", start, SFT(), table))
    assert trainer.train(again).checksum == kept


def test_running_state_continues_with_the_optimizer(trainer: Trainer, start: str, tmp_path: Path):
    trainer.train(work_of(tmp_path / "1", start, Shifted(), response_rows(), optimizer="continued"))
    state = json.loads((tmp_path / "1/policy-state/state.json").read_text())
    assert state["objective"] == "Shifted"
    assert math.isfinite(state["objective_state"]["state_mean"][1])


def test_bco_goes_on_with_its_shift(trainer: Trainer, start: str, tmp_path: Path):
    rows = response_rows(8)
    counts: list[float] = []
    folder, state = start, None
    for version in (1, 2):
        work = work_of(tmp_path / str(version), folder, BCO(), rows, optimizer="continued", version=version,
                       reference=start, start_state=state)  # fmt: skip
        trainer.train(work)
        folder, state = work.out, work.state_out
        assert state is not None
        about = json.loads((Path(state) / "state.json").read_text())
        counts.append(about["objective_state"]["state_count"][1])
    assert counts == [8.0, 16.0]


@pytest.mark.parametrize("objective", [SimPO(), CPO(), ORPO()])
def test_no_reference_is_read_by_those_that_need_none(
    trainer: Trainer, start: str, other: str, tmp_path: Path, objective: Any
):
    curves = [
        trainer.train(
            work_of(tmp_path / str(place), start, objective, pair_rows(), reference=reference)
        ).curve
        for place, reference in enumerate((None, start, other))
    ]
    assert curves[0] == curves[1] == curves[2]


@pytest.mark.parametrize("objective", [Shifted(), GRPO(beta=0.1), DPO()])
def test_replay_from_a_step_checkpoint_gives_the_same_bytes(
    trainer: Trainer,
    start: str,
    other: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    objective: Any,
):
    table = pair_rows() if isinstance(objective, DPO) else response_rows()
    work = work_of(tmp_path / "whole", start, objective, table, epochs=3, reference=other)
    whole = train(trainer, work, checkpoint_steps=4)
    broken = replace(work, out=str(tmp_path / "broken/policy"), state_out=str(tmp_path / "broken/policy-state"),
                     step_dir=str(tmp_path / "broken/.steps"))  # fmt: skip
    death = Death(step=7).install(monkeypatch)
    with pytest.raises(Died):
        train(trainer, broken, checkpoint_steps=4)
    assert [path.name for path in sorted((tmp_path / "broken/.steps").iterdir())] == ["scores", "step-000004"]
    assert not Path(broken.out).exists()
    resumed = train(trainer, broken, checkpoint_steps=4)
    assert resumed.metrics["resumed_at_step"] == 4
    assert death.taken == 7 + 5
    assert resumed.curve == whole.curve
    assert digest(broken.out) == digest(work.out)
    again = train(
        trainer, broken, checkpoint_steps=4
    )  # nobody has noted the result yet: little is done again
    assert again.metrics["resumed_at_step"] >= again.steps - 4 and digest(broken.out) == digest(work.out)


def test_a_step_checkpoint_of_other_work_is_not_taken_up(trainer: Trainer, start: str, tmp_path: Path):
    work = work_of(tmp_path, start, Likelihood(), response_rows())
    train(trainer, work, checkpoint_steps=2)
    assert (tmp_path / ".policy-steps/step-000002").exists()
    for changed in (replace(work, seed=1), replace(work, lr=5e-4), replace(work, table=response_rows(20))):
        assert train(trainer, changed, checkpoint_steps=100).metrics["resumed_at_step"] == 0


class Explodes(Likelihood):
    at: float = 0.0

    def compute(self, batch: Batch) -> Loss:
        loss = super().compute(batch)
        bad = loss.terms["tokens"].values * (batch["weight"][:, None] - 1).reciprocal()
        return Loss({"tokens": Term(bad, batch["response.mask"], "tokens")})


def test_a_loss_that_is_not_finite_names_its_step_and_keeps_its_rows(
    trainer: Trainer, start: str, tmp_path: Path
):
    rows = response_rows(8, weight=[2.0] * 7 + [1.0])
    with pytest.raises(TrainerError, match=r"step \d of 4 of policy@1: the loss is not finite.*study"):
        trainer.train(work_of(tmp_path, start, Explodes(), rows, batch_size=2))
    (kept,) = tmp_path.glob("policy-failed-step-*.parquet")
    assert 1.0 in pq.read_table(kept)["weight"].to_pylist()
    assert not (tmp_path / "policy").exists()
    after = trainer.train(work_of(tmp_path / "after", start, Likelihood(), response_rows()))
    anew = trainer.train(work_of(tmp_path / "anew", start, Likelihood(), response_rows()))
    assert after.checksum == anew.checksum


class EndlessGradient(Likelihood):
    def compute(self, batch: Batch) -> Loss:
        values = (batch["response.logprobs"] * 0).sqrt() * batch["response.mask"]
        return Loss({"root": Term(values, batch["response.mask"], "tokens")})


def test_a_gradient_that_is_not_finite_stops_training(trainer: Trainer, start: str, tmp_path: Path):
    with pytest.raises(TrainerError, match="step 1 of 3 of policy@1: the gradient is not finite"):
        trainer.train(work_of(tmp_path, start, EndlessGradient(), response_rows()))
    assert list(tmp_path.glob("policy-failed-step-000001.parquet"))


class Refuses(Likelihood):
    def compute(self, batch: Batch) -> Loss:
        if bool((batch["weight"] > 2).any()):
            raise ObjectiveError("Refuses: column 'weight' is over 2.")
        return super().compute(batch)


class Breaks(Likelihood):
    def compute(self, batch: Batch) -> Loss:
        raise KeyError("nothing")


def test_what_an_objective_refuses_is_named_by_its_row(trainer: Trainer, start: str, tmp_path: Path):
    rows = response_rows(8, weight=[1.0] * 6 + [3.0, 1.0])
    with pytest.raises(
        ObjectiveError,
        match=r"node 'train', which makes policy@1: .* over 2\. The row is prompt_id 'p001', sample 2",
    ):
        trainer.train(work_of(tmp_path, start, Refuses(), rows))
    with pytest.raises(TrainerError, match="the objective Breaks raised KeyError"):
        trainer.train(work_of(tmp_path, start, Breaks(), rows))


def test_errors_pickle(trainer: Trainer, start: str, tmp_path: Path):
    met: list[Exception] = []
    for work in (
        work_of(tmp_path, start, Likelihood(), response_rows(4).slice(0, 0)),
        work_of(tmp_path, start, DPO(), response_rows(4)),
        work_of(tmp_path, start, EndlessGradient(), response_rows()),
        work_of(tmp_path, str(tmp_path / "nowhere"), Likelihood(), response_rows()),
    ):
        with pytest.raises((TrainerError, ObjectiveError)) as caught:
            trainer.train(work)
        met.append(caught.value)
    for error in met:
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy)) == (type(error), str(error))


def test_bfloat16_continues_from_float32_masters(start: str, tmp_path: Path):
    """At this learning rate every update is smaller than bfloat16 can show: only masters add them up."""
    trainer = Trainer(spec_of(start, dtype="bfloat16", lr=1e-6))
    table = response_rows()
    place: tuple[str, str | None] = (start, None)
    for version in (1, 2):
        folder = tmp_path / str(version)
        work = work_of(folder, place[0], Likelihood(), table, start_state=place[1], version=version)
        result = trainer.train(work)
        place = (work.out, work.state_out)
    masters = load_file(tmp_path / "2/policy-state/master.safetensors")
    served = load_file(tmp_path / "2/policy/model.safetensors")
    first = load_file(Path(start) / "model.safetensors")
    assert json.loads((tmp_path / "2/policy/config.json").read_text())["dtype"] == "bfloat16"
    moved = [(masters[name] - first[name]).abs().max() for name in masters]
    assert 4e-6 < float(max(moved)) < 8e-6
    for name, tensor in served.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, masters[name].bfloat16())
    again = Trainer(trainer.spec)
    replayed = again.train(
        replace(work, out=str(tmp_path / "again/policy"), state_out=str(tmp_path / "again/state"))
    )
    assert replayed.checksum == result.checksum
    kept = load_file(tmp_path / "again/state/master.safetensors")
    assert all(torch.equal(kept[name], masters[name]) for name in masters)


def test_a_row_over_the_budget_is_trained_alone(trainer: Trainer, start: str, tmp_path: Path):
    table = response_rows(4)
    ids = table["response_ids"].to_pylist()
    long = pa.array([*ids[:3], list(range(1, 60)) * 3], IDS)
    table = table.set_column(table.schema.get_field_index("response_ids"), "response_ids", long)
    result = train(trainer, work_of(tmp_path, start, SFT(), table), tokens_per_micro_batch=64)
    assert result.curve[0]["tokens"] == sum(
        len(row) for row in table["prompt_ids"].to_pylist() + long.to_pylist()
    )


def test_kto_takes_its_second_view(trainer: Trainer, start: str, tmp_path: Path):
    table = response_rows(8)
    table = table.append_column("kl_ids", table["response_ids"].take(pa.array([1, 2, 3, 4, 5, 6, 7, 0])))
    result = trainer.train(work_of(tmp_path, start, KTO(), table))
    assert result.curve[0]["loss"] == pytest.approx(0.5, abs=1e-6)


def test_schedules():
    rates = [schedule("linear", 1.0, 0.2, step, 10) for step in range(10)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[2] == 1.0
    assert rates[9] == pytest.approx(1 / 8)
    assert schedule("cosine", 1.0, 0.0, 5, 10) == pytest.approx(0.5)
    assert [schedule("constant", 2.0, 0.0, step, 3) for step in range(3)] == [2.0] * 3
    assert schedule("cosine", 1.0, 1.0, 9, 10) == 1.0


def test_rows_longer_than_the_model_takes_are_neither_trained_nor_measured(start: str, tmp_path: Path):
    trainer = Trainer(replace(spec_of(start), max_model_len=60))
    table = response_rows(8)
    longer = [ids if row else [1] * 90 for row, ids in enumerate(table["response_ids"].to_pylist())]
    table = table.set_column(table.column_names.index("response_ids"), "response_ids", pa.array(longer, IDS))
    result = trainer.train(work_of(tmp_path / "a", start, SFT(), table))
    without = trainer.train(work_of(tmp_path / "b", start, SFT(), table.slice(1)))
    assert result.checksum == without.checksum
    told = [
        result.metrics[f"examples{end}"] for end in ("", "_left_out", "_failed", "_too_long", "_identical")
    ]
    assert told == [7, 1, 0, 1, 0]
    assert trainer.logprobs(start, [[1], [2]], [[3] * 60, [4, 5]]) == [
        [],
        *trainer.logprobs(start, [[2]], [[4, 5]]),
    ]
    assert Trainer(spec_of(start)).longest == 512
