"""The columns of responses: how prompts become tokens, and replies become rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from selfloop.workflows.data.rows import with_column
from selfloop.workflows.data.schema import COLUMNS, assistant
from selfloop.workflows.flow.verbs.base import Context

if TYPE_CHECKING:
    from selfloop.workflows.models.codec import Codec

__all__ = ["RESPONSE_COLUMNS", "add_responses", "encode", "numbered", "reply_row"]

RESPONSE_COLUMNS = (
    "sample",
    "prompt_ids",
    "response_ids",
    "response",
    "completion",
    "response_logprobs",
    "finish",
    "seed",
    "model",
    "version",
    "node",
    "status",
    "error",
)


def numbered(names: Iterable[str]) -> list[int]:
    """The number of each row within its prompt group, from 0."""
    seen: dict[str, int] = {}
    numbers: list[int] = []
    for name in names:
        numbers.append(seen.get(name, 0))
        seen[name] = numbers[-1] + 1
    return numbers


def encode(codec: Codec, messages: list[dict[str, str]]) -> tuple[list[int], str | None]:
    """Tokens of a prompt, or why the chat template refused it."""
    try:
        return codec.encode(messages), None
    except (
        Exception
    ) as error:  # a template is a program of the model's author: whatever it raises is about this row
        return [], f"the chat template refused these messages: {type(error).__name__}: {error}"


def reply_row(reply: Any, prompt_ids: list[int], error: str | None) -> dict[str, Any]:
    """The columns of one reply."""
    problem = error if reply is None else reply.error
    finish = "error" if reply is None else reply.finish
    failed = finish == "error"
    return {
        "prompt_ids": prompt_ids,
        "response_ids": [] if reply is None else reply.ids,
        "response_logprobs": [] if reply is None else reply.logprobs,
        "finish": finish,
        "status": "failed" if failed else "ok",
        "error": problem if failed else None,
    }


def add_responses(
    table: pa.Table,
    rows: list[dict[str, Any]],
    seeds: list[Any],
    samples: list[int],
    context: Context,
) -> pa.Table:
    """Append the response columns to a table that has one row a response."""
    texts = context.codec.decode([row["response_ids"] for row in rows]) if context.codec else [""] * len(rows)
    made: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
    made |= {
        "sample": samples,
        "seed": seeds,
        "response": texts,
        "completion": [assistant(text) for text in texts],
    }
    constants = {"model": context.model, "version": context.version, "node": context.node}
    for name in RESPONSE_COLUMNS:
        values = [constants[name]] * len(rows) if name in constants else made.get(name, [])
        table = with_column(table, name, pa.array(values, COLUMNS[name][0]))
    return table
