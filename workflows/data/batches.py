"""Batches of rows: cut between prompt groups, and what is counted of each."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = [
    "Counts",
    "Verdicts",
    "column_hash",
    "count_batch",
    "count_splits",
    "counting",
    "split_groups",
    "summary_numbers",
    "whole_groups",
]

FACTORS = ("advantages", "weight")  # columns that multiply what a row adds to a loss

STATE, SUM = "_state", "_sum"  # ends of the keys that verdicts have in parts and manifests


class Verdicts(NamedTuple):
    """Of a column of verdicts: how many are in each state, and the sum of their scores; None where no scores are beside."""

    states: Mapping[str, int]
    sum: float | None = None


@dataclass(frozen=True)
class Counts:
    """What is counted of rows: prompt groups, those of them without a row that can move a weight (silent), rows that failed,
    verdicts by column, answers cut at max_tokens (truncated) and without their ends (stripped), tokens sampled, seconds
    taken. None: these rows have no column that tells."""

    rows: int = 0
    groups: int | None = None
    silent: int | None = None
    failed: int | None = None
    verdicts: Mapping[str, Verdicts] = field(default_factory=dict)
    truncated: int | None = None
    stripped: int | None = None
    tokens: int | None = None
    seconds: float | None = None

    def __add__(self, other: Counts) -> Counts:
        verdicts = dict(self.verdicts)
        for column, (states, score) in other.verdicts.items():
            had = verdicts.get(column, Verdicts({}))
            both = {
                state: had.states.get(state, 0) + states.get(state, 0) for state in {**had.states, **states}
            }
            verdicts[column] = Verdicts(both, added(had.sum, score))
        more = {name: added(getattr(self, name), getattr(other, name)) for name in NUMBERS}
        return Counts(verdicts=verdicts, **more)

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Counts:
        """What a batch in a part, or a node in a manifest, says."""
        columns = [name.removesuffix(STATE) for name in entry if name.endswith(STATE)]
        verdicts = {name: Verdicts(entry[name + STATE], entry.get(name + SUM)) for name in columns}
        return cls(verdicts=verdicts, **{name: entry[name] for name in NUMBERS if name in entry})

    def entry(self) -> dict[str, Any]:
        """As parts and manifests keep it, without what these rows do not tell."""
        found: dict[str, Any] = {}
        for name, value in vars(self).items():
            if name == "verdicts":
                for column, (states, score) in self.verdicts.items():
                    found[column + STATE] = dict(states)
                    found |= {} if score is None else {column + SUM: score}
            elif value is not None:
                found[name] = value
        return found


NUMBERS = tuple(one.name for one in fields(Counts) if one.name != "verdicts")


def added(one: Any, other: Any) -> Any:
    """The sum of what is known."""
    return other if one is None else one if other is None else one + other


def column_hash(column: pa.ChunkedArray) -> str:
    """A hash of a column's values."""
    return hashlib.sha256(json.dumps(column.to_pylist(), default=str).encode()).hexdigest()[:16]


def split_groups(table: pa.Table, prompts: int) -> list[int]:
    """Row counts of batches of at most this many prompt groups. Groups are whole if `whole_groups` gave the table."""
    if "prompt_id" not in table.column_names:
        return [table.num_rows]
    starts = np.flatnonzero(np.diff(group_numbers(table), prepend=-1))[::prompts]
    return np.diff(np.append(starts, table.num_rows)).tolist() or [0]


def whole_groups(table: pa.Table) -> pa.Table:
    """The rows of each prompt together and in their order, prompts by first appearance; the table itself if they are."""
    numbers = group_numbers(table) if "prompt_id" in table.column_names else np.zeros(0)
    if (np.diff(numbers) >= 0).all():
        return table
    return table.take(pa.array(np.argsort(numbers, kind="stable")))


def group_numbers(table: pa.Table) -> np.ndarray:  # (rows,)
    """The number of each row's prompt, in order of first appearance."""
    names = table["prompt_id"].combine_chunks()
    return names.dictionary_encode(null_encoding="encode").indices.to_numpy(zero_copy_only=False)


def counting(table: pa.Table, factors: Sequence[str]) -> np.ndarray:  # (rows,)
    """Which rows can move a weight: those that did not fail and have no factor that is exactly 0. A null counts."""
    found = np.ones(table.num_rows, bool)
    if "status" in table.column_names:
        found &= pc.fill_null(pc.not_equal(table["status"], "failed"), True).to_numpy()
    for name in factors:
        if name not in table.column_names:
            continue
        if pa.types.is_nested(table.schema.field(name).type):  # one number a token
            found &= np.array([value is None or any(value) for value in table[name].to_pylist()], bool)
        else:
            found &= pc.fill_null(pc.not_equal(table[name], 0), True).to_numpy()
    return found


def count_batch(table: pa.Table, seconds: float | None = None) -> Counts:
    """The counts of rows that took so long."""
    found: dict[str, Any] = {"rows": table.num_rows, "seconds": seconds}
    names = table.column_names
    if "prompt_id" in names and table.num_rows:
        numbers = group_numbers(table)
        groups = int(numbers.max()) + 1
        found |= {
            "groups": groups,
            "silent": groups - len(np.unique(numbers[counting(table, FACTORS)])),
        }
    for name, column, value in (
        ("failed", "status", "failed"),
        ("truncated", "finish", "length"),
        ("stripped", "stripped", True),
    ):
        if column in names:
            found[name] = table[column].to_pylist().count(value)
    if "response_logprobs" in names:
        found["tokens"] = len(table["response_logprobs"].combine_chunks().flatten())
    judged = [name.removesuffix(STATE) for name in names if name.endswith(STATE)]
    return Counts(verdicts={name: count_verdicts(table, name) for name in judged}, **found)


def count_verdicts(table: pa.Table, column: str) -> Verdicts:
    states = table[column + STATE].drop_null().to_pylist()  # rows that were never judged have none
    score = (pc.sum(table[column]).as_py() or 0.0) if column in table.column_names else None
    return Verdicts({state: states.count(state) for state in sorted(set(states))}, score)


def count_splits(table: pa.Table, prompts: int, seconds: float | None = None) -> list[Counts]:
    """The counts of the batches that a barrier's rows make: the first has what is counted of all, the others rows alone."""
    first, *others = split_groups(table, prompts)
    return [replace(count_batch(table, seconds), rows=first), *map(Counts, others)]


def summary_numbers(table: pa.Table) -> dict[str, float]:
    """The (name, value) rows of a summary node, without what is not a number."""
    pairs = zip(table["name"].to_pylist(), table["value"].to_pylist(), strict=True)
    return {name: value for name, value in pairs if value is not None and not math.isnan(value)}
