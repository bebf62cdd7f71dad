"""A tiny random Qwen2 and rows for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest

from selfloop.actors.train.spec import TrainerSpec, TrainWork
from selfloop.actors.train.trainer import Trainer
from selfloop.workflows.objectives.base import Batch, Loss, Objective, Term

VOCABULARY = 64
IDS = pa.list_(pa.int32())


def tiny_model(folder: Path, seed: int = 0, tied: bool = True, dtype: str = "float32") -> str:
    """A checkpoint folder of a Qwen2 with 30 thousand parameters."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                         intermediate_size=64, vocab_size=VOCABULARY, tie_word_embeddings=tied, initializer_range=0.3,
                         max_position_embeddings=512)  # fmt: skip
    Qwen2ForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return str(folder)


def tokens(rng: np.random.Generator, low: int, high: int) -> list[int]:
    return rng.integers(1, VOCABULARY, rng.integers(low, high + 1)).tolist()


def pair_rows(count: int = 24, seed: int = 0, longest: int = 20) -> pa.Table:
    """Preference pairs of random tokens, two a prompt group."""
    rng = np.random.default_rng(seed)
    sides = {side: [tokens(rng, 1, longest) for _ in range(count)] for side in ("chosen", "rejected")}
    return pa.table({
        "prompt_id": [f"p{row // 2:03d}" for row in range(count)],
        "chosen_sample": pa.array([row % 2 for row in range(count)], pa.int64()),
        "prompt_ids": pa.array([tokens(rng, 2, 12) for _ in range(count)], IDS),
        **{f"{side}_ids": pa.array(ids, IDS) for side, ids in sides.items()},
        "weight": rng.uniform(0.5, 1.5, count),
    })  # fmt: skip


def response_rows(count: int = 24, seed: int = 0, longest: int = 20, **columns: Any) -> pa.Table:
    """Single responses of random tokens, four a prompt group."""
    rng = np.random.default_rng(seed)
    responses = [tokens(rng, 1, longest) for _ in range(count)]
    return pa.table({
        "prompt_id": [f"p{row // 4:03d}" for row in range(count)],
        "sample": pa.array([row % 4 for row in range(count)], pa.int64()),
        "prompt_ids": pa.array([tokens(rng, 2, 12) for _ in range(count)], IDS),
        "response_ids": pa.array(responses, IDS),
        "response_logprobs": pa.array([[-1.0] * len(ids) for ids in responses], pa.list_(pa.float32())),
        "label": [float(row % 2) for row in range(count)],
        "advantages": rng.normal(size=count),
        "status": ["ok"] * count,
        **columns,
    })  # fmt: skip


def spec_of(model: str, **changes: Any) -> TrainerSpec:
    return TrainerSpec(
        **({"model": model, "lr": 1e-3, "batch_size": 8, "tokens_per_micro_batch": 256} | changes)
    )


def work_of(folder: Path, start: str, objective: Objective, table: pa.Table, **changes: Any) -> TrainWork:
    """A train node of policy@1 that writes into `folder`."""
    settings: dict[str, Any] = {
        "role": "policy", "version": 1, "start": start, "start_state": None, "reference": start,
        "objective": objective, "table": table, "optimizer": "fresh", "out": str(folder / "policy"),
        "state_out": str(folder / "policy-state"), "step_dir": str(folder / ".policy-steps"),
    }  # fmt: skip
    return TrainWork(**(settings | changes))


class Likelihood(Objective):
    """Two terms with different normalizers, to see global counts at work."""

    optional: ClassVar[tuple[str, ...]] = ("weight",)

    def compute(self, batch: Batch) -> Loss:
        logprobs, mask = batch["response.logprobs"], batch["response.mask"]
        mean = (logprobs * mask).sum(-1) / mask.sum(-1)
        return Loss(
            {"tokens": Term(-logprobs, mask, "tokens"), "rows": Term(-mean, None, "examples", 0.5)},
            logs={"likelihood": mean.detach()},
        )


class Shifted(Objective):
    """Statistics over the step and running state: the loss depends on both."""

    statistic_names: ClassVar[tuple[str, ...]] = ("total", "rows")

    def sums(self, batch: Batch) -> dict[str, Any]:
        totals = (batch["response.logprobs"] * batch["response.mask"]).sum(-1)
        return {"total": totals.sum(), "rows": totals.new_tensor(float(len(totals)))}

    def compute(self, batch: Batch) -> Loss:
        totals = (batch["response.logprobs"] * batch["response.mask"]).sum(-1)
        mean = batch["total"].reshape(-1)[0] / batch["rows"].reshape(-1)[0]
        kept = batch.get("state_mean")
        moving = mean if kept is None else 0.5 * kept.reshape(-1)[0] + 0.5 * mean
        values = (totals - moving.float().detach()).square() / 100
        return Loss({"shifted": Term(values)}, state={"state_mean": moving.detach()})


def losses(trainer: Trainer, work: TrainWork, **changes: Any) -> list[float]:
    """The loss of each step, with some settings changed for this training."""
    before = trainer.spec
    trainer.spec = replace(before, **changes)
    try:
        return [line["loss"] for line in trainer.train(work).curve]
    finally:
        trainer.spec = before


class Died(Exception):
    """A rank's death in a test."""


@dataclass
class Death:
    """Every training dies in this step. taken: steps tried so far."""

    step: int
    taken: int = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Death:
        """From now on; only once."""
        from selfloop.actors.train.step import Training

        real = Training.step

        def dying(training: Training, index: int, lr: float) -> Any:
            self.taken += 1
            if self.taken == self.step:
                raise Died
            return real(training, index, lr)

        monkeypatch.setattr(Training, "step", dying)
        return self
