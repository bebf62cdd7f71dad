"""Rows of files, one at a time, each with its place for messages: JSON lines, JSON, CSV, Parquet, and gz of these.

Nothing is read whole but JSON arrays and zipped Parquet, so a broken line at the start of a big file is found at once.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from selfloop.workflows.errors import InputError

__all__ = ["SUFFIXES", "Located", "column_names", "data_suffix", "files_of", "read_rows"]

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""What a prompt file's name ends with, each also with .gz."""

Located = tuple[str, dict[str, Any]]
"""Where a row stands (`data.jsonl, line 3`), and the row."""

csv.field_size_limit(1 << 27)


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
    import difflib

    if not path.parent.is_dir():
        return f": there is no folder {path.parent.absolute()}. Mend the path"
    names = [file.name for file in path.parent.iterdir()]
    close = difflib.get_close_matches(path.name, names, n=1)
    return (
        f". Did you mean {path.parent / close[0]}?"
        if close
        else f" in {path.parent.absolute()}. Mend the path"
    )


def read_rows(path: Path) -> Iterator[Located]:
    """Rows of a file or of the files of a folder. Raises InputError at the first row that cannot be read."""
    for file in files_of(path):
        try:
            yield from one_file(file)
        except (EOFError, gzip.BadGzipFile) as error:
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
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{where} is not JSON: {error.msg} at column {error.colno}. Each line must hold one JSON object"
            ) from error
        yield where, as_object(where, row)


def json_array(path: Path, file: IO[bytes]) -> Iterator[Located]:
    text = "".join(line for _, line in text_lines(path, file))
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {error.lineno} is not JSON: {error.msg} at column {error.colno}. Mend the line"
        ) from error
    for number, row in enumerate(rows, 1):
        where = f"{path}, row {number}"
        yield where, as_object(where, row)


def as_object(where: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        kind = {list: "a list", str: "text", type(None): "null"}.get(type(row), "a number")
        raise InputError(f'{where} holds {kind}, and must hold an object such as {{"question": …}}')
    return row


def csv_rows(path: Path, file: IO[bytes], delimiter: str) -> Iterator[Located]:
    reader = csv.reader((line for _, line in text_lines(path, file)), delimiter=delimiter, strict=True)
    try:
        names = next(reader, [])
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(f"{path}, line 1 names the column {twice[0]!r} twice. Rename one")
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
        for batch in pq.ParquetFile(file).iter_batches(batch_size=4096):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except (pa.ArrowException, OSError) as error:
        text = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(f"{path} is not a whole Parquet file: {text}. Write it again") from error


def column_names(path: Path) -> list[str]:
    """Column names of the first row; empty for a file without rows."""
    return list(next(read_rows(path), ("", {}))[1])
