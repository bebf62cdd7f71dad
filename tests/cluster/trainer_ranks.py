"""What each of two ranks does in tests/cluster/test_trainer_ranks.py; started as a process."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from selfloop.actors.train.spec import TrainerSpec, TrainWork
from selfloop.actors.train.trainer import Trainer
from selfloop.workflows.config import Lora
from selfloop.workflows.errors import SelfloopError
from selfloop.workflows.objectives.base import Batch, Loss
from selfloop.workflows.objectives.dpo import DPO
from selfloop.workflows.objectives.muscle import MUSCLE
from selfloop.workflows.objectives.reward_model import BradleyTerry
from tests.unit.train.trainer_rows import Likelihood, Shifted, pair_rows, response_rows, spec_of, work_of


class Dies(Likelihood):
    """Kills its rank in the second step."""

    def compute(self, batch: Batch) -> Loss:
        if os.environ.get("DIES") == "now" and batch["response.logprobs"].requires_grad:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().compute(batch)


def lora_spec(model: str, **changes: Any) -> TrainerSpec:
    return spec_of(model, lora=Lora(rank=4), lr=1e-2, **changes)


def lora_work(folder: Path, model: str) -> TrainWork:
    return work_of(folder, model, Likelihood(), response_rows(15), epochs=2)


def other_works(folder: Path, model: str, other: str) -> dict[str, TrainWork]:
    """A reward model, and a student of two teachers. An odd number of rows: one rank works on dummies at times."""
    reward = work_of(
        folder / "reward", model, BradleyTerry(), pair_rows(15), epochs=2, head=True, reference=None
    )
    teachers = {"first": other, "second": model}
    student = work_of(folder / "student", model, MUSCLE(), response_rows(9), epochs=2, frozen=teachers)
    return {"reward": reward, "student": student}


def main(folder: Path, model: str, other: str, rank: int, port: int) -> None:
    """Train under every ZeRO stage, with objectives that need sums over ranks, then lose a rank."""
    found: dict[str, object] = {}
    for zero in range(4):
        spec = spec_of(model, zero=zero, ranks=2, lr=1e-2, gradient_checkpointing=zero == 3)
        trainer = Trainer(spec, rank, 2, ("127.0.0.1", port))
        place = folder / f"zero{zero}"
        first = work_of(place / "1", model, DPO(nll_coefficient=0.1), pair_rows(15), reference=other, epochs=2,
                        optimizer="continued")  # fmt: skip
        one = trainer.train(first)
        contexts, targets = [[1, 2], [3, 4, 5], [6]], [[7, 8], [9], [1, 2, 3]]
        scores = trainer.logprobs(None, contexts, targets)
        trainer.logprobs(other, contexts, targets)
        receipt, tensors = trainer.weights()
        second = work_of(place / "2", first.out, Shifted(), response_rows(9), optimizer="continued", version=2,
                         start_state=first.state_out)  # fmt: skip
        two = trainer.train(second)
        found[f"zero{zero}"] = {
            "curves": [[line["loss"] for line in result.curve] for result in (one, two)],
            "norms": [line["grad_norm"] for line in one.curve], "scores": scores, "tensors": len(tensors),
            "receipts": [receipt == one.receipt, len(receipt)], "state": one.checksum,
        }  # fmt: skip
    change = Trainer(spec_of(model, zero=1, ranks=2, lr=1e-2), rank, 2, ("127.0.0.1", port))
    first = work_of(folder / "zero3" / "1", model, Shifted(), response_rows(9))
    work = work_of(folder / "one-after-three", first.out, Shifted(), response_rows(9), optimizer="continued", version=2,
                   start_state=first.state_out)  # fmt: skip
    found["zero1 after zero3"] = [line["loss"] for line in change.train(work).curve]
    adapted = Trainer(lora_spec(model, zero=3, ranks=2), rank, 2, ("127.0.0.1", port))
    work = lora_work(folder / "lora", model)
    result = adapted.train(work)
    found["lora"] = {
        "curve": [line["loss"] for line in result.curve],
        "received": adapted.weights()[0] == result.receipt,
    }
    whole = Trainer(spec_of(model, zero=3, ranks=2, lr=1e-2), rank, 2, ("127.0.0.1", port))
    for name, work in other_works(folder / "two", model, other).items():
        result = whole.train(work)
        received = whole.weights()[0] == result.receipt
        found[name] = {"curve": [line["loss"] for line in result.curve], "received": received}
    trainer = Trainer(spec_of(model, ranks=2), rank, 2, ("127.0.0.1", port))
    bad = response_rows(8, weight=[1.0] * 7 + [float("1e38")])
    for name, rows in (("empty", bad.slice(0, 0)), ("missing", bad.drop_columns(["prompt_ids"]))):
        try:
            trainer.train(work_of(folder / "bad", model, Likelihood(), rows))
        except SelfloopError as error:
            found[name] = type(error).__name__
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
    os.environ["DIES"] = "now" if rank == 1 else ""
    try:
        trainer.train(work_of(folder / "dead", model, Dies(), response_rows(8)))
    except SelfloopError as error:
        (folder / "death.txt").write_text(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
