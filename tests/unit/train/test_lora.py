from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from selfloop.actors.train.spec import TrainResult, TrainWork
from selfloop.actors.train.trainer import Trainer
from selfloop.actors.weights.receipt import receipt_of
from selfloop.workflows.checks import machine as checks_machine
from selfloop.workflows.config import Config, Lora, load_config
from selfloop.workflows.errors import InputError, TrainerError
from selfloop.workflows.objectives.dpo import DPO
from selfloop.workflows.objectives.policy_gradient import GRPO
from selfloop.workflows.pocket.source import POCKET_MODEL
from selfloop.workflows.run.setup import Setup
from tests.unit.train.trainer_rows import (
    Death,
    Died,
    Likelihood,
    pair_rows,
    response_rows,
    spec_of,
    tiny_model,
    work_of,
)

LORA = Lora(rank=4, alpha=8)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("start"), tied=False)


@pytest.fixture(scope="module")
def trainer(start: str) -> Trainer:
    return Trainer(spec_of(start, lora=LORA, lr=1e-2))


def tensors(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def same(left: str | Path, right: str | Path) -> bool:
    one, other = tensors(left), tensors(right)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def follow(trainer: Trainer, work: TrainWork, folder: Path, **changes: Any) -> tuple[TrainWork, TrainResult]:
    """The next train node: from what `work` left."""
    after = work_of(folder, work.out, work.objective, work.table, start_state=work.state_out, version=2,
                    **({"optimizer": work.optimizer} | changes))  # fmt: skip
    return after, trainer.train(after)


def test_the_loss_goes_down_and_only_targets_change(trainer: Trainer, start: str, tmp_path: Path):
    work = work_of(tmp_path, start, Likelihood(), response_rows(), epochs=6)
    result = trainer.train(work)
    assert np.mean([line["loss"] for line in result.curve[-3:]]) < result.curve[0]["loss"] - 0.05
    before, after = tensors(start), tensors(work.out)
    assert before.keys() == after.keys()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {name for name in after if name.endswith("_proj.weight")}
    assert receipt_of(after.items()) == result.receipt == trainer.weights()[0]


def test_what_is_published_is_what_peft_merges(trainer: Trainer, start: str, tmp_path: Path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    work = work_of(tmp_path, start, Likelihood(), response_rows())
    trainer.train(work)
    base = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    loaded: Any = PeftModel.from_pretrained(base, work.state_out)
    ids = torch.tensor([[3, 4, 5, 6]])
    unmerged = loaded(input_ids=ids).logits.log_softmax(-1)
    merged = loaded.merge_and_unload().state_dict()
    published = tensors(work.out)
    assert all(torch.equal(merged[name], published[name]) for name in published)
    kept = load_file(Path(str(work.state_out)) / "adapter_model.safetensors")
    name = "model.layers.1.mlp.down_proj"
    a, b = (kept[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    assert torch.equal(published[f"{name}.weight"], tensors(start)[f"{name}.weight"] + (b @ a) * (8 / 4))
    found = trainer.logprobs(None, [[3, 4]], [[5, 6]])[0]
    assert found == pytest.approx([unmerged[0, 1, 5].item(), unmerged[0, 2, 6].item()], abs=1e-5)
    assert found == pytest.approx(trainer.logprobs(work.out, [[3, 4]], [[5, 6]])[0], abs=1e-5)


def test_another_folder_does_not_see_the_adapters(trainer: Trainer, start: str, tmp_path: Path):
    plain = Trainer(spec_of(start)).logprobs(start, [[3, 4]], [[5, 6]])
    work = work_of(tmp_path, start, Likelihood(), response_rows())
    result = trainer.train(work)
    assert trainer.logprobs(start, [[3, 4]], [[5, 6]]) == plain
    assert trainer.weights()[0] == result.receipt  # loaded anew, merged already


def test_the_first_dpo_loss_is_ln_2_and_a_fresh_adapter_changes_nothing(
    trainer: Trainer, start: str, tmp_path: Path
):
    result = trainer.train(work_of(tmp_path, start, DPO(), pair_rows().drop_columns(["weight"])))
    assert result.curve[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    still = trainer.train(work_of(tmp_path / "still", start, Likelihood(), response_rows(), lr=1e-30))
    assert still.steps == 3
    assert same(start, tmp_path / "still/policy")


def test_two_continued_train_nodes_are_one_adapter(trainer: Trainer, start: str, tmp_path: Path):
    """Two nodes of one step each are one node of two steps, but for the order of the rows (here all in one batch)."""
    rows = response_rows(8)
    whole = work_of(tmp_path / "whole", start, Likelihood(), rows, optimizer="continued", epochs=2)
    trainer.train(whole)
    one = work_of(tmp_path / "1", start, Likelihood(), rows, optimizer="continued")
    trainer.train(one)
    two, _ = follow(trainer, one, tmp_path / "2")
    for name, tensor in tensors(whole.out).items():
        torch.testing.assert_close(tensors(two.out)[name], tensor, atol=2e-6, rtol=1e-5)
    states = [json.loads((Path(str(work.state_out)) / "state.json").read_text()) for work in (one, two)]
    assert [state["base"] for state in states] == [states[0]["base"]] * 2
    assert states[0]["base"]["folder"] == start
    delta = (
        tensors(two.out)["model.layers.0.mlp.up_proj.weight"]
        - tensors(start)["model.layers.0.mlp.up_proj.weight"]
    )
    assert torch.linalg.matrix_rank(delta) == 4


@pytest.mark.parametrize("optimizer", ["fresh", "continued"])
def test_the_adapter_goes_on_from_disk_as_from_memory(
    trainer: Trainer, start: str, tmp_path: Path, optimizer: Any
):
    one = work_of(tmp_path / "1", start, Likelihood(), response_rows(), optimizer=optimizer)
    trainer.train(one)
    kept, _ = follow(trainer, one, tmp_path / "memory")
    trainer.train(work_of(tmp_path / "between", start, Likelihood(), response_rows(seed=3)))
    again, _ = follow(trainer, one, tmp_path / "disk")
    anew, _ = follow(Trainer(trainer.spec), one, tmp_path / "anew")
    assert same(kept.out, again.out)
    assert same(kept.out, anew.out)


@pytest.mark.parametrize("zero", [0, 1, 3])
def test_scoring_the_merged_checkpoint_does_not_merge_it_twice(start: str, tmp_path: Path, zero: int):
    """What was scored in between is a base without adapters: the next training loads base and adapter apart again."""
    rank = Trainer(spec_of(start, lora=LORA, lr=1e-2, zero=zero))
    one = work_of(tmp_path / "1", start, Likelihood(), response_rows())
    rank.train(one)
    for folder in (start, one.out):
        rank.logprobs(folder, [[1, 2]], [[3]])
    two, _ = follow(rank, one, tmp_path / "2")
    anew, _ = follow(Trainer(rank.spec), one, tmp_path / "anew")
    assert same(two.out, anew.out)


@pytest.mark.parametrize(
    ("objective", "zero"), [(GRPO(beta=0.1), 0), (DPO(), 0), (Likelihood(), 1), (Likelihood(), 3)]
)
def test_a_resumed_training_has_the_same_bytes_with_dropout_too(
    start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: Any, zero: int
):
    rank = Trainer(spec_of(start, lora=Lora(rank=4, dropout=0.2), zero=zero, checkpoint_steps=4))
    table = pair_rows() if isinstance(objective, DPO) else response_rows()
    whole = work_of(tmp_path / "whole", start, objective, table, epochs=3)
    wanted = rank.train(whole)
    Death(step=7).install(monkeypatch)
    broken = work_of(tmp_path / "broken", start, objective, table, epochs=3)
    with pytest.raises(Died):
        rank.train(broken)
    assert (tmp_path / "broken/.policy-steps/step-000004/adapter_model.safetensors").exists()
    resumed = Trainer(rank.spec).train(broken)
    assert resumed.metrics["resumed_at_step"] == 4
    assert resumed.curve == wanted.curve
    assert resumed.checksum == wanted.checksum
    assert same(whole.out, broken.out)


def test_dropout_trains_and_is_off_when_nothing_is_trained(start: str, tmp_path: Path):
    rank = Trainer(spec_of(start, lora=Lora(rank=4, dropout=0.5), lr=1e-2))
    work = work_of(tmp_path / "a", start, Likelihood(), response_rows())
    dropped = rank.train(work)
    again = Trainer(rank.spec).train(
        replace(work, out=str(tmp_path / "b/policy"), state_out=str(tmp_path / "b/s"))
    )
    assert again.checksum == dropped.checksum
    plain = Trainer(spec_of(start, lora=Lora(rank=4), lr=1e-2))
    assert (
        plain.train(work_of(tmp_path / "c", start, Likelihood(), response_rows())).checksum
        != dropped.checksum
    )
    assert rank.logprobs(None, [[3, 4]], [[5, 6]]) == rank.logprobs(None, [[3, 4]], [[5, 6]])
    assert rank.logprobs(None, [[3, 4]], [[5, 6]])[0] == pytest.approx(
        rank.logprobs(work.out, [[3, 4]], [[5, 6]])[0]
    )


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_every_stage_follows_stage_0(trainer: Trainer, start: str, tmp_path: Path, zero: int):
    rank = Trainer(replace(trainer.spec, zero=zero, gradient_checkpointing=zero == 3))
    curves = []
    for name, one in (("0", trainer), ("zero", rank)):
        first = work_of(
            tmp_path / name / "1", start, Likelihood(), response_rows(), optimizer="continued", epochs=2
        )
        curves.append([line["loss"] for line in one.train(first).curve])
        one.logprobs(start, [[1, 2]], [[3]])
        second, result = follow(one, first, tmp_path / name / "2")
        curves[-1] += [line["loss"] for line in result.curve]
        assert receipt_of(tensors(second.out).items()) == result.receipt == one.weights()[0]
        before, after = tensors(start), tensors(second.out)
        assert all(torch.equal(before[key], after[key]) for key in before if not key.endswith("_proj.weight"))
    np.testing.assert_allclose(curves[1], curves[0], atol=1e-4)


def test_bfloat16_adapters_keep_float32_masters(start: str, tmp_path: Path):
    rank = Trainer(spec_of(start, lora=LORA, dtype="bfloat16", lr=1e-3))
    one = work_of(tmp_path / "1", start, Likelihood(), response_rows())
    rank.train(one)
    two, result = follow(rank, one, tmp_path / "2")
    kept = load_file(Path(str(two.state_out)) / "adapter_model.safetensors")
    served = tensors(two.out)
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in kept.values())
    name = "model.layers.0.self_attn.q_proj"
    a, b = (kept[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    base = tensors(start)[f"{name}.weight"].bfloat16().float()
    assert torch.equal(served[f"{name}.weight"], (base + b @ a * 2).bfloat16())
    assert receipt_of(served.items()) == result.receipt == rank.weights()[0]


def test_named_targets_alone_are_adapted(start: str, tmp_path: Path):
    rank = Trainer(spec_of(start, lora=Lora(rank=2, targets=("q_proj", "v_proj")), lr=1e-2))
    work = work_of(tmp_path, start, Likelihood(), response_rows())
    rank.train(work)
    before, after = tensors(start), tensors(work.out)
    changed = {name.split(".")[-2] for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"q_proj", "v_proj"}
    with pytest.raises(TrainerError, match=r"trainer\.lora\.targets=\('nothing',\) cannot be followed"):
        Trainer(spec_of(start, lora=Lora(targets=("nothing",))))


def test_a_base_that_changed_or_went_is_an_error(start: str, tmp_path: Path):
    base = shutil.copytree(start, tmp_path / "base")
    rank = Trainer(spec_of(str(base), lora=LORA))
    one = work_of(tmp_path / "1", str(base), Likelihood(), response_rows())
    rank.train(one)
    other = tensors(base)
    other["model.norm.weight"] = other["model.norm.weight"] + 1
    save_file(other, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainerError, match="tensors have changed since"):
        follow(Trainer(spec_of(start, lora=LORA)), one, tmp_path / "2")
    shutil.rmtree(base)
    with pytest.raises(TrainerError, match="not there any more"):
        follow(Trainer(spec_of(start, lora=LORA)), one, tmp_path / "3")


def key_of(overrides: list[str]) -> Any:
    """What the content key of a train node knows of the trainer."""
    from selfloop.workflows.executor.run import versions

    setup = Setup(load_config("quickstart", overrides))
    return versions(setup, *setup.specs(0)[:2])["trainer"]


def test_the_setting_reaches_the_trainer_and_its_key():
    config = load_config("quickstart", ["trainer.lora.rank=8", "trainer.lora.targets=[q_proj]"])
    spec = Setup(config).specs(0)[1]
    assert spec.lora == Lora(rank=8, targets=("q_proj",))
    assert spec.lora.scale == 16
    assert Config(recipe="spin").trainer.lora is None
    keys = [
        json.dumps(key_of(more), default=str)
        for more in ([], ["trainer.lora.rank=8"], ["trainer.lora.rank=4"])
    ]
    assert len(set(keys)) == 3
    for wrong, what in (
        ("trainer.lora.rnak=8", "Did you mean trainer.lora.rank"),
        ("trainer.lora.rank=0", "at least 1"),
        ("trainer.lora.targets=[lm_head]", "not its embedding or head"),
    ):
        with pytest.raises(InputError, match=what):
            load_config("quickstart", [wrong])


def test_adapters_need_less_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checks_machine, "count_gpus", lambda: 0)
    monkeypatch.setattr(
        checks_machine.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**60, 0, 2**60)
    )
    parameters = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 15
    full, adapted = (
        load_config("expert-iteration", []),
        load_config("expert-iteration", ["trainer.lora.rank=8"]),
    )
    (problem,) = checks_machine.check_space(full, tmp_path, parameters)
    assert "trainer.lora.rank=16" in problem
    assert not list(checks_machine.check_space(adapted, tmp_path, parameters))


def test_the_pocket_model_learns_with_adapters(tmp_path: Path):
    """The built-in model, in float32 over a checkpoint that is stored in bfloat16."""
    rank = Trainer(spec_of(str(POCKET_MODEL), lora=Lora(rank=8), lr=2e-3, tokens_per_micro_batch=4096))
    work = work_of(tmp_path, str(POCKET_MODEL), Likelihood(), response_rows(16), epochs=3)
    result = rank.train(work)
    assert result.curve[-1]["loss"] < result.curve[0]["loss"] - 0.5
    before, after = tensors(POCKET_MODEL), tensors(work.out)
    assert all(
        torch.equal(before[name].float(), after[name]) for name in before if not name.endswith("_proj.weight")
    )
