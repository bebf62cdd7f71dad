"""The verbs gather and report: functions of a whole stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from selfloop.workflows.data.seeds import derive_seed
from selfloop.workflows.flow.verbs.base import Context, Op

__all__ = ["Gather", "Summary"]


@dataclass(frozen=True)
class Gather(Op):
    """A function of the whole stream: a threshold over all rows, a deduplication, a rating fit. A barrier."""

    verb: ClassVar[str] = "gather"
    barrier: ClassVar[bool] = True
    function: Callable[..., pa.Table]
    needs: frozenset[str] = frozenset()
    adds: frozenset[str] = frozenset()

    @property
    def reads(self) -> frozenset[str]:
        return self.needs

    def columns(self, inputs: Sequence[frozenset[str]]) -> frozenset[str]:
        return inputs[0] | self.adds

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        return self.function(tables[0], context.draw("gather"))


@dataclass(frozen=True)
class Summary(Op):
    """Named numbers from whole streams: a barrier whose rows are (name, value)."""

    verb: ClassVar[str] = "summary"
    barrier: ClassVar[bool] = True
    function: Callable[..., dict[str, float]]

    def columns(self, inputs: Sequence[frozenset[str]]) -> frozenset[str]:
        return frozenset({"name", "value"})

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        numbers = self.function(*tables, seed=derive_seed(context.seed, context.iteration, context.node))
        return pa.table({"name": pa.array(list(numbers), pa.string()),
                         "value": pa.array(list(numbers.values()), pa.float64())})  # fmt: skip
