"""The `grow` verb: rounds of the same sub-graph until enough prompt groups are kept.

The rounds are ordinary nodes, all of them in the graph from the start. Each ends in a pool, which is a barrier with
one writer: it takes groups in their order, and what it takes may depend on all that was taken before. Between a later
round's source and its reader stands a gate, which lets nothing through once the pools hold enough; the rest of such a
round runs on no rows. So committing, resuming and reusing a round need nothing of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from selfloop.workflows.data.rows import Row, groups
from selfloop.workflows.flow.telling import Told
from selfloop.workflows.flow.verbs.base import Context, Op, Shows, call

__all__ = ["Accept", "Gate", "Pool"]

Accept = Callable[[list[Row], list[Row]], bool]
"""(rows of one prompt group, all rows accepted before it, in order) -> whether the group is accepted."""


NOT_TAKEN = "not accepted, or not needed any more"


@dataclass(frozen=True)
class Gate(Op):
    """The first input's rows while the other inputs, pools, hold fewer than `until` prompt groups; else no row."""

    verb: ClassVar[str] = "gate"
    shows: ClassVar[Shows] = ""
    barrier: ClassVar[bool] = True
    until: int

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        held = sum(len(set(pool["prompt_id"].to_pylist())) for pool in tables[1:])
        return tables[0] if held < self.until else tables[0].slice(0, 0)

    @property
    def cuts(self) -> bool:
        return False  # it lets all batches through or none

    def tell(self, told: Told) -> Iterator[str]:
        yield (
            self.verb
            if not told.complete
            else "needed: the pool was not full yet"
            if told.group
            else NOT_TAKEN
        )


@dataclass(frozen=True)
class Pool(Op):
    """The groups of the first input that are taken after those in the other inputs, the pools before: at most `until`
    in all, each prompt once, and only those that `accept` takes. Failed rows are not taken."""

    verb: ClassVar[str] = "pool"
    shows: ClassVar[Shows] = ""
    barrier: ClassVar[bool] = True
    until: int
    accept: Accept | None = None

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        before = [(name, rows) for pool in tables[1:] for name, rows in groups(pool)]
        names, held = {name for name, _ in before}, [row for _, rows in before for row in rows]
        taken: list[int] = []
        for name, rows in groups(tables[0]):
            if len(names) >= self.until:
                break
            if not rows or name in names or not self.accepts(rows, held, context, name):
                continue
            names.add(name)
            held += rows
            taken += [row.index for row in rows]
        return tables[0].take(pa.array(taken, pa.int64()))

    def tell(self, told: Told) -> Iterator[str]:
        yield self.verb if not told.complete else "accepted" if told.rows or told.group else NOT_TAKEN

    def accepts(self, rows: list[Row], held: list[Row], context: Context, name: str) -> bool:
        return self.accept is None or bool(call(self.accept, context, name, rows, held))
