"""Batches of rows: cut between prompt groups, and what is counted of each."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["Meta", "column_hash", "count_batch", "counting", "split_groups", "whole_groups"]

Meta = dict[str, Any]
FACTORS = ("advantages", "weight")  # columns that multiply what a row adds to a loss


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


def count_batch(table: pa.Table) -> Meta:
    """What is counted of every batch: rows, failed, truncated and stripped ones, prompt groups, those without a row that can
    move a weight, tokens sampled, verdict states, score sums."""
    meta: Meta = {"rows": table.num_rows}
    if "prompt_id" in table.column_names and table.num_rows:
        numbers = group_numbers(table)
        meta["groups"] = int(numbers.max()) + 1
        meta["silent"] = meta["groups"] - len(np.unique(numbers[counting(table, FACTORS)]))
    if "status" in table.column_names:
        meta["failed"] = table["status"].to_pylist().count("failed")
    for name in table.column_names:
        if name.endswith("_state"):
            states = table[name].drop_null().to_pylist()  # rows that were never judged have none
            meta[name] = {state: states.count(state) for state in sorted(set(states))}
            if (score := name.removesuffix("_state")) in table.column_names:
                meta[f"{score}_sum"] = pc.sum(table[score]).as_py() or 0.0
    if "finish" in table.column_names:
        meta["truncated"] = table["finish"].to_pylist().count("length")
    if "stripped" in table.column_names:
        meta["stripped"] = table["stripped"].to_pylist().count(True)
    if "response_logprobs" in table.column_names:
        lists = table["response_logprobs"].combine_chunks()
        meta["tokens"] = len(lists.flatten())
    return meta


def total(metas: Sequence[Meta]) -> Meta:
    """Counts of batches added up."""
    added: Meta = {}
    for meta in metas:
        for name, value in meta.items():
            if isinstance(value, dict):
                into = added.setdefault(name, {})
                for key, count in value.items():
                    into[key] = into.get(key, 0) + count
            elif isinstance(value, int | float):
                added[name] = added.get(name, 0) + value
    return added


def summary_numbers(table: pa.Table) -> dict[str, float]:
    """The (name, value) rows of a summary node, without what is not a number."""
    pairs = zip(table["name"].to_pylist(), table["value"].to_pylist(), strict=True)
    return {name: value for name, value in pairs if value is not None and not math.isnan(value)}
