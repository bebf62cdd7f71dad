"""An op run on a batch, or on whole streams: the one way for every actor and for the local runtime."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pyarrow as pa

from selfloop.workflows.data.batches import Counts, count_batch, count_splits, whole_groups
from selfloop.workflows.flow.verbs.base import Context, Op
from selfloop.workflows.store.parts import Rows, read_batches

__all__ = ["run_batch", "run_streams"]


async def run_batch(
    op: Op, context: Context, inputs: Sequence[Rows], timed: bool = True
) -> tuple[pa.Table, Counts]:
    """One batch of each input (and all of a stream that stands beside): its rows, and what was counted of them."""
    started = time.perf_counter()
    table = await op.run(read_batches(inputs), context)
    return table, count_batch(table, time.perf_counter() - started if timed else None)


async def run_streams(
    op: Op, context: Context, streams: Sequence[Sequence[Rows]], batch_size: int, timed: bool = True
) -> tuple[pa.Table, list[Counts]]:
    """All batches of every input, as a barrier takes them: its rows, and the counts of the batches that they make."""
    started = time.perf_counter()
    held = [read_batches(batches) for batches in streams if batches]
    tables = [pa.concat_tables(batches, promote_options="default") for batches in held]
    table = whole_groups(await op.run(tables, context))
    return table, count_splits(table, batch_size, time.perf_counter() - started if timed else None)
