"""Columns that need whole distributions (MUSCLE, RRPO) or the pooled hidden state (MORE)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from selfloop.actors.train.model import teachers
from selfloop.actors.train.trainer import Trainer
from selfloop.workflows.config import Lora
from selfloop.workflows.errors import TrainerError
from selfloop.workflows.objectives.control import MORE, min_norm
from selfloop.workflows.objectives.maths import full_kl
from selfloop.workflows.objectives.muscle import MUSCLE, teacher_columns
from selfloop.workflows.objectives.rrpo import RRPO
from tests.unit.train.trainer_rows import losses, pair_rows, response_rows, spec_of, tiny_model, work_of

FLOATS = pa.list_(pa.float32())


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("start"), tied=False)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("first"), seed=1, tied=False)


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("second"), seed=2, tied=False)


@pytest.fixture(scope="module")
def trainer(start: str) -> Trainer:
    return Trainer(spec_of(start))


def phrase_rows(count: int = 12) -> pa.Table:
    """Pairs with every second token inside a phrase."""
    rows = pair_rows(count)
    for side in ("chosen", "rejected"):
        marks = [[float(place % 2) for place in range(len(ids))] for ids in rows[f"{side}_ids"].to_pylist()]
        rows = rows.append_column(f"{side}_phrase", pa.array(marks, FLOATS))
    return rows


def model_of(folder: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def logits_of(model: Any, context: list[int], target: list[int]) -> torch.Tensor:
    """(tokens, vocabulary) that predict the target."""
    return model(input_ids=torch.tensor([context + target])).logits[0, len(context) - 1 : -1]


def test_a_step_of_muscle_is_that_of_a_plain_loop(
    trainer: Trainer, start: str, first: str, second: str, tmp_path: Path
):
    rows = response_rows(8)
    work = work_of(tmp_path, start, MUSCLE(), rows, batch_size=8, frozen={"first": first, "second": second})
    found = trainer.train(work)
    student, old, new = (model_of(folder) for folder in (start, first, second))
    total, count, right = torch.zeros(()), 0, 0.0
    for row in rows.to_pylist():
        targets = torch.tensor(row["response_ids"])
        mine, theirs, others = (
            logits_of(model, row["prompt_ids"], row["response_ids"]) for model in (student, old, new)
        )
        kl_first, kl_second, correct = teacher_columns(mine, theirs, others, targets)
        total = total + torch.where(correct.detach() > 0, kl_second, kl_first).sum()
        count += len(targets)
        right += float(correct.mean()) / 8
    loss = total / count
    loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    torch.optim.AdamW(student.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0).step()
    assert found.curve[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert found.curve[0]["correct"] == pytest.approx(right, abs=1e-6)
    made = load_file(Path(work.out) / "model.safetensors")
    for name, param in student.named_parameters():
        torch.testing.assert_close(made[name], param.data, atol=2e-5, rtol=1e-4)


def test_a_student_that_is_its_teachers_has_nothing_to_learn(trainer: Trainer, start: str, tmp_path: Path):
    work = work_of(tmp_path, start, MUSCLE(), response_rows(8), frozen={"first": start, "second": start})
    line = trainer.train(work).curve[0]
    assert line["loss"] == pytest.approx(0, abs=1e-6)
    assert line["grad_norm"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("objective", [MUSCLE(nll_coefficient=0.1), RRPO(alpha=0.5)])
def test_micro_batches_and_chunks_do_not_matter(
    trainer: Trainer, start: str, first: str, second: str, tmp_path: Path, objective: Any,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    rows = phrase_rows() if isinstance(objective, RRPO) else response_rows(12)
    curves = []
    for budget, chunk in ((40, 2**26), (100_000, 2**26), (100_000, 4 * 64 * 5)):
        monkeypatch.setattr(teachers, "CHUNK_BYTES", chunk)
        work = work_of(tmp_path / f"{budget}-{chunk}", start, objective, rows, epochs=3, reference=first,
                       frozen={"first": first, "second": second})  # fmt: skip
        curves.append(losses(trainer, work, tokens_per_micro_batch=budget))
    np.testing.assert_allclose(curves[0], curves[1], rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(curves[2], curves[1], rtol=2e-4, atol=1e-5)
    assert curves[1][-1] < curves[1][0]


def test_the_kl_of_rrpo_is_from_the_reference(trainer: Trainer, start: str, first: str, tmp_path: Path):
    rows = phrase_rows(8)
    work = work_of(tmp_path / "a", start, RRPO(alpha=1.0), rows, batch_size=8, reference=first)
    found = trainer.train(work).curve[0]
    policy, reference = model_of(start), model_of(first)
    with torch.no_grad():
        kls = [full_kl(*(logits_of(one, row["prompt_ids"], row["chosen_ids"]) for one in (policy, reference))).sum()
               for row in rows.to_pylist()]  # fmt: skip
    weights = rows["weight"].to_numpy()
    assert found["loss_kl"] == pytest.approx(float(np.mean(weights * np.array(kls))), rel=1e-4)
    own = trainer.train(work_of(tmp_path / "b", start, RRPO(alpha=1.0), rows, batch_size=8)).curve[0]
    assert own["loss_kl"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("zero", "lora"), [(2, None), (3, None), (3, Lora(rank=4)), (0, Lora(rank=4))])
def test_teachers_work_at_every_stage_and_with_adapters(
    start: str, first: str, second: str, tmp_path: Path, zero: int, lora: Lora | None
):
    curves = []
    for stage in (0, zero):
        rank = Trainer(spec_of(start, zero=stage, lora=lora, gradient_checkpointing=stage == 3))
        work = work_of(tmp_path / str(stage), start, MUSCLE(), response_rows(12), epochs=2,
                       frozen={"first": first, "second": second})  # fmt: skip
        curves.append(losses(rank, work))
    np.testing.assert_allclose(curves[1], curves[0], atol=1e-4)
    assert curves[0][-1] < curves[0][0]


def test_teachers_that_cannot_be_are_refused(trainer: Trainer, start: str, first: str, tmp_path: Path):
    work = work_of(tmp_path, start, MUSCLE(), response_rows(8), frozen={"first": first})
    with pytest.raises(TrainerError, match=r"MUSCLE reads kl_second.*frozen=\{'second': model\}"):
        trainer.train(work)
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
                         intermediate_size=32, vocab_size=99)  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "wide")
    with pytest.raises(TrainerError, match="has 99 tokens where the policy has 64"):
        trainer.train(replace(work, frozen={"first": first, "second": str(tmp_path / "wide")}))


def test_more_weighs_tasks_by_the_gradients_of_its_head(trainer: Trainer, start: str, tmp_path: Path):
    """The weights of the first step follow from the hidden states that transformers gives (a new head is zero)."""
    from transformers import AutoModel

    rows = pair_rows(16).drop_columns(["weight"])
    rows = rows.append_column("group", pa.array([row // 2 % 2 for row in range(16)]))
    objective = MORE(tasks=2, momentum=1.0)
    work = work_of(
        tmp_path, start, objective, rows, head=True, role="reward", reference=None, batch_size=16, epochs=10
    )
    result = trainer.train(work)
    model: Any = AutoModel.from_pretrained(start, dtype=torch.float32)
    gradients = torch.zeros(2, 32)
    with torch.no_grad():
        for row in rows.to_pylist():
            one, other = (model(input_ids=torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]])).last_hidden_state[0, -1]
                          for side in ("chosen", "rejected"))  # fmt: skip
            gradients[row["group"]] += -0.5 * (one - other) / 8
    weights = min_norm(gradients)
    assert [result.curve[0][f"weight_{task}"] for task in range(2)] == pytest.approx(
        weights.tolist(), abs=1e-4
    )
    assert sum(weights.tolist()) == pytest.approx(1)
    assert result.curve[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert result.curve[-1]["loss"] < 0.6
    split = losses(trainer, replace(work, out=str(tmp_path / "b")), tokens_per_micro_batch=40)
    np.testing.assert_allclose(split, [line["loss"] for line in result.curve], rtol=1e-3, atol=1e-4)
