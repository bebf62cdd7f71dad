"""Views of rows as arrays: of every row one token sequence with some tokens trained (a ranked view: several sequences).

All arrays are flat with bounds, so that an optimizer step is cut out of them without a Python loop over tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from selfloop.workflows.errors import ObjectiveError

__all__ = ["ORDER", "View", "flattened", "refuse_rows", "row_name", "sequences_view", "view_of"]

ORDER = ("prompt_id", "sample", "chosen_sample", "rejected_sample")


@dataclass(frozen=True)
class View:
    """One view of all rows. Row i has the sequences row_bounds[i] to row_bounds[i + 1]; sequence s has the tokens
    bounds[s] to bounds[s + 1], of which those at `targets` (places in the sequence) are trained."""

    tokens: np.ndarray
    bounds: np.ndarray
    targets: np.ndarray
    target_bounds: np.ndarray
    row_bounds: np.ndarray
    ranked: bool = False

    def lengths(self) -> np.ndarray:
        """(rows,) longest sequence of each row, tokens."""
        return np.maximum.reduceat(np.diff(self.bounds), self.row_bounds[:-1])

    def row_targets(self) -> np.ndarray:
        """(rows + 1,) bounds of each row's trained tokens."""
        return self.target_bounds[self.row_bounds]

    @cached_property
    def starts(self) -> np.ndarray:
        """(sequences,) tokens before the first trained one: the context; the whole sequence, if none is trained."""
        found = np.diff(self.bounds)
        some = np.diff(self.target_bounds) > 0
        found[some] = self.targets[self.target_bounds[:-1][some]]
        return found

    def contexts(self) -> list[bytes]:
        """A digest of each sequence's context."""
        ends = self.bounds[:-1] + self.starts
        spans = zip(self.bounds[:-1].tolist(), ends.tolist(), strict=True)
        return [blake2b(self.tokens[low:high].tobytes(), digest_size=16).digest() for low, high in spans]

    def responses(self) -> list[bytes]:
        """What follows each sequence's context, and which of it is trained."""
        starts = (self.bounds[:-1] + self.starts).tolist()
        bounds, targets = self.bounds.tolist(), self.target_bounds.tolist()
        return [
            self.tokens[low:high].tobytes() + self.targets[first:last].tobytes()
            for low, high, first, last in zip(starts, bounds[1:], targets[:-1], targets[1:], strict=True)
        ]


def row_name(table: pa.Table, row: int) -> str:
    """How messages name a row."""
    found = [f"{name} {table[name][row].as_py()!r}" for name in ORDER if name in table.column_names]
    return ", ".join(found) or f"row {row}"


def view_of(table: pa.Table, name: str, who: str) -> View:
    """The sequences of a view: `NAME_segments`, else `NAME_ids` after `NAME_prompt_ids` or `prompt_ids`."""
    if f"{name}_segments" in table.column_names:
        return _segments_view(table, name, who)
    ids = f"{name}_ids"
    context = f"{name}_prompt_ids" if f"{name}_prompt_ids" in table.column_names else "prompt_ids"
    for column in (ids, context):
        refuse_rows(table, pc.is_null(table[column]), who, column, "is null")
        refuse_rows(
            table, pc.equal(pc.list_value_length(table[column]), 0), who, column, "is empty: it has no token"
        )
    kind = table.schema.field(ids).type
    if pa.types.is_list(kind.value_type) or pa.types.is_large_list(kind.value_type):
        return _ranked_view(table, ids, context, who)
    head_values, heads = flattened(table[context])
    tail_values, tails = flattened(table[ids])
    bounds = bounds_of(heads + tails)
    tokens = np.empty(bounds[-1], np.int64)
    tokens[places_of(bounds[:-1], heads)] = head_values
    targets = places_of(heads, tails)
    tokens[places_of(bounds[:-1] + heads, tails)] = tail_values
    return View(tokens, bounds, targets, bounds_of(tails), np.arange(len(heads) + 1))


def sequences_view(contexts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> View:
    """A view of token lists: each target after its context."""
    heads = np.array([len(ids) for ids in contexts], np.int64)
    tails = np.array([len(ids) for ids in targets], np.int64)
    parts = [
        np.asarray([*context, *target], np.int64) for context, target in zip(contexts, targets, strict=True)
    ]
    tokens = np.concatenate(parts) if parts else np.empty(0, np.int64)
    return View(
        tokens, bounds_of(heads + tails), places_of(heads, tails), bounds_of(tails), np.arange(len(heads) + 1)
    )


def _ranked_view(table: pa.Table, ids: str, context: str, who: str) -> View:
    """A view of several sequences a row, all after the same context."""
    contexts: list[list[int]] = []
    targets: list[list[int]] = []
    counts: list[int] = []
    for head, group in zip(table[context].to_pylist(), table[ids].to_pylist(), strict=True):
        counts.append(len(group))
        contexts += [head] * len(group)
        targets += [ids_of or [] for ids_of in group]
    flat = sequences_view(contexts, targets)
    return View(flat.tokens, flat.bounds, flat.targets, flat.target_bounds, bounds_of(np.array(counts)), True)


def _segments_view(table: pa.Table, name: str, who: str) -> View:
    """A view of segments: list<struct<ids, trained>>; any of them may be trained."""
    tokens: list[int] = []
    lengths: list[int] = []
    targets: list[int] = []
    counts: list[int] = []
    for row, segments in enumerate(table[f"{name}_segments"].to_pylist()):
        place, before = 0, len(targets)
        for segment in segments or []:
            ids = segment["ids"] or []
            if segment["trained"]:
                targets += range(place, place + len(ids))
            tokens += ids
            place += len(ids)
        lengths.append(place)
        counts.append(len(targets) - before)
        wrong = (
            "has no trained token"
            if counts[-1] == 0
            else "begins with a trained token: no context to predict it"
        )
        if counts[-1] == 0 or targets[before] == 0:
            raise ObjectiveError(f"{who}: column '{name}_segments' {wrong} in {row_name(table, row)}.")
    rows = np.arange(len(lengths) + 1)
    whole, trained = np.array(tokens, np.int64), np.array(targets, np.int64)
    return View(whole, bounds_of(np.array(lengths)), trained, bounds_of(np.array(counts)), rows)


def refuse_rows(table: pa.Table, wrong: Any, who: str, column: str, what: str) -> None:
    """ObjectiveError naming the first row where `wrong` is true."""
    bad = np.flatnonzero(pc.fill_null(wrong, False).to_numpy(zero_copy_only=False))
    if len(bad):
        raise ObjectiveError(
            f"{who}: column {column!r} {what} in {row_name(table, int(bad[0]))} ({len(bad)} of {table.num_rows} rows). "
            "Drop such rows before `train`, or fill the column."
        )


def flattened(column: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The values of a list column, and how many each row has."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    values = array.flatten()
    flat = np.empty(0) if pa.types.is_nested(values.type) else values.to_numpy(zero_copy_only=False)
    return flat, lengths


def bounds_of(lengths: np.ndarray) -> np.ndarray:
    """0, and the sum of the lengths so far."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def steps_of(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ... length - 1 for each length, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def places_of(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1, ... for each (start, length), one after the other."""
    return np.repeat(starts, lengths) + steps_of(lengths)
