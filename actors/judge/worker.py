"""CPU workers: rules, verifiers, pairs, summaries, and the writing of parts."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from selfloop.workflows.data.batches import Counts
from selfloop.workflows.flow.verbs.base import Context, Op
from selfloop.workflows.flow.verbs.batch import run_batch, run_streams
from selfloop.workflows.store.parts import Part, Rows, packed, read_batches, write_part

__all__ = ["Worker"]


class Worker:
    """Runs the ops that need no device."""

    def ready(self) -> bool:
        return True

    def run(self, op: Op, context: Context, *inputs: Rows) -> tuple[pa.Buffer, Counts]:
        """Run a node's op on one batch: its rows, packed, and what was counted of them."""
        table, counts = asyncio.run(run_batch(op, context, inputs))
        return packed(table), counts

    def gather(
        self, op: Op, context: Context, batch_size: int, *inputs: Sequence[Rows]
    ) -> tuple[pa.Buffer, list[Counts]]:
        """Run a barrier's op on whole streams: its rows, and the counts of the batches that they make."""
        table, counts = asyncio.run(run_streams(op, context, inputs, batch_size))
        return packed(table), counts

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
