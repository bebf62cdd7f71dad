"""One rank of the trainer as an actor: reads its rows from their parts and hands weights out in buckets."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from selfloop.actors.train.fake import FakeTrainer
from selfloop.actors.train.spec import TrainerSpec, TrainNode, TrainResult
from selfloop.actors.train.telling import Told
from selfloop.actors.train.trainer import Trainer
from selfloop.workflows.data.batches import Counts
from selfloop.workflows.errors import TrainerError
from selfloop.workflows.flow.verbs.base import Context, Op
from selfloop.workflows.flow.verbs.batch import run_batch
from selfloop.workflows.store.parts import Rows, packed

__all__ = ["RankActor", "TrainerScorer"]


class TrainerScorer:
    """A trainer rank as `measure` wants it."""

    def __init__(self, trainer: Trainer | FakeTrainer):
        self.trainer = trainer

    async def measure(
        self,
        what: str,
        folder: str,
        contexts: list[list[int]],
        targets: list[list[int]],
        groups: Sequence[int],
    ) -> list[Any]:
        return measure(self.trainer, what, folder, contexts, targets, groups)


def measure(
    trainer: Any,
    what: str,
    folder: str,
    contexts: list[list[int]],
    targets: list[list[int]],
    groups: Sequence[int],
) -> list[Any]:
    """What a trainer's forward gives of targets after contexts: its method `what`.

    groups: sizes of consecutive prompt groups. On CPU each has a forward of its own: what else is in a forward changes
    the last bits of its numbers, and rows shall not depend on the batch they came in.
    """
    if not hasattr(trainer, what):
        raise TrainerError(
            f"measure(…, {what!r}) needs a model with a scalar head, and this trainer holds none yet. Judge with a prompt "
            "or a rule instead"
        )
    ask = getattr(trainer, what)
    if getattr(trainer, "spec", None) and trainer.spec.device != "cpu":
        return ask(folder, contexts, targets)
    ends = list(itertools.accumulate(groups, initial=0))
    return [
        one
        for low, high in itertools.pairwise(ends)
        for one in ask(folder, contexts[low:high], targets[low:high])
    ]


class RankActor:
    """`selfloop.actors.train.trainer.Trainer` behind Ray: every rank gets every call."""

    def __init__(self, spec: TrainerSpec, rank: int, fake: bool = False):
        self.spec = spec
        self.rank = rank
        self.fake = fake
        self.told: Told | None = None

    def ready(self) -> bool:
        return True

    def address(self) -> tuple[str, int]:
        """Where this rank can be met by the others (asked of the first one)."""
        import ray

        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), free.getsockname()[1]

    def join(self, master: tuple[str, int]) -> bool:
        """Meet the other ranks and build the model; returns when all are there."""
        spec = self.spec
        self.trainer = FakeTrainer(spec.model) if self.fake else Trainer(spec, self.rank, spec.ranks, master)
        self.trainer.tell = self.hear
        return True

    def hear(self, told: Told) -> None:
        self.told = told

    def progress(self) -> Told | None:
        """How far the training is, answered in a thread beside it."""
        return self.told

    def train(self, node: TrainNode) -> TrainResult:
        """Train on committed rows, once it is sure that the weights which the recipe asked for wrote them."""
        return self.trainer.train(node.opened())

    def logprobs(
        self, folder: str | None, contexts: list[list[int]], targets: list[list[int]]
    ) -> list[list[float]]:
        return self.trainer.logprobs(folder, contexts, targets)

    def run(self, op: Op, context: Context, *inputs: Rows) -> tuple[pa.Buffer, Counts]:
        """Run a `measure` node on one batch: its rows, packed, and what was counted of them."""
        context.scorer = TrainerScorer(self.trainer)
        table, counts = asyncio.run(run_batch(op, context, inputs))
        return packed(table), counts

    def weights(self) -> tuple[dict[str, str], list[Any]]:
        """The receipt of the weights now loaded, and references to their buckets (first rank only)."""
        import ray

        from selfloop.actors.weights.buckets import pack

        receipt, tensors = self.trainer.weights()
        return receipt, [ray.put(bucket) for bucket in pack(tensors)]
