"""The pocket world as a prompt source, and where its base model lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from selfloop.workflows.data.schema import prompt_id, schema_of
from selfloop.workflows.pocket.roles import answer_messages
from selfloop.workflows.pocket.tasks import Split, generate

__all__ = ["POCKET_MODEL", "pocket_prompts"]

POCKET_MODEL: Path = Path(__file__).parent / "base"
"""Folder of the shipped base checkpoint (Hugging Face format)."""


def pocket_prompts(
    split: Split,
    size: int,
    seed: int,
    kinds: Sequence[str] | None = None,
    levels: Sequence[int] | None = None,
) -> pa.Table:
    """`size` prompt rows (prompt_id, prompt, answer, meta, parent) of a split: train, heldout or hard."""
    rows = [
        {
            "prompt_id": prompt_id(answer_messages(task.text), task.answer),
            "prompt": answer_messages(task.text),
            "answer": task.answer,
            "meta": task.meta,
            "parent": None,
        }
        for task in generate(split, size, seed, kinds, levels)
    ]
    return pa.Table.from_pylist(rows, schema=schema_of("prompt_id", "prompt", "answer", "meta", "parent"))
