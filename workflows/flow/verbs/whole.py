"""The verbs gather and report: functions of a whole stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from selfloop.workflows.data.seeds import derive_seed
from selfloop.workflows.flow.telling import Told
from selfloop.workflows.flow.verbs.base import Context, Op, Shows, Takes

__all__ = ["Gather", "Summary"]


@dataclass(frozen=True)
class Gather(Op):
    """A function of the whole stream: a threshold over all rows, a deduplication, a rating fit. A barrier."""

    verb: ClassVar[str] = "gather"
    barrier: ClassVar[bool] = True
    opens: ClassVar[bool] = True
    phrase: ClassVar[str] = "all rows are looked at together"
    function: Callable[..., pa.Table]
    needs: frozenset[str] = frozenset()
    adds: frozenset[str] = frozenset()

    @property
    def reads(self) -> frozenset[str]:
        return self.needs

    @property
    def writes(self) -> frozenset[str]:
        return self.adds

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        return self.function(tables[0], context.draw("gather"))


@dataclass(frozen=True)
class Summary(Op):
    """Named numbers from whole streams: a barrier whose rows are (name, value)."""

    verb: ClassVar[str] = "summary"
    barrier: ClassVar[bool] = True
    takes: ClassVar[Takes] = "all"
    numbers: ClassVar[bool] = True
    final: ClassVar[bool] = True
    shows: ClassVar[Shows] = ""
    function: Callable[..., dict[str, float]]

    def columns(self, inputs: Sequence[frozenset[str]]) -> frozenset[str]:
        return frozenset({"name", "value"})

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        found = self.function(*tables, seed=derive_seed(context.seed, context.iteration, context.node))
        return pa.table(
            {
                "name": pa.array(list(found), pa.string()),
                "value": pa.array(list(found.values()), pa.float64()),
            }
        )

    def tell(self, told: Told) -> Iterator[str]:
        yield "counted in the evaluation" if told.evaluation else f"counted in the numbers of {told.node!r}"
