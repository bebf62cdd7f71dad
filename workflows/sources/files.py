"""Rows of files, one at a time, each with its place for messages: JSON lines, JSON, CSV, Parquet, and gz of these.

Nothing is read whole but JSON arrays and zipped Parquet, so a broken line at the start of a big file is found at once.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from selfloop.workflows.errors import InputError, nearest

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["SUFFIXES", "Located", "as_json", "data_suffix", "files_of", "kind_of", "read_rows", "shown"]

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""What a prompt file's name ends with, each also with .gz."""

Located = tuple[str, dict[str, Any]]
"""Where a row stands (`data.jsonl, line 3`), and the row."""

csv.field_size_limit(1 << 27)
SHOWN = 60  # characters of a value in a message


def data_suffix(name: str) -> str | None:
    """The suffix that says how a file is read, without .gz; None for other names."""
    bare = name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if bare.endswith(suffix)), None)


def files_of(path: Path) -> list[Path]:
    """The file itself, or the data files of a folder in the order of their names. Raises InputError."""
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.is_file() and data_suffix(file.name))
        if not found:
            raise InputError(f"{path} is a folder without a data file ({', '.join(SUFFIXES)}). Name a file")
        return found
    if not path.exists():
        raise InputError(f"prompt file {path} does not exist{resembling(path)}")
    if data_suffix(path.name) is None:
        raise InputError(
            f"{path.name} has no ending that says how to read it. Rename it to one of {', '.join(SUFFIXES)} "
            "(or these with .gz)"
        )
    return [path]


def resembling(path: Path) -> str:
    """What else there is, for a file that does not exist."""
    if not path.parent.is_dir():
        return f": there is no folder {path.parent.absolute()}. Mend the path"
    names = [file.name for file in path.parent.iterdir()]
    close = nearest(path.name, names)
    return (
        f". Did you mean {path.parent / close}?" if close else f" in {path.parent.absolute()}. Mend the path"
    )


def read_rows(path: Path) -> Iterator[Located]:
    """Rows of a file or of the files of a folder. Raises InputError at the first row that cannot be read."""
    for file in files_of(path):
        try:
            yield from one_file(file)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(
                f"{file} is not a whole gzip file ({error}). Fetch or compress it again"
            ) from error
        except OSError as error:
            raise InputError(
                f"{file} cannot be read: {error.strerror or error}. Mend the file or its permissions"
            ) from error


def one_file(path: Path) -> Iterator[Located]:
    suffix = data_suffix(path.name)
    with open(path, "rb") as raw, unzipped(raw, path) as file:
        if suffix == ".parquet":
            yield from parquet_rows(path, file)
        elif suffix in (".csv", ".tsv"):
            yield from csv_rows(path, file, "\t" if suffix == ".tsv" else ",")
        elif suffix == ".json" and starts_with_bracket(file):
            yield from json_array(path, file)
        else:
            yield from json_lines(path, file)


def unzipped(raw: IO[bytes], path: Path) -> IO[bytes]:
    if not path.name.lower().endswith(".gz"):
        return raw
    zipped = gzip.GzipFile(fileobj=raw)
    return io.BytesIO(zipped.read()) if data_suffix(path.name) == ".parquet" else io.BufferedReader(zipped)  # type: ignore[return-value,arg-type]


def starts_with_bracket(file: IO[bytes]) -> bool:
    start = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()
    file.seek(0)
    return start.startswith(b"[")


def text_lines(path: Path, file: IO[bytes]) -> Iterator[tuple[int, str]]:
    """Numbered lines. Raises InputError at the first that is not UTF-8."""
    for number, line in enumerate(file, 1):
        if number == 1 and line[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise InputError(
                f"{path} is UTF-16, and must be UTF-8. Convert it: iconv -f UTF-16 -t UTF-8 {path.name}"
            )
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}, line {number} is not UTF-8 (byte 0x{line[error.start]:02x} at position {error.start + 1}). "
                f"Convert the file, e.g. iconv -f LATIN1 -t UTF-8 {path.name}"
            ) from error


def json_lines(path: Path, file: IO[bytes]) -> Iterator[Located]:
    for number, line in text_lines(path, file):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = parsed_json(line.rstrip("\r\n"), where, "Each line must hold one JSON object")
        yield where, as_object(where, row)


def json_array(path: Path, file: IO[bytes]) -> Iterator[Located]:
    text = "".join(line for _, line in text_lines(path, file))
    rows = parsed_json(text, str(path), "Mend the line")
    for number, row in enumerate(rows, 1):
        where = f"{path}, row {number}"
        yield where, as_object(where, row)


def parsed_json(text: str, where: str, way: str) -> Any:
    """The value of a JSON text. Raises InputError with the place in it and what stands there."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = "" if "\n" not in text else f", line {error.lineno}"
        rest = text[error.pos :].partition("\n")[0]
        found = f"where {shown(rest)} stands" if rest else "where it ends"
        raise InputError(
            f"{where}{line} is not JSON: {error.msg} at column {error.colno}, {found}. {way}"
        ) from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # a number of thousands of digits, a list in a thousand lists
        raise InputError(f"{where} cannot be read as JSON: {error}. {way}") from error


def as_object(where: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise InputError(f'{where} holds {kind_of(row)}, and must hold an object such as {{"question": …}}')
    return row


def csv_rows(path: Path, file: IO[bytes], delimiter: str) -> Iterator[Located]:
    reader = csv.reader((line for _, line in text_lines(path, file)), delimiter=delimiter, strict=True)
    try:
        names = next(reader, [])
        refuse_twice(names, f"{path}, line 1")
        while True:
            start = reader.line_num + 1
            row = next(reader, None)
            if row is None:
                return
            if not row:
                continue
            if len(row) != len(names):
                raise InputError(
                    f"{path}, line {start} has {len(row)} fields, and the header has {len(names)}. Mend the line, or "
                    "quote fields that hold a comma"
                )
            yield f"{path}, line {start}", dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num} is not CSV: {error}. Mend the quotes of that field"
        ) from error


def parquet_rows(path: Path, file: IO[bytes]) -> Iterator[Located]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        held = pq.ParquetFile(file)
        refuse_twice(held.schema_arrow.names, str(path))
        for batch in held.iter_batches(batch_size=4096):
            read = [values_of(column, name, f"{path}, row", number) for name, column in zip(
                batch.schema.names, batch.columns, strict=True)]  # fmt: skip
            for values in zip(*read, strict=True):
                number += 1
                yield f"{path}, row {number}", dict(zip(batch.schema.names, values, strict=True))
    except (pa.ArrowException, OSError) as error:
        text = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(f"{path} is not a whole Parquet file: {text}. Write it again") from error


def values_of(column: pa.Array, name: str, where: str, before: int) -> list[Any]:
    """An Arrow column's values as JSON has them. Raises InputError naming the row, `before` rows after the first."""
    try:
        return [as_json(value) for value in column.to_pylist()]
    except ValueError:  # one that Python has no value for: look for it, one by one
        return [
            one_value(value, f"{where} {before + place}: {name!r}") for place, value in enumerate(column, 1)
        ]


def one_value(value: pa.Scalar, where: str) -> Any:
    try:
        return as_json(value.as_py())
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where} is not UTF-8 ({shown(error.object)}). Write the column as UTF-8 text"
        ) from error
    except ValueError:  # a time to the nanosecond
        return str(value)


def as_json(value: Any) -> Any:
    """A value of kinds that JSON has: decimals as written, dates and times by ISO 8601, bytes as UTF-8 where they are that."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, dict):
        return {str(key): as_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(one) for one in value]
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            return value.decode("utf-8")
        return value
    if isinstance(value, Decimal):
        return format(value, "f")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def refuse_twice(names: list[str], where: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{where} names the column {twice[0]!r} twice. Rename one")


def kind_of(value: Any) -> str:
    """What a value is, and the value itself, for messages."""
    if value is None or value == []:
        return "null" if value is None else "an empty list"
    if isinstance(value, list):
        kinds = {kind_name(one) for one in value}
        return f"a list of {kinds.pop().split()[-1] + 's' if len(kinds) == 1 else 'several kinds'} ({shown(value)})"
    return f"{kind_name(value)} ({shown(value)})"


def kind_name(value: Any) -> str:
    kinds: dict[type, str] = {
        str: "text", dict: "an object", list: "a list", bool: "true or false", bytes: "no UTF-8", type(None): "a null"
    }  # fmt: skip
    return kinds.get(type(value), "a number")


def shown(value: Any) -> str:
    """The beginning of a value, on one line."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
