"""Parts: the committed rows of a node. A part holds consecutive whole batches and exists from its rename on."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from selfloop.workflows.data.batches import Counts
from selfloop.workflows.errors import StoreError
from selfloop.workflows.store.disk import replacing

__all__ = [
    "Part",
    "Rows",
    "Stored",
    "list_parts",
    "packed",
    "read_batches",
    "read_columns",
    "read_stored",
    "read_table",
    "row_hash",
    "write_part",
]

META = b"selfloop"
NAME = re.compile(r"part-(\d{5,})\.parquet$")


@dataclass(frozen=True)
class Stored:
    """One committed batch: rows `offset` to `offset + rows` of a part. Any process that sees the folder can read it."""

    path: str
    offset: int
    rows: int


@dataclass(frozen=True)
class Part:
    """A committed part: `first` is the number of its first batch, `batches` what each of its batches counted.

    about: `key`, the content key of its node; `batch_size`, prompts a batch; `made`, the settings that may change in a
    run (`store.changes.made_under`) and under which its node's parts were made, in order.
    """

    path: str
    first: int
    batches: tuple[Counts, ...]
    about: Mapping[str, Any]

    @property
    def rows(self) -> int:
        return sum(batch.rows for batch in self.batches)

    def stored(self) -> list[Stored]:
        """Its batches, in order."""
        found, offset = [], 0
        for batch in self.batches:
            found.append(Stored(self.path, offset, batch.rows))
            offset += batch.rows
        return found


def write_part(
    folder: str,
    number: int,
    first: int,
    tables: Sequence[pa.Table],
    batches: Sequence[Counts],
    about: Mapping[str, Any] | None = None,
) -> Part:
    """Commit consecutive batches as one part: written beside, flushed to disk, renamed."""
    about = about or {}
    table = pa.concat_tables(tables, promote_options="default")
    meta = json.dumps({"first": first, "batches": [one.entry() for one in batches], **about}).encode()
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), META: meta})
    final = Path(folder) / f"part-{number:05d}.parquet"
    with replacing(final, "rows", table.nbytes) as file:
        pq.write_table(table, file, compression="zstd", compression_level=1)
    return Part(str(final), first, tuple(batches), about)


def list_parts(folder: str | Path) -> list[Part]:
    """The committed parts of a node, in order."""
    return [read_part(path) for path in part_files(folder)]


def part_files(folder: str | Path) -> list[Path]:
    """Their files; leftovers of an interrupted write are not parts."""
    named = ((NAME.match(path.name), path) for path in Path(folder).glob("part-*.parquet"))
    return [path for _, path in sorted((int(match[1]), path) for match, path in named if match)]


def read_part(path: Path) -> Part:
    try:
        meta = json.loads((pq.read_schema(path).metadata or {})[META])
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise StoreError(
            f"{path} is not a part that Selfloop wrote ({type(error).__name__}). Delete it and resume the run"
        ) from error
    return Part(str(path), meta.pop("first"), tuple(map(Counts.of, meta.pop("batches"))), meta)


def read_table(path: str) -> pa.Table:
    """All rows of one part, without our metadata."""
    return pq.ParquetFile(path).read().replace_schema_metadata(None)


def read_stored(batches: Sequence[Stored]) -> list[pa.Table]:
    """The rows of committed batches; each part is opened once."""
    cache: dict[str, pa.Table] = {}
    tables = []
    for batch in batches:
        if batch.path not in cache:
            cache = {batch.path: read_table(batch.path)}
        tables.append(cache[batch.path].slice(batch.offset, batch.rows))
    return tables


Rows = pa.Table | pa.Buffer | Stored
"""A batch's rows: as they are, packed, or where they are committed."""


def read_columns(batches: Sequence[Rows], names: Sequence[str]) -> Iterator[pa.Table]:
    """Some columns of batches, one table after the other: only what is asked for is read, a part at a time."""
    for path, group in itertools.groupby(batches, lambda one: one.path if isinstance(one, Stored) else None):
        if path is None:
            yield from (
                table.select(present(names, table.column_names)) for table in read_batches(list(group))
            )
            continue
        with pq.ParquetFile(path) as file:
            there = present(names, file.schema_arrow.names)
            table = file.read(columns=there) if there else pa.table({"": pa.nulls(file.metadata.num_rows)})
        stored = [one for one in group if isinstance(one, Stored)]
        yield from (table.slice(one.offset, one.rows) for one in stored)


def present(names: Sequence[str], there: Sequence[str]) -> list[str]:
    return [name for name in names if name in there]


def packed(value: Any) -> Any:
    """A table as Arrow's own stream of bytes, which an actor call takes in a fiftieth of the time that Ray needs for a
    table; everything else as it is."""
    if not isinstance(value, pa.Table):
        return value
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, value.schema) as stream:
        stream.write_table(value)
    return sink.getvalue()


def read_batches(batches: Sequence[Rows]) -> list[pa.Table]:
    """Rows of batches, whether they came as tables, packed, or are to be read from their parts; each is opened once."""
    stored = iter(read_stored([one for one in batches if isinstance(one, Stored)]))
    tables = [next(stored) if isinstance(one, Stored) else one for one in batches]
    return [pa.ipc.open_stream(one).read_all() if isinstance(one, pa.Buffer) else one for one in tables]


def row_hash(tables: Iterable[pa.Table]) -> str:
    """A hash of the rows whatever their order, batches and parts: each row as canonical JSON, sorted."""
    lines = sorted(line for table in tables for line in canonical_lines(table))
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()[:32]


def canonical_lines(table: pa.Table) -> Iterator[str]:
    for row in table.to_pylist():
        yield json.dumps(row, sort_keys=True, ensure_ascii=False)
