"""The architecture's own dropout: only while something is learned, the same after a restart, refused where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from selfloop.actors.train.model.dropout import dropout_settings
from selfloop.actors.train.model.zero import Sharded
from selfloop.actors.train.trainer import Trainer
from selfloop.workflows.checks.model import check_model
from selfloop.workflows.config import Config, Lora
from selfloop.workflows.errors import TrainerError
from selfloop.workflows.objectives.dpo import DPO
from selfloop.workflows.objectives.policy_gradient import GRPO
from tests.unit.train.trainer_rows import (
    VOCABULARY,
    Death,
    Died,
    Likelihood,
    pair_rows,
    response_rows,
    spec_of,
    tiny_model,
    work_of,
)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("start"))


def gpt2(folder: Path) -> str:
    """An architecture with dropout layers, and dropout in its config already."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, vocab_size=VOCABULARY)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return str(folder)


def mamba(folder: Path) -> str:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=VOCABULARY, state_size=4)
    MambaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return str(folder)


@pytest.mark.parametrize(
    ("objective", "zero", "lora"),
    [(GRPO(beta=0.1), 0, None), (DPO(), 3, None), (Likelihood(), 0, Lora(rank=4, dropout=0.1))],
)
def test_a_resumed_training_has_the_same_bytes(
    start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: Any, zero: int, lora: Lora | None
):
    spec = spec_of(start, dropout=0.2, zero=zero, lora=lora, checkpoint_steps=4)
    table = pair_rows() if isinstance(objective, DPO) else response_rows()
    wanted = Trainer(spec).train(work_of(tmp_path / "whole", start, objective, table, epochs=3))
    Death(step=7).install(monkeypatch)
    broken = work_of(tmp_path / "broken", start, objective, table, epochs=3)
    with pytest.raises(Died):
        Trainer(spec).train(broken)
    resumed = Trainer(spec).train(broken)
    assert resumed.metrics["resumed_at_step"] == 4
    assert (resumed.curve, resumed.checksum) == (wanted.curve, wanted.checksum)


def test_only_the_forwards_of_a_step_drop(start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Columns (reference and old log-probs, measured ones) are those of a trainer without dropout, bit for bit."""
    seen: list[tuple[bool, bool]] = []
    real = Sharded.outputs

    def outputs(self: Sharded, *given: Any, **more: Any) -> Any:
        found = real(self, *given, **more)
        seen.append((torch.is_grad_enabled(), any(module.training for module in self.dropouts)))
        return found

    monkeypatch.setattr(Sharded, "outputs", outputs)
    rank, plain = Trainer(spec_of(start, dropout=0.5)), Trainer(spec_of(start))
    work = work_of(tmp_path, start, GRPO(beta=0.1), response_rows())
    before = rank.logprobs(start, [[3, 4], [5]], [[5, 6], [7]])
    assert before == plain.logprobs(start, [[3, 4], [5]], [[5, 6], [7]])
    seen.clear()
    dropped = rank.train(work)
    assert set(seen) == {(False, False), (True, True)}
    assert dropped.curve[0]["loss"] != plain.train(replace(work, out=str(tmp_path / "b"))).curve[0]["loss"]
    assert rank.logprobs(work.out, [[3, 4]], [[5, 6]]) == Trainer(plain.spec).logprobs(
        work.out, [[3, 4]], [[5, 6]]
    )


def test_layers_drop_too_and_off_is_off(tmp_path: Path):
    """GPT-2 brings dropout of its own (0.1), which is off unless the config asks for it."""
    folder = gpt2(tmp_path / "gpt2")
    plain, dropping = (Trainer(spec_of(folder, dropout=share)) for share in (0.0, 0.3))
    assert not plain.loaded(False).model.dropouts
    names = {type(module).__name__ for module in dropping.loaded(False).model.dropouts}
    assert "Dropout" in names
    curves = [
        rank.train(work_of(tmp_path / str(place), folder, Likelihood(), response_rows())).curve
        for place, rank in enumerate((plain, dropping))
    ]
    assert curves[0] != curves[1]


def test_an_architecture_without_dropout_is_refused(tmp_path: Path):
    folder = mamba(tmp_path / "mamba")
    said = (
        "has no place that drops anything: looked for were dropout layers and settings like attention_dropout"
    )
    with pytest.raises(TrainerError, match=f"trainer.dropout is 0.1, and MambaForCausalLM {said}"):
        Trainer(spec_of(folder, dropout=0.1))
    asked = Config(recipe="spin", model=folder, trainer={"dropout": 0.1})  # type: ignore[arg-type]
    (problem,) = check_model(asked).problems
    assert said in problem
    assert not check_model(Config(recipe="spin", model=folder)).problems


def test_check_says_where_it_acts(start: str):
    from transformers import AutoConfig

    assert dropout_settings(AutoConfig.from_pretrained(start)) == ["attention_dropout"]
    (note,) = check_model(Config(recipe="spin", trainer={"dropout": 0.1})).notes  # type: ignore[arg-type]
    assert note == "trainer.dropout=0.1 acts on attention_dropout of pocket"
