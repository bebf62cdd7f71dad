"""The rows that a run's source nodes take: which ones, in their seeded order, cut into batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from selfloop.workflows.data.seeds import derive_seed
from selfloop.workflows.errors import StoreError
from selfloop.workflows.flow.verbs.source import Saved, Source
from selfloop.workflows.store.folder import RunFolder
from selfloop.workflows.store.parts import Stored

__all__ = ["Sources", "permutation"]


def permutation(rows: int, seed: int, epoch: int) -> np.ndarray:
    """The seeded order of a source in one epoch."""
    return np.random.Generator(np.random.PCG64(derive_seed(seed, "order", epoch))).permutation(rows)


@dataclass(frozen=True)
class Sources:
    """tables: the rows of each source. hashes: of each source, a hash of every column."""

    folder: RunFolder
    seed: int
    tables: Mapping[str, pa.Table]
    hashes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def rows(self, source: Source) -> pa.Table:
        """The rows of a source node, in the order of its seeded permutation (held-out prompts keep their own)."""
        table = self.tables[source.source]
        if table.num_rows == 0:
            raise StoreError(f"the source {source.source!r} has no rows")
        rows = table
        if source.source != "heldout":
            rows = table.take(pa.array(self.order(source, table.num_rows)))
        return rows.select([name for name in rows.column_names if name in source.has])

    def order(self, source: Source, rows: int) -> np.ndarray:
        """Which rows the source node takes: `count` along one permutation an epoch. Where an iteration runs over the end
        of an epoch, a row that it has taken already is not taken again."""
        count, start = min(source.count, rows), source.start
        epochs = range(start // rows, (start + max(count, 1) - 1) // rows + 1)
        orders = [permutation(rows, derive_seed(self.seed, source.source), epoch) for epoch in epochs]
        taken = np.concatenate(orders)[start - epochs[0] * rows :][:count]
        _, first = np.unique(taken, return_index=True)
        return taken[np.sort(first)]

    def batches(self, source: Source | Saved, batch_size: int) -> Sequence[pa.Table | Stored]:
        """The batches of a source node: slices of its rows, or the committed batches of an earlier node."""
        if isinstance(source, Saved):
            return self.saved(source.iteration, source.node)
        table = self.rows(source).combine_chunks()
        return [table.slice(start, batch_size) for start in range(0, table.num_rows, batch_size)]

    def saved(self, iteration: int, node: str) -> list[Stored]:
        """The committed batches of a node of an earlier iteration."""
        found = [batch for part in self.folder.parts(iteration, node) for batch in part.stored()]
        entry = self.folder.manifest(iteration)["nodes"].get(node, {})
        if len(found) != entry.get("batches", len(found)):
            raise StoreError(
                f"rows of node {node!r} of iteration {iteration} are gone: {len(found)} of {entry['batches']} batches are "
                f"in {self.folder.node(iteration, node)}. Put its parts back; or delete that iteration's folder and "
                "all later ones, and resume: they are made again"
            )
        return found

    def hash(self, source: Source | Saved) -> str:
        """What a source's rows are made of: its table, or the content key of the earlier node that it reads."""
        if isinstance(source, Saved):
            return self.folder.manifest(source.iteration)["nodes"].get(source.node, {}).get("key", "")
        hashes = self.hashes[source.source]
        return " ".join(f"{name} {hashes[name]}" for name in sorted(source.has) if name in hashes)
