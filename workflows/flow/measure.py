"""The `measure` verb: what a model makes of given tokens, by the trainer's forward without gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import pyarrow as pa

from selfloop.workflows.flow.ops import Context, Op, Place
from selfloop.workflows.flow.rows import with_column

__all__ = ["Measure", "Measured"]

Measured = Literal["logprobs", "values", "rewards"]
"""Of a view: log-prob of each token, nats; value of a scalar head at each token; its value at the last one."""


@dataclass(frozen=True)
class Measure(Op):
    """A view's log-probs, values or rewards under a model. Its agreement with training is why no engine is asked."""

    verb: ClassVar[str] = "measure"
    place: ClassVar[Place] = "trainer"
    what: Measured = "logprobs"
    under: str = "response"
    column: str = "measured_logprobs"

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"prompt_ids", f"{self.under}_ids"})

    def columns(self, inputs: Sequence[frozenset[str]]) -> frozenset[str]:
        return inputs[0] | {self.column}

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        assert context.scorer is not None
        own = f"{self.under}_prompt_ids"
        contexts = tables[0][own if own in tables[0].column_names else "prompt_ids"].to_pylist()
        targets = tables[0][f"{self.under}_ids"].to_pylist()
        values = await context.scorer.measure(self.what, context.folder, contexts, targets)
        kind = pa.float64() if self.what == "rewards" else pa.list_(pa.float32())
        return with_column(tables[0], self.column, pa.array(values, kind))
