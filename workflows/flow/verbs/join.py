"""The verbs merge, concat and save: streams put together, and kept for later iterations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from selfloop.workflows.data.rows import with_column
from selfloop.workflows.flow.telling import Told
from selfloop.workflows.flow.verbs.base import Context, Op, Shows, Takes
from selfloop.workflows.flow.verbs.responses import numbered

__all__ = ["Concat", "Merge", "Save"]


@dataclass(frozen=True)
class Merge(Op):
    """Join streams of the same prompts inside each prompt group; samples are numbered anew.

    Batch k is joined with batch k, so the lint refuses streams that are not cut into the same batches.
    """

    verb: ClassVar[str] = "merge"
    takes: ClassVar[Takes] = "all"
    phrase: ClassVar[str] = "answers are joined"
    shows: ClassVar[Shows] = ""

    def columns(self, inputs: Sequence[frozenset[str]]) -> frozenset[str]:
        return frozenset.union(*inputs)

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        joined = pa.concat_tables(tables, promote_options="default")
        order: dict[str, int] = {}
        ids = joined["prompt_id"].to_pylist()
        for name in ids:
            order.setdefault(name, len(order))
        rank = pa.array([order[name] for name in ids], pa.int64())
        joined = joined.take(
            pc.sort_indices(
                pa.table({"g": rank, "i": pa.array(range(len(ids)))}),
                sort_keys=[("g", "ascending"), ("i", "ascending")],
            )
        )
        return with_column(joined, "sample", pa.array(numbered(joined["prompt_id"].to_pylist()), pa.int64()))

    def tell(self, told: Told) -> Iterator[str]:
        yield f"joined with other rows of {', '.join(told.inputs)}"


@dataclass(frozen=True)
class Concat(Op):
    """Append the batches of further streams (other prompts)."""

    verb: ClassVar[str] = "concat"
    takes: ClassVar[Takes] = "in turn"
    passes: ClassVar[bool] = True
    shows: ClassVar[Shows] = ""

    def columns(self, inputs: Sequence[frozenset[str]]) -> frozenset[str]:
        return frozenset.union(*inputs)

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        return tables[0]

    def tell(self, told: Told) -> Iterator[str]:
        yield f"joined with other rows of {', '.join(told.inputs)}"


@dataclass(frozen=True)
class Save(Op):
    """Keep a stream under its node's name for `saved(name)` of later iterations."""

    verb: ClassVar[str] = "save"
    passes: ClassVar[bool] = True
    final: ClassVar[bool] = True
    phrase: ClassVar[str] = "rows are kept for later iterations"
    shows: ClassVar[Shows] = ""

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        return tables[0]

    def tell(self, told: Told) -> Iterator[str]:
        yield f"saved as {told.node!r} for later iterations"
