"""Why rows and verdicts failed, read from the committed parts of a node."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow.parquet as pq

__all__ = ["first_failure"]

LONGEST = 300  # characters that are shown of an error
PROMPT = 60  # and of a prompt


def first_failure(parts: Iterable[str], column: str) -> str | None:
    """The first failed row's own error and its prompt. column: `status`, or a verdict's `..._state`. None where there is
    none, or none whose reason is noted."""
    why = "error" if column == "status" else f"{column.removesuffix('_state')}_judgements"
    for part in parts:
        with pq.ParquetFile(part) as file:
            wanted = {column, why, "error", "prompt_id", "prompt"} & set(file.schema_arrow.names)
            if column not in wanted:
                continue
            for batch in file.iter_batches(columns=sorted(wanted)):
                states = batch.column(column).to_pylist()
                if "failed" in states:
                    return told(batch.slice(states.index("failed"), 1).to_pylist()[0], why)
    return None


def told(row: dict[str, Any], why: str) -> str | None:
    """The error of a row and the prompt it belongs to, in a line; None where no reason is noted."""
    found = row.get(why) or row.get("error") or ""
    if not isinstance(found, str):  # judgements: the verdict failed because all of them did
        found = next((one["text"] for one in found if one["state"] == "failed"), "")
    asked = next(
        (turn["content"] for turn in reversed(row.get("prompt") or ()) if turn["role"] == "user"), ""
    )
    quoted = f" {cut(asked, PROMPT)!r}" if asked else ""
    return f"{cut(found, LONGEST)}, prompt {row.get('prompt_id')}{quoted}" if found else None


def cut(text: str, longest: int) -> str:
    """A text in one line of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 2]} …"
