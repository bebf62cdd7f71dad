"""CPU workers: rules, verifiers, pairs, summaries, and the writing of parts."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from selfloop.workflows.data.batches import Counts, count_batch, count_splits, whole_groups
from selfloop.workflows.flow.verbs.base import Context, Op
from selfloop.workflows.store.parts import Part, Rows, packed, read_batches, write_part

__all__ = ["Worker"]


class Worker:
    """Runs the ops that need no device."""

    def ready(self) -> bool:
        return True

    def run(self, op: Op, context: Context, *inputs: Rows) -> tuple[pa.Buffer, Counts]:
        """Run a node's op on one batch: its rows, packed, and what was counted of them."""
        started = time.perf_counter()
        table = asyncio.run(op.run(read_batches(inputs), context))
        return packed(table), count_batch(table, time.perf_counter() - started)

    def gather(
        self, op: Op, context: Context, batch_size: int, *inputs: Sequence[Rows]
    ) -> tuple[pa.Buffer, list[Counts]]:
        """Run a barrier's op on whole streams: its rows, and the counts of the batches that they make."""
        started = time.perf_counter()
        tables = [
            pa.concat_tables(read_batches(batches), promote_options="default")
            for batches in inputs
            if batches
        ]
        table = whole_groups(asyncio.run(op.run(tables, context)))
        return packed(table), count_splits(table, batch_size, time.perf_counter() - started)

    def write(
        self,
        folder: str,
        number: int,
        first: int,
        batches: list[Counts],
        about: dict[str, Any],
        *tables: Rows,
    ) -> tuple[Part, str]:
        """Commit consecutive batches as one part; returns it with the checksum of its file."""
        part = write_part(folder, number, first, read_batches(tables), batches, about)
        return part, hashlib.sha256(Path(part.path).read_bytes()).hexdigest()[:16]
