"""Rows as a rule sees them: a read-only mapping that converts only the columns somebody looks at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["Row", "groups", "ok_rows", "with_column"]


class Columns(dict[str, list[Any]]):
    """Python lists of a table's columns, made when first read."""

    def __init__(self, table: pa.Table):
        super().__init__()
        self.table = table

    def __missing__(self, name: str) -> list[Any]:
        if name not in self.table.column_names:
            raise KeyError(
                f"rows here have no column {name!r}; they have {', '.join(self.table.column_names)}"
            )
        values = self.table.column(name).to_pylist()
        self[name] = values
        return values


class Row(Mapping[str, Any]):
    """One row of a table; `index` is its place in it."""

    __slots__ = ("_columns", "index")

    def __init__(self, columns: Columns, index: int):
        self._columns = columns
        self.index = index

    def __getitem__(self, name: str) -> Any:
        return self._columns[name][self.index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns.table.column_names)

    def __len__(self) -> int:
        return self._columns.table.num_columns


def groups(table: pa.Table, only_ok: bool = True) -> Iterator[tuple[str, list[Row]]]:
    """(prompt_id, its rows), in order of first appearance. Failed rows are left out unless asked for."""
    columns = Columns(table)
    ids = columns["prompt_id"]
    status = columns["status"] if only_ok and "status" in table.column_names else None
    found: dict[str, list[Row]] = {}
    for index, name in enumerate(ids):
        rows = found.setdefault(name, [])
        if status is None or status[index] == "ok":
            rows.append(Row(columns, index))
    yield from found.items()


def ok_rows(table: pa.Table) -> pa.Table:
    """The rows that did not fail."""
    return table.filter(pc.equal(table["status"], "ok")) if "status" in table.column_names else table


def with_column(table: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    """The table with this column added, or replaced in its place."""
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, values)
    return table.append_column(name, values)
