"""One row of somebody's data as prompt, answer and given responses. Raises InputError naming column and row."""

from __future__ import annotations

import contextlib
import difflib
import json
import re
from collections.abc import Mapping
from typing import Any

from selfloop.workflows.config import Prompts
from selfloop.workflows.data.schema import Message, assistant
from selfloop.workflows.errors import InputError

__all__ = ["OURS", "answer_part", "choose_columns", "meta_text", "parse_prompt", "parse_response"]

OURS = ("prompt", "messages", "answer")
RESPONSES = ("chosen", "rejected", "completion")
LABELS = {"true": 1, "1": 1, "false": 0, "0": 0}
ROLES = ("system", "user", "assistant", "tool")


def choose_columns(spec: Prompts, names: list[str], where: str, responses: bool = False) -> dict[str, str]:
    """Ours -> theirs for the columns that are read, from the mapping or else by our own names."""
    file = where.rpartition(",")[0] or where
    known = (*OURS, *RESPONSES, "label") if responses else OURS
    for ours, theirs in spec.columns.items():
        if ours not in known:
            raise InputError(
                f"prompts.columns.{ours} is not a column of prompts: ours are {', '.join(known)} (ours: theirs). "
                f"Other columns are kept in meta by themselves"
            )
        if theirs not in names:
            raise InputError(
                f"{file} has no column {theirs!r} (prompts.columns.{ours}). {nearest_columns(theirs, names)}"
            )
    columns = dict(spec.columns)
    if responses:
        columns |= response_columns(columns, names)
    if "prompt" not in columns and "messages" not in columns:
        own = next((name for name in ("messages", "prompt") if name in names), columns.get("chosen"))
        if own is None:
            raise InputError(
                f"{file} has no column 'prompt' or 'messages'. Its columns are {', '.join(map(repr, names))}: say "
                f"which one holds the prompt, e.g. prompts.columns.prompt={guess_prompt(names)}"
            )
        columns["messages" if own == columns.get("chosen") else own] = own
    if "answer" not in columns and "answer" in names and "answer" not in columns.values():
        columns["answer"] = "answer"
    return columns


def response_columns(mapped: Mapping[str, str], names: list[str]) -> dict[str, str]:
    """The columns that hold given responses, where they have our names: a pair, or a completion with or without label."""
    free = [name for name in names if name not in mapped.values()]
    pair = {name: name for name in ("chosen", "rejected") if name in free and name not in mapped}
    found = pair if len({*pair, *mapped} & {"chosen", "rejected"}) == 2 else {}
    if "completion" in free and "completion" not in mapped:
        found["completion"] = "completion"
    if "completion" in {*mapped, *found} and "label" in free and "label" not in mapped:
        found["label"] = "label"
    return found


def parse_response(ours: str, value: Any, column: str, where: str) -> Any:
    """A given response as messages, from text or from messages that end with it; or its label, 0 to 1."""
    if ours == "label":
        label = LABELS.get(value.strip().lower()) if isinstance(value, str) else value
        if not isinstance(label, bool | int | float) or not 0 <= label <= 1:
            raise InputError(
                f"{where}: the label ({column!r}) is {value!r}, and must be true or false, or 1 or 0"
            )
        return float(label)
    if isinstance(value, str) and value.strip():
        return assistant(value)
    if not isinstance(value, list) or not value:
        what = "empty" if value in (None, "", []) or isinstance(value, str) else kind_of(value)
        raise InputError(
            f"{where}: {ours} ({column!r}) is {what}, and must be text or messages that end with one of role assistant. Fill it "
            "or delete the row"
        )
    last = parse_messages(value, column, where)[-1]
    if last["role"] != "assistant":
        raise InputError(
            f"{where}: {ours} ({column!r}) ends with a message of role {last['role']}, and must end with assistant"
        )
    return [last]


def nearest_columns(word: str, names: list[str]) -> str:
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(map(repr, close))}?"
    return f"Its columns are {', '.join(map(repr, names))}"


def guess_prompt(names: list[str]) -> str:
    known = ("question", "instruction", "problem", "query", "input", "text")
    return next((name for name in known if name in names), names[0] if names else "COLUMN")


def parse_prompt(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> tuple[list[Message], Any]:
    """The messages to answer, and the raw answer: a last assistant turn where no column is named for it."""
    missing = sorted(theirs for theirs in columns.values() if theirs not in row)
    if missing:
        raise InputError(f"{where} has no {missing[0]!r}. {nearest_columns(missing[0], list(row))}")
    column = columns.get("messages") or columns["prompt"]
    value = row[column]
    answer = row[columns["answer"]] if "answer" in columns else None
    if isinstance(value, str) and "messages" not in columns:
        if not value.strip():
            raise InputError(f"{where}: the prompt ({column!r}) is empty. Fill it or delete the row")
        return [{"role": "user", "content": value}], answer
    messages = parse_messages(value, column, where)
    if column == columns.get("chosen") and messages[-1]["role"] == "assistant":
        messages.pop()  # a preferred response is no gold answer
    elif messages[-1]["role"] == "assistant":
        last = messages.pop()["content"]
        answer = answer if answer is not None else last
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        raise InputError(
            f"{where}: the messages in {column!r} hold no user message to answer. End them with one of role user"
        )
    return messages, answer


def parse_messages(value: Any, column: str, where: str) -> list[Message]:
    """Checked OpenAI messages."""
    if value is None or value in ("", []):
        raise InputError(f"{where}: the prompt ({column!r}) is empty. Fill it or delete the row")
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise InputError(
            f"{where}: {column!r} must be text or a list of messages ({{role, content}}), and is {kind_of(value)}. "
            "Map another column (prompts.columns.prompt)"
        )
    messages: list[Message] = []
    for number, turn in enumerate(value, 1):
        role, content = turn.get("role"), turn.get("content")
        if role not in ROLES:
            raise InputError(
                f"{where}: message {number} of {column!r} has the role {role!r}, and must be one of {', '.join(ROLES)}"
            )
        if isinstance(content, list) and all(
            isinstance(part, dict) and part.get("type") == "text" for part in content
        ):
            content = "".join(str(part.get("text", "")) for part in content)
        if not isinstance(content, str):
            raise InputError(
                f"{where}: the content of message {number} of {column!r} is {kind_of(content)}, and must be text"
            )
        if not content.strip() and role != "system":
            raise InputError(f"{where}: message {number} of {column!r} is empty. Fill it or delete the row")
        if content.strip():
            messages.append({"role": role, "content": content})
    return messages or [{"role": "system", "content": ""}]


def kind_of(value: Any) -> str:
    if isinstance(value, list):
        return f"a list of {kind_of(value[0]).removeprefix('a ')}s" if value else "an empty list"
    kinds: dict[type, str] = {str: "text", dict: "an object", type(None): "null", bool: "true or false"}
    return kinds.get(type(value), "a number")


def answer_part(answer: Any, after: str | None, where: str) -> str | None:
    """The gold answer as text; with `answer_after`, what follows its last occurrence."""
    if answer is None or answer == "":
        return None
    text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    if after is None:
        return text
    if after not in text:
        raise InputError(
            f"{where}: the answer holds no {after!r} (prompts.options.answer_after). Mend the row or drop the option"
        )
    return text.rpartition(after)[2].strip()


def meta_text(own: Any, others: dict[str, Any]) -> str | None:
    """Columns that are not read, as JSON; a `meta` column of JSON is merged in."""
    if isinstance(own, str) and re.match(r"\s*\{", own):
        with contextlib.suppress(json.JSONDecodeError):
            own = json.loads(own)
    merged = {**others, **(own if isinstance(own, dict) else {} if own is None else {"meta": own})}
    merged = {key: value for key, value in merged.items() if value is not None}
    return json.dumps(merged, ensure_ascii=False, sort_keys=True, default=str) if merged else None
