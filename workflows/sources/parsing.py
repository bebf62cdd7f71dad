"""One row of somebody's data as prompt, answer and given responses. Raises InputError naming column and row."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from selfloop.workflows.config import Prompts
from selfloop.workflows.data.schema import Message, assistant
from selfloop.workflows.errors import InputError
from selfloop.workflows.sources.files import kind_of, shown

__all__ = [
    "OURS",
    "answer_part",
    "choose_columns",
    "meta_text",
    "parse_prompt",
    "parse_responses",
    "refuse_unwritable",
]

OURS = ("prompt", "messages", "answer")
RESPONSES = ("chosen", "rejected", "completion")
LABELS = {"true": 1.0, "false": 0.0}
HALF = re.compile("[\ud800-\udfff]")
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


def parse_responses(
    row: Mapping[str, Any], columns: Mapping[str, str], prompt: list[Message], where: str
) -> tuple[list[Message], dict[str, Any]]:
    """The prompt with the turns that stand before the responses, and each response by our name: its last turn, or its label.

    Responses given as a whole conversation must go on from one history, which agrees with the prompt. White space does not
    count. Raises InputError where they answer different messages.
    """
    told: dict[str, Any] = {}
    histories: dict[str, list[Message]] = {}
    for ours, theirs in columns.items():
        if ours == "label":
            told[ours] = parse_label(row[theirs], theirs, where)
        elif ours not in OURS:
            turns = parse_turns(ours, row[theirs], theirs, where)
            told[ours] = turns[-1:]
            found = history(prompt, turns[:-1])
            if found is None:
                own = columns.get("messages") or columns["prompt"]
                other = "chosen" if own == columns.get("chosen") else "the prompt"
                raise InputError(
                    f"{where}: {ours} ({theirs!r}) and {other} ({own!r}) hold different messages before the response: "
                    f"{first_difference(turns[:-1], prompt)}. Mend or delete the row"
                )
            histories[ours] = found
    named = list(histories)
    for ours in named[1:]:
        if not alike(histories[ours], histories[named[0]]):
            raise InputError(
                f"{where}: {named[0]} ({columns[named[0]]!r}) and {ours} ({columns[ours]!r}) answer different messages, and must "
                f"be two answers to the same: {first_difference(histories[named[0]], histories[ours])}. Mend or delete the row"
            )
    return (histories[named[0]] if named else prompt), told


def history(prompt: list[Message], before: list[Message]) -> list[Message] | None:
    """What a response answers, from the prompt and the turns that its own column has before it; None if they disagree.

    These may repeat the prompt, go on from it, or be a longer conversation that holds it.
    """
    if not before or alike(before, prompt) or alike(before, without_system(prompt)):
        return prompt
    if before[0]["role"] == "assistant":
        return [*prompt, *before]
    starts = (before[: len(prompt)], without_system(before)[: len(prompt)])
    return before if any(alike(start, prompt) for start in starts) else None


def without_system(messages: list[Message]) -> list[Message]:
    return messages[1:] if messages[0]["role"] == "system" else messages


def alike(one: list[Message], other: list[Message]) -> bool:
    """Whether the messages are the same but for white space."""
    return [bare(turn) for turn in one] == [bare(turn) for turn in other]


def bare(turn: Message) -> tuple[str, str]:
    return turn["role"], " ".join(turn["content"].split())


def first_difference(one: list[Message], other: list[Message]) -> str:
    number, (mine, theirs) = next(
        (number, pair)
        for number, pair in enumerate(itertools.zip_longest(one, other), 1)
        if None in pair or bare(pair[0]) != bare(pair[1])
    )
    told = [f"{turn['role']} {shown(turn['content'])}" if turn else "missing" for turn in (mine, theirs)]
    return f"message {number} is {told[0]} in the one and {told[1]} in the other"


def parse_label(value: Any, column: str, where: str) -> float:
    """A label, 0 to 1."""
    label = value
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            label = LABELS[value] if (value := value.strip().lower()) in LABELS else float(value)
    if not isinstance(label, bool | int | float) or not 0 <= label <= 1:
        raise InputError(
            f"{where}: the label ({column!r}) is {value!r}, and must be true or false, or 1 or 0"
        )
    return float(label)


def parse_turns(ours: str, value: Any, column: str, where: str) -> list[Message]:
    """A given response as messages that end with it, from text or messages."""
    if isinstance(value, str) and value.strip():
        return assistant(value)
    if not isinstance(value, list) or not value:
        what = nothing(value) if not value or isinstance(value, str) else kind_of(value)
        raise InputError(
            f"{where}: {ours} ({column!r}) is {what}, and must be text or messages that end with one of role assistant. Fill it "
            "or delete the row"
        )
    turns = parse_messages(value, column, where)
    if turns[-1]["role"] != "assistant":
        raise InputError(
            f"{where}: {ours} ({column!r}) ends with a message of role {turns[-1]['role']}, and must end with assistant"
        )
    return turns


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
            raise InputError(
                f"{where}: the prompt ({column!r}) is empty ({value!r}). Fill it or delete the row"
            )
        return [{"role": "user", "content": value}], answer
    if isinstance(value, str) and column == columns.get("chosen"):
        raise InputError(
            f"{where}: no column holds the prompt, and {column!r}, from whose messages it would be taken, is {kind_of(value)}. "
            "Say which one does (columns.prompt)"
        )
    if isinstance(value, str):  # a table of texts holds messages as JSON
        with contextlib.suppress(ValueError):
            value = json.loads(value)
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


def nothing(value: Any) -> str:
    return "null" if value is None else f"empty ({value!r})"


def parse_messages(value: Any, column: str, where: str) -> list[Message]:
    """Checked OpenAI messages."""
    if value is None or value in ("", []):
        raise InputError(f"{where}: the prompt ({column!r}) is {nothing(value)}. Fill it or delete the row")
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
            raise InputError(
                f"{where}: message {number} of {column!r} is empty ({content!r}). Fill it or delete the row"
            )
        if turn.get("tool_calls"):
            raise InputError(
                f"{where}: message {number} of {column!r} has tool_calls ({shown(turn['tool_calls'])}), which no chat "
                "template is given here. Write them into its content, or delete the row"
            )
        if content.strip():
            messages.append({"role": role, "content": content})
    return messages or [{"role": "system", "content": ""}]


def answer_part(answer: Any, after: str | None, where: str) -> str | None:
    """The gold answer as text; with `answer_after`, what follows its last occurrence."""
    if answer is None or answer == "" or (isinstance(answer, float) and math.isnan(answer)):
        return None
    text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    if after is None:
        return text
    if after not in text:
        raise InputError(
            f"{where}: the answer holds no {after!r} (prompts.options.answer_after): it is {shown(text)}. Mend the row or "
            "drop the option"
        )
    return text.rpartition(after)[2].strip()


def meta_text(own: Any, others: dict[str, Any]) -> str | None:
    """Columns that are not read, as JSON; a `meta` column of JSON is merged in."""
    if isinstance(own, str) and re.match(r"\s*\{", own):
        with contextlib.suppress(json.JSONDecodeError):
            own = json.loads(own)
    merged = {**others, **(own if isinstance(own, dict) else {} if own is None else {"meta": own})}
    merged = {key: value for key, value in merged.items() if value is not None}
    if not merged:
        return None
    text = json.dumps(merged, ensure_ascii=False, sort_keys=True, default=str)
    return json.dumps(merged, sort_keys=True, default=str) if half_character(text) else text


def half_character(text: str) -> str | None:
    """A half of a character that UTF-16 writes in two, which no file of UTF-8 can hold; None if there is none."""
    found = HALF.search(text)
    return found and found.group()


def refuse_unwritable(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> None:
    """Raise InputError for text that could not be stored, and for tools, which no chat template is given."""
    for theirs in columns.values():
        value = row[theirs]
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        if half := half_character(text):
            raise InputError(
                f"{where}: {theirs!r} holds {half!r}, half of a character: {shown(value)}. Write the other half, or delete it"
            )
    tools = row.get("tools")
    if isinstance(tools, str):  # a table of texts holds lists as JSON
        with contextlib.suppress(ValueError):
            tools = json.loads(tools)
    if "tools" not in columns.values() and isinstance(tools, list | dict) and tools:
        raise InputError(
            f"{where}: the column 'tools' lists tools ({shown(tools)}), and no chat template is given any here: the prompt "
            "would be answered without them. Write them into the system message, or take the column out"
        )
