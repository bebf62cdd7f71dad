"""Prompt sources: from files, Hugging Face data sets or the pocket world to prompt rows, and the held-out split."""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from selfloop.workflows.config import Prompts
from selfloop.workflows.data.readers import Located, data_suffix, read_rows
from selfloop.workflows.data.schema import Message, prompt_id, schema_of
from selfloop.workflows.errors import InputError

__all__ = [
    "PROMPT_SCHEMA",
    "check_options",
    "heldout_spec",
    "iter_prompts",
    "load_prompts",
    "load_source",
    "source_kind",
    "split_heldout",
]

PROMPT_SCHEMA = schema_of("prompt_id", "prompt", "answer", "meta", "parent")
OURS = ("prompt", "messages", "answer")
ROLES = ("system", "user", "assistant", "tool")
POCKET_SIZE = 2048
CHUNK = 8192
OPTIONS: dict[str, tuple[str, ...]] = {
    "file": ("answer_after",),
    "hub": ("answer_after", "name", "revision", "data_dir"),
    "pocket": ("kinds", "levels", "size"),
}
KINDS = {"file": "a file", "hub": "a Hugging Face data set", "pocket": "the pocket source"}

PromptRow = dict[str, Any]
Kind = Literal["file", "hub", "pocket"]


def source_kind(source: str) -> Kind:
    """How a source is read: `pocket`, a file or folder, or else a name on the Hugging Face hub."""
    if source == "pocket":
        return "pocket"
    path = Path(source).expanduser()
    looks_like_path = source.startswith(("/", ".", "~")) or source.count("/") > 1 or data_suffix(source)
    inside_folder = "/" in source and Path(source).parts[0] != source and Path(Path(source).parts[0]).is_dir()
    return "file" if looks_like_path or path.exists() or inside_folder else "hub"


def load_source(spec: Prompts, seed: int) -> pa.Table:
    """All prompt rows of a source, in its own order.

    Columns prompt_id, prompt, answer, meta, parent (data/schema.py). Raises InputError naming the row that is wrong.
    """
    check_options(spec)
    if spec.source == "pocket":
        return pocket_table(spec, spec.split or "train", int(spec.options.get("size", POCKET_SIZE)), seed)
    chunks: list[pa.Table] = []
    rows: list[PromptRow] = []
    for _, row in iter_prompts(spec):
        rows.append(row)
        if len(rows) == CHUNK:
            chunks.append(pa.Table.from_pylist(rows, schema=PROMPT_SCHEMA))
            rows = []
    if not rows and not chunks:
        raise InputError(f"{spec.source} holds no prompts. Give a source with rows")
    return pa.concat_tables([*chunks, pa.Table.from_pylist(rows, schema=PROMPT_SCHEMA)])


def load_prompts(spec: Prompts, seed: int) -> tuple[pa.Table, pa.Table]:
    """(training prompts, held-out prompts): two sources where the config names two, else a split of one."""
    other = heldout_spec(spec)
    if other is None:
        return split_heldout(load_source(spec, seed), spec.heldout, seed)
    heldout = load_source(other, seed)
    if heldout.num_rows < spec.heldout:
        raise InputError(too_large(spec.heldout, heldout.num_rows, other.source))
    if heldout.num_rows > spec.heldout:
        heldout = split_heldout(heldout, spec.heldout, seed)[1]
    return load_source(spec, seed), heldout


def heldout_spec(spec: Prompts) -> Prompts | None:
    """The source of held-out prompts where it is one of its own, else None."""
    source = spec.heldout_source or spec.source
    if spec.heldout_source is None and spec.heldout_split is None and source != "pocket":
        return None
    same = source_kind(source) == source_kind(spec.source)
    options = spec.options if same else {}
    if source == "pocket":
        options = {**options, "size": spec.heldout}
    split = spec.heldout_split or ("heldout" if source == "pocket" else None)
    more: dict[str, Any] = {"heldout_source": None, "heldout_split": None}
    return spec.model_copy(update={"source": source, "split": split, "options": options, **more})


def too_large(asked: int, rows: int, source: str) -> str:
    return (
        f"prompts.heldout asks to keep {asked} prompts apart, and {source} has {rows}. "
        "Lower prompts.heldout so that prompts to learn from remain, or give more prompts"
    )


def split_heldout(table: pa.Table, n: int, seed: int) -> tuple[pa.Table, pa.Table]:
    """(train, held-out) with exactly n held-out rows, chosen by a seeded hash of the prompt's text.

    Prompts of the same text are never on both sides. Raises InputError when fewer than n + 1 rows remain to split.
    """
    if n >= table.num_rows:
        raise InputError(too_large(n, table.num_rows, "the source"))
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, messages in enumerate(table["prompt"].to_pylist()):
        groups[text_hash(messages, seed)].append(index)
    ordered = [rows for _, rows in sorted(groups.items())]
    chosen: list[int] = []
    partial: list[int] | None = None
    for rows in ordered:
        if len(chosen) + len(rows) <= n:
            chosen += rows
        elif partial is None or len(rows) < len(partial):
            partial = rows
    dropped: set[int] = set()
    if (
        len(chosen) < n and partial is not None
    ):  # no whole group fits: cut one, and learn from none of its rest
        chosen += partial[: n - len(chosen)]
        dropped = set(partial)
    held = set(chosen)
    train = [index for index in range(table.num_rows) if index not in held and index not in dropped]
    if len(held) < n or not train:
        raise InputError(too_large(n, len(groups), "the source (not counting repeated prompts)"))
    return table.take(pa.array(train, pa.int64())), table.take(pa.array(sorted(held), pa.int64()))


def text_hash(messages: list[Message], seed: int) -> bytes:
    """Hash of a prompt's words: spaces and the system message do not count."""
    words = [
        [turn["role"], " ".join(turn["content"].split())] for turn in messages if turn["role"] != "system"
    ]
    return hashlib.sha256(f"{seed}\x1f{json.dumps(words)}".encode()).digest()


# One row


def iter_prompts(spec: Prompts) -> Iterator[tuple[str, PromptRow]]:
    """(where, prompt row) of a file or a hub data set, one at a time. Raises InputError at the first bad row."""
    check_options(spec)
    kind = source_kind(spec.source)
    located = read_rows(Path(spec.source).expanduser()) if kind == "file" else hub_rows(spec)
    seen: Counter[str] = Counter()
    columns: dict[str, str] | None = None
    for where, row in located:
        columns = columns or choose_columns(spec, list(row), where)
        messages, answer = parse_prompt(row, columns, where)
        if spec.system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": spec.system})
        answer = answer_part(answer, spec.options.get("answer_after"), where)
        name = prompt_id(messages, answer)
        if seen[name]:
            name = prompt_id(messages, answer, seen[name])
        seen[prompt_id(messages, answer)] += 1
        meta = {key: value for key, value in row.items() if key not in columns.values() and key != "meta"}
        yield where, {"prompt_id": name, "prompt": messages, "answer": answer, "meta": meta_text(row.get("meta"), meta),
                      "parent": None}  # fmt: skip


def choose_columns(spec: Prompts, names: list[str], where: str) -> dict[str, str]:
    """Ours -> theirs for the columns that are read, from the mapping or else by our own names."""
    file = where.rpartition(",")[0] or where
    for ours, theirs in spec.columns.items():
        if ours not in OURS:
            raise InputError(
                f"prompts.columns.{ours} is not a column of prompts: ours are {', '.join(OURS)} (ours: theirs). "
                f"Other columns are kept in meta by themselves"
            )
        if theirs not in names:
            raise InputError(
                f"{file} has no column {theirs!r} (prompts.columns.{ours}). {nearest_columns(theirs, names)}"
            )
    columns = dict(spec.columns)
    if "prompt" not in columns and "messages" not in columns:
        own = next((name for name in ("messages", "prompt") if name in names), None)
        if own is None:
            raise InputError(
                f"{file} has no column 'prompt' or 'messages'. Its columns are {', '.join(map(repr, names))}: say "
                f"which one holds the prompt, e.g. prompts.columns.prompt={guess_prompt(names)}"
            )
        columns[own] = own
    if "answer" not in columns and "answer" in names and "answer" not in columns.values():
        columns["answer"] = "answer"
    return columns


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
    if messages[-1]["role"] == "assistant":
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


# Sources that are not files


def check_options(spec: Prompts) -> list[str]:
    """Options that another kind of source has, and that this one ignores. Raises InputError for unknown ones."""
    kind = source_kind(spec.source)
    known = sorted({name for names in OPTIONS.values() for name in names})
    for name in spec.options:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            way = f"Did you mean {close[0]}?" if close else f"Known here: {', '.join(OPTIONS[kind])}"
            raise InputError(f"prompts.options.{name} is not an option of {KINDS[kind]}. {way}")
    return [name for name in spec.options if name not in OPTIONS[kind]]


def pocket_table(spec: Prompts, split: str, size: int, seed: int) -> pa.Table:
    """Prompts of the pocket world."""
    kinds, levels = (spec.options.get(name) for name in ("kinds", "levels"))
    try:
        return made_prompts(
            split, size, seed, tuple(kinds) if kinds else None, tuple(levels) if levels else None
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"the pocket source cannot make these prompts (prompts.options, split {split!r}): {error}"
        ) from error


@functools.lru_cache(maxsize=4)
def made_prompts(split: Any, size: int, seed: int, kinds: Any, levels: Any) -> pa.Table:
    from selfloop.workflows.pocket.source import pocket_prompts

    return pocket_prompts(split, size, seed, kinds, levels)


def hub_rows(spec: Prompts) -> Iterator[Located]:
    """Rows of a Hugging Face data set, downloaded on first use."""
    import datasets

    split = spec.split or "train"
    options = {name: spec.options[name] for name in ("name", "revision", "data_dir") if name in spec.options}
    try:
        rows = datasets.load_dataset(spec.source, split=split, **options)
    except Exception as error:  # the library raises many kinds, from its own to HTTP's
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"prompts.source {spec.source!r} is no file here, and could not be loaded as a Hugging Face data set "
            f"(split {split!r}): {text}. Mend the name, or download the data and give its path"
        ) from error
    for number, row in enumerate(rows, 1):
        yield f"{spec.source}, row {number}", dict(row)
