"""Prompts that occur where they should not: held-out ones among those to learn from, and held-out ones more than once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import pyarrow as pa

from selfloop.workflows.data.schema import Message
from selfloop.workflows.sources.files import shown

__all__ = ["overlap_notes", "prompt_key"]

NAMED = 3  # prompts that a note names


def prompt_key(messages: list[Message]) -> str:
    """What prompts that ask the same have in common: case, white space and the system message do not count."""
    return json.dumps(
        [
            (turn["role"], " ".join(turn["content"].casefold().split()))
            for turn in messages
            if turn["role"] != "system"
        ]
    )


def overlap_notes(heldout: Mapping[str, pa.Table], learned: Mapping[str, pa.Table]) -> Iterator[str]:
    """One sentence for each held-out source with repeated prompts, and for each that shares prompts with one to learn from."""
    keys = {name: keys_of(table) for name, table in learned.items()}
    for name, table in heldout.items():
        held = keys_of(table)
        rows = sum(map(len, held.values()))
        repeated = {key: texts for key, texts in held.items() if len(texts) > 1}
        if repeated:
            more = sum(len(texts) - 1 for texts in repeated.values())
            yield (
                f"{more:,} of the {rows:,} rows of {name} repeat the prompt of another, and count once more in figures: "
                f"{examples(repeated)}"
            )
        for other, known in keys.items():
            shared = {key: texts for key, texts in held.items() if key in known}
            if shared:
                count = sum(map(len, shared.values()))
                yield (
                    f"{count:,} of the {rows:,} rows of {name} are also in {other}, which is learned from, and memory is "
                    f"measured there: {examples(shared)}. Take them out of one of the two"
                )


def keys_of(table: pa.Table) -> dict[str, list[str]]:
    """Prompt key -> the last message of each prompt that has it."""
    found: dict[str, list[str]] = {}
    for messages in table["prompt"].to_pylist():
        found.setdefault(prompt_key(messages), []).append(messages[-1]["content"])
    return found


def examples(texts: Mapping[str, list[str]]) -> str:
    named = [
        f"{shown(one[0])}{f' ({len(one)} times)' if len(one) > 1 else ''}"
        for one in list(texts.values())[:NAMED]
    ]
    return ", ".join(named) + (f" and {len(texts) - NAMED:,} more" if len(texts) > NAMED else "")
