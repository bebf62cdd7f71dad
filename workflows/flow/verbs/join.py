"""The verbs merge, concat and save: streams put together, and kept for later iterations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from selfloop.workflows.data.rows import with_column
from selfloop.workflows.flow.verbs.base import Context, Op
from selfloop.workflows.flow.verbs.responses import numbered

__all__ = ["Concat", "Merge", "Save"]


@dataclass(frozen=True)
class Merge(Op):
    """Join streams of the same prompts inside each prompt group; samples are numbered anew.

    Batch k is joined with batch k, so the lint refuses streams that are not cut into the same batches.
    """

    verb: ClassVar[str] = "merge"

    def columns(self, inputs: Sequence[frozenset[str]]) -> frozenset[str]:
        return frozenset.union(*inputs)

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        joined = pa.concat_tables(tables, promote_options="default")
        order: dict[str, int] = {}
        ids = joined["prompt_id"].to_pylist()
        for name in ids:
            order.setdefault(name, len(order))
        rank = pa.array([order[name] for name in ids], pa.int64())
        joined = joined.take(pc.sort_indices(pa.table({"g": rank, "i": pa.array(range(len(ids)))}),
                                             sort_keys=[("g", "ascending"), ("i", "ascending")]))  # fmt: skip
        return with_column(joined, "sample", pa.array(numbered(joined["prompt_id"].to_pylist()), pa.int64()))


@dataclass(frozen=True)
class Concat(Op):
    """Append the batches of further streams (other prompts)."""

    verb: ClassVar[str] = "concat"

    def columns(self, inputs: Sequence[frozenset[str]]) -> frozenset[str]:
        return frozenset.union(*inputs)

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        return tables[0]


@dataclass(frozen=True)
class Save(Op):
    """Keep a stream under its node's name for `saved(name)` of later iterations."""

    verb: ClassVar[str] = "save"

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        return tables[0]
