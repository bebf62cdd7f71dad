"""What a rule gives back: none, one or many rows."""

from __future__ import annotations

import asyncio
from typing import Any

import pyarrow as pa
import pytest

from selfloop.workflows.flow.verbs.base import Context
from selfloop.workflows.flow.verbs.rules import Keep

ROWS = pa.table({"prompt_id": ["p", "p", "q"], "sample": [0, 1, 0]})


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (lambda rows, rng: None, []),
        (lambda rows, rng: rows[-1], [("p", 1), ("q", 0)]),
        (lambda rows, rng: rows[:1], [("p", 0), ("q", 0)]),
        (lambda rows, rng: iter(rows), [("p", 0), ("p", 1), ("q", 0)]),
    ],
    ids=["none", "one", "a list", "an iterator"],
)
def test_keep_takes_none_one_or_many_rows(rule: Any, kept: list[tuple[str, int]]) -> None:
    table = asyncio.run(Keep(rule).run([ROWS], Context("keep", 1, 0)))
    assert [(row["prompt_id"], row["sample"]) for row in table.to_pylist()] == kept
