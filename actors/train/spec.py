"""What trainer ranks are started with, are given for a train node, and give back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from selfloop.workflows.flow.provenance import Writers, refuse_strangers
from selfloop.workflows.objectives.base import Objective
from selfloop.workflows.store.parts import Rows, read_batches

if TYPE_CHECKING:
    from selfloop.workflows.config import Lora

__all__ = ["TrainNode", "TrainResult", "TrainWork", "TrainerSpec"]


@dataclass(frozen=True)
class TrainerSpec:
    """What ranks are started with. model: a Hugging Face folder (architecture, tokenizer). lr, batch_size: defaults of
    a train node. warmup, schedule, floor: as in `training.schedule`. batch_size: examples an optimizer step, over all
    ranks. dropout: of the architecture itself. bfloat16 keeps float32 master weights; at ZeRO 0 it runs as ZeRO 1, with the
    same result. max_model_len: tokens of the longest sequence, at most the model's positions. lora: train adapters on a
    frozen base."""

    model: str
    ranks: int = 1
    zero: int = 0
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int = 1
    lr: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float | None = 1.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: float = 0.0
    floor: float = 0.0
    dropout: float = 0.0
    batch_size: int = 64
    tokens_per_micro_batch: int = 8192
    checkpoint_steps: int = 50
    gradient_checkpointing: bool = False
    max_model_len: int | None = None
    lora: Lora | None = None


@dataclass(frozen=True)
class TrainWork:
    """One train node: role@version is made from `start` (and the float32 masters in `start_state`, if that is given).

    reference: folder of the model that reference log-probs are of. optimizer: `continued` takes up the moments in
    `start_state`, which a train node with `continued` leaves there. out, state_out: folders to write. step_dir: where
    step checkpoints go, for replay after a death. frozen: folders of the teachers that an objective asks for. head: what
    is made has a scalar head, the start's or, if that is a language model, a new one. span: (iteration, of iterations) that
    the learning rate's schedule goes over. node: how messages name the node. table: the rows it learns from; on the way
    to a trainer there are none (see TrainNode).
    """

    role: str
    version: int
    start: str
    start_state: str | None
    reference: str | None
    objective: Objective
    optimizer: Literal["fresh", "continued"]
    out: str
    table: pa.Table = field(default_factory=lambda: pa.table({}))
    state_out: str | None = None
    step_dir: str | None = None
    epochs: float = 1
    seed: int = 0
    lr: float | None = None
    batch_size: int | None = None
    frozen: Mapping[str, str] = field(default_factory=dict)
    head: bool = False
    span: tuple[int, int] = (1, 1)
    node: str = "train"


@dataclass(frozen=True)
class TrainNode:
    """A train node on its way to a trainer: its work, the batches that this learns from, and whose rows they may hold."""

    work: TrainWork
    rows: Sequence[Rows]
    writers: Writers

    def opened(self) -> TrainWork:
        """The work with its table, read where it is needed, once it is sure that the weights which the recipe asked for
        wrote it."""
        tables = read_batches(self.rows)
        table = pa.concat_tables(tables, promote_options="default") if tables else pa.table({})
        refuse_strangers(table, self.writers)
        return replace(self.work, table=table)


@dataclass(frozen=True)
class TrainResult:
    """What a train node made. checksum: of the receipt, a hash a served tensor. curve: one dict an optimizer step."""

    version: int
    checksum: str
    receipt: dict[str, str]
    steps: int
    metrics: dict[str, float]
    curve: list[dict[str, float]]
