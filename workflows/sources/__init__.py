"""Prompt sources: from files, Hugging Face data sets or the pocket world to prompt rows, and the held-out split."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from selfloop.workflows.config import Prompts
from selfloop.workflows.data.schema import Message, prompt_id, schema_of
from selfloop.workflows.errors import InputError, nearest
from selfloop.workflows.sources.files import Located, as_json, data_suffix, read_rows
from selfloop.workflows.sources.overlap import prompt_key
from selfloop.workflows.sources.parsing import (
    answer_part,
    choose_columns,
    meta_text,
    parse_prompt,
    parse_responses,
    refuse_unwritable,
)

__all__ = [
    "PROMPT_SCHEMA",
    "PromptRow",
    "check_options",
    "heldout_spec",
    "iter_prompts",
    "load_prompts",
    "load_source",
    "source_kind",
    "split_heldout",
    "table_of",
]

PROMPT_SCHEMA = schema_of("prompt_id", "prompt", "answer", "meta", "parent")
POCKET_SIZE = 2048
CHUNK = 8192
OPTIONS: dict[str, tuple[str, ...]] = {
    "file": ("answer_after",),
    "hub": ("answer_after", "name", "revision", "data_dir"),
    "pocket": ("kinds", "levels", "size", "preferences"),
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


def load_source(spec: Prompts, seed: int, responses: bool = False) -> pa.Table:
    """All prompt rows of a source, in its own order.

    Columns prompt_id, prompt, answer, meta, parent (data/schema.py); with `responses` also those of its columns chosen and
    rejected, completion, and label that it has. Raises InputError naming the row that is wrong.
    """
    check_options(spec)
    if spec.source == "pocket":
        table = pocket_table(spec, spec.split or "train", int(spec.options.get("size", POCKET_SIZE)), seed)
        if not spec.options.get("preferences"):
            return table
        if not responses:
            raise InputError(
                "prompts.options.preferences gives responses, which named sources have: move it to data.NAME.options"
            )
        return pocket_preferences(table, seed)
    return table_of(spec, iter_prompts(spec, responses))


def table_of(spec: Prompts, rows_read: Iterable[tuple[str, PromptRow]]) -> pa.Table:
    """Rows of `iter_prompts` as a table. Raises InputError where there are none."""
    chunks: list[pa.Table] = []
    rows: list[PromptRow] = []
    schema = PROMPT_SCHEMA
    for _, row in rows_read:
        schema = schema_of(*row)
        rows.append(row)
        if len(rows) == CHUNK:
            chunks.append(pa.Table.from_pylist(rows, schema=schema))
            rows = []
    if not rows and not chunks:
        raise InputError(f"{spec.source} holds no prompts. Give a source with rows")
    return pa.concat_tables([*chunks, pa.Table.from_pylist(rows, schema=schema)])


def load_prompts(
    spec: Prompts, seed: int, read: Mapping[str, pa.Table] | None = None
) -> tuple[pa.Table, pa.Table]:
    """(training prompts, held-out prompts): two sources where the config names two, else a split of one. read: what was
    read already of `prompts` and `heldout`."""

    def rows(name: str, source: Prompts) -> pa.Table:
        return read[name] if read and name in read else load_source(source, seed)

    other = heldout_spec(spec)
    if other is None:
        return split_heldout(rows("prompts", spec), spec.heldout, seed)
    heldout = rows("heldout", other)
    if heldout.num_rows < spec.heldout:
        raise InputError(too_large(spec.heldout, heldout.num_rows, other.source))
    if heldout.num_rows > spec.heldout:
        heldout = split_heldout(heldout, spec.heldout, seed)[1]
    return rows("prompts", spec), heldout


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

    Prompts that differ in case or white space alone are never on both sides. Raises InputError when fewer than n + 1 rows
    remain to split.
    """
    if n >= table.num_rows:
        raise InputError(too_large(n, table.num_rows, "the source"))
    groups: dict[str, list[int]] = defaultdict(list)
    prompts: list[list[Message]] = table["prompt"].to_pylist()
    for index, messages in enumerate(prompts):
        groups[prompt_key(messages)].append(index)
    ordered = sorted(groups.values(), key=lambda rows: min(text_hash(prompts[row], seed) for row in rows))
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


# Rows


def iter_prompts(spec: Prompts, responses: bool = False) -> Iterator[tuple[str, PromptRow]]:
    """(where, prompt row) of a file or a hub data set, one at a time. Raises InputError at the first bad row.

    responses: as for `load_source`. Every row must have the columns that are read of the first one, and no others of our names.
    """
    check_options(spec)
    kind = source_kind(spec.source)
    located = read_rows(Path(spec.source).expanduser()) if kind == "file" else hub_rows(spec)
    seen: Counter[str] = Counter()
    columns: dict[str, str] = {}
    earliest = ""
    known: set[tuple[str, ...]] = set()
    for where, row in located:
        if not columns:
            columns, earliest = choose_columns(spec, list(row), where, responses), where
        elif (names := tuple(row)) not in known and set(columns.values()) <= set(names):
            more = [theirs for ours, theirs in choose_columns(spec, list(names), where, responses).items()
                    if ours not in columns]  # fmt: skip
            if more:
                raise InputError(
                    f"{earliest} has no {more[0]!r}, and {where} has. Give every row the column, null where there is nothing"
                )
            known.add(names)
        messages, answer = parse_prompt(row, columns, where)
        refuse_unwritable(row, columns, where)
        messages, told = parse_responses(row, columns, messages, where)
        if spec.system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": spec.system})
        answer = answer_part(answer, spec.options.get("answer_after"), where)
        first = name = prompt_id(messages, answer, **told)
        if seen[first]:
            name = prompt_id(messages, answer, seen[first], **told)
        seen[first] += 1
        meta = {key: value for key, value in row.items() if key not in columns.values() and key != "meta"}
        yield where, {"prompt_id": name, "prompt": messages, "answer": answer, "meta": meta_text(row.get("meta"), meta),
                      "parent": None, **told}  # fmt: skip


# Sources that are not files


def check_options(spec: Prompts) -> list[str]:
    """Options that another kind of source has, and that this one ignores. Raises InputError for unknown ones."""
    kind = source_kind(spec.source)
    known = sorted({name for names in OPTIONS.values() for name in names})
    for name in spec.options:
        if name not in known:
            close = nearest(name, known)
            way = f"Did you mean {close}?" if close else f"Known here: {', '.join(OPTIONS[kind])}"
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


def pocket_preferences(table: pa.Table, seed: int) -> pa.Table:
    """Pocket prompts with a right answer as chosen and a wrong one as rejected."""
    from selfloop.workflows.pocket.preferences import with_preferences

    return with_preferences(table, seed)


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
        yield f"{spec.source}, row {number}", {name: as_json(value) for name, value in row.items()}
