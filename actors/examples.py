"""Rows as arrays: the views of every example, and the columns that its objective takes.

A view of a row is one token sequence with some tokens trained (a ranked view: several sequences). All arrays are
flat with bounds, so that an optimizer step is cut out of them without a Python loop over tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from selfloop.actors.useless import nothing_left, useless_rows
from selfloop.workflows.errors import ObjectiveError, TrainerError
from selfloop.workflows.objectives.base import Objective
from selfloop.workflows.objectives.columns import OF_RESPONSE, ROW_READS, canonical, needed_columns

__all__ = ["Examples", "View", "examples_of", "sequences_view"]

SCALARS = ("values", "rewards")
COMPUTED = ("logprobs", "reference_logprobs", "old_logprobs", "hidden", *SCALARS)
ORDER = ("prompt_id", "sample", "chosen_sample", "rejected_sample")


def of_distributions(read: str) -> bool:
    """Whether it is made of whole distributions, the policy's and mostly a teacher's."""
    return read in ("token_kl", "correct") or read.startswith("kl_")


def computed(read: str) -> bool:
    """Whether the trainer makes it, and not a column of the rows."""
    return read in COMPUTED or of_distributions(read)


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


@dataclass
class Examples:
    """All rows of a train node, sorted. values: (view, name) -> one float a trained token, flat. columns: name ->
    (rows,), or a list of k numbers a row. left_out: why -> rows that are not here."""

    table: pa.Table
    views: dict[str, View]
    columns: dict[str, np.ndarray | list[np.ndarray]]
    values: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.table.num_rows

    def name(self, row: int) -> str:
        """How messages name a row."""
        return row_name(self.table, row)


def row_name(table: pa.Table, row: int) -> str:
    found = [f"{name} {table[name][row].as_py()!r}" for name in ORDER if name in table.column_names]
    return ", ".join(found) or f"row {row}"


def examples_of(table: pa.Table, objective: Objective, longest: int | None = None) -> Examples:
    """The rows, in order of (prompt_id, sample), as arrays, but for those that nothing can be learned from: failed ones, those
    with a sequence of more than `longest` tokens, and pairs whose sides are the same. Candidates that come with scores alone are
    ranked by them, so that absent ones are known by their rank. Raises ObjectiveError naming the column and the row of
    what the objective cannot take, TrainerError if there is no row."""
    who = type(objective).__name__
    given, table = table.num_rows, ok_rows(table)
    left_out = {"failed": given - table.num_rows}
    keys = [(name, "ascending") for name in ORDER if name in table.column_names]
    table = table.take(pc.sort_indices(table, keys)) if keys else table
    views: dict[str, View] = {}
    if table.num_rows:
        _refuse_missing(table, objective)
        views = {name: view_of(table, name, who) for name in objective.reads}
        useless = useless_rows(views, longest)
        left_out |= {why: int(rows.sum()) for why, rows in useless.items()}
        if (bad := np.any(list(useless.values()), axis=0)).any():
            table = table.filter(pa.array(~bad))
            views = {name: view_of(table, name, who) for name in objective.reads} if table.num_rows else {}
    if table.num_rows == 0:
        raise TrainerError(nothing_left(given, left_out, longest))
    examples = Examples(table, views, {}, {}, left_out)
    for view, reads in objective.reads.items():
        for read in reads:
            _add_values(examples, view, read, who)
    needed = needed_columns(objective, table.column_names)
    for name in dict.fromkeys([*needed, *objective.optional]):
        view, _, read = canonical(name).rpartition(".")
        if view in examples.views and read not in ROW_READS:
            if name in needed or not _has_gaps(examples.table, view, read):
                _add_values(examples, view, read, who)
        elif name in table.column_names and (name in needed or table[name].null_count < table.num_rows):
            _add_column(examples, name, who)
    scores = examples.columns.get("scores")
    if isinstance(scores, list) and "rank" not in examples.columns:
        examples.columns["rank"] = [(row[None] > row[:, None]).sum(1).astype(np.float64) for row in scores]
    return examples


def ok_rows(table: pa.Table) -> pa.Table:
    """The rows that did not fail; a row that does not say is one of them."""
    if "status" not in table.column_names:
        return table
    return table.filter(pc.fill_null(pc.not_equal(table["status"], "failed"), True))


def _has_gaps(table: pa.Table, view: str, read: str) -> bool:
    """Whether some rows lack an optional column's values, e.g. a demonstration those of a sampler."""
    source = value_source(table, view, read)
    return source is not None and table[source].null_count > 0


def _add_values(examples: Examples, view: str, read: str, who: str) -> None:
    """Per-token values of a view, if a column holds them."""
    source = value_source(examples.table, view, read)
    if source is not None:
        examples.values[view, read] = _token_values(examples, view, source, who)


def _add_column(examples: Examples, name: str, who: str) -> None:
    """A column without a view; some of them may hold one value a response token."""
    kind = examples.table.schema.field(name).type
    if name in OF_RESPONSE and pa.types.is_nested(kind):
        examples.values["", name] = _token_values(examples, "response", name, who)
    else:
        examples.columns[name] = _column(examples.table, name, who)


def value_source(table: pa.Table, view: str, read: str) -> str | None:
    """The column that holds a per-token value of a view; None if the trainer computes it or nobody does."""
    if read in ("logprobs", "hidden", *SCALARS) or of_distributions(read):
        return None
    names = [
        f"{view}.{read}",
        f"{view}_{read}",
        *([f"{view}_logprobs"] if read == "sampling_logprobs" else []),
    ]
    return next((name for name in names if name in table.column_names), None)


def _refuse_missing(table: pa.Table, objective: Objective) -> None:
    """One error for everything that is not there."""
    missing: list[str] = []
    for view, reads in objective.reads.items():
        if f"{view}_segments" not in table.column_names:
            context = {f"{view}_prompt_ids", "prompt_ids"} & set(table.column_names)
            missing += [] if f"{view}_ids" in table.column_names else [f"{view}_ids"]
            missing += [] if context else ["prompt_ids"]
        for read in reads:
            if not computed(read) and value_source(table, view, read) is None:
                missing.append(f"{view}_{read}")
    needed = needed_columns(objective, table.column_names)
    missing += [name for name in needed if name not in table.column_names and "." not in name]
    if missing:
        raise ObjectiveError(
            f"{type(objective).__name__}: the rows lack {', '.join(dict.fromkeys(missing))}. They have "
            f"{', '.join(table.column_names)}. Add the missing columns before `train` (sample, pair, score, measure "
            "or map), or choose an objective that does without."
        )


def view_of(table: pa.Table, name: str, who: str) -> View:
    """The sequences of a view: `NAME_segments`, else `NAME_ids` after `NAME_prompt_ids` or `prompt_ids`."""
    if f"{name}_segments" in table.column_names:
        return _segments_view(table, name, who)
    ids = f"{name}_ids"
    context = f"{name}_prompt_ids" if f"{name}_prompt_ids" in table.column_names else "prompt_ids"
    for column in (ids, context):
        _refuse(table, pc.is_null(table[column]), who, column, "is null")
        _refuse(
            table, pc.equal(pc.list_value_length(table[column]), 0), who, column, "is empty: it has no token"
        )
    kind = table.schema.field(ids).type
    if pa.types.is_list(kind.value_type) or pa.types.is_large_list(kind.value_type):
        return _ranked_view(table, ids, context, who)
    head_values, heads = _flat(table[context])
    tail_values, tails = _flat(table[ids])
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


def _token_values(examples: Examples, view: str, column: str, who: str) -> np.ndarray:
    """A list column with one float a trained token, flat."""
    table = examples.table
    _refuse(table, pc.is_null(table[column]), who, column, "is null")
    values, lengths = _flat(table[column])
    if pa.types.is_list(table.schema.field(column).type.value_type):
        nested = table[column].combine_chunks().flatten()
        values, lengths = _flat(nested)[0], np.diff(examples.views[view].row_targets())
    wanted = np.diff(examples.views[view].row_targets())
    if len(values) != wanted.sum() or (lengths != wanted).any():
        row = int(np.flatnonzero(lengths != wanted)[0]) if (lengths != wanted).any() else 0
        raise ObjectiveError(
            f"{who}: column {column!r} has {lengths[row]} values in {examples.name(row)}, but the view {view!r} has "
            f"{wanted[row]} trained tokens there. It must hold one value a trained token."
        )
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        row = int(np.searchsorted(examples.views[view].row_targets(), bad[0], side="right")) - 1
        raise ObjectiveError(
            f"{who}: column {column!r} holds {values[bad[0]]} in {examples.name(row)}: a loss on it would spoil the "
            "weights. Drop the row before `train`, or find out why its log-prob is not finite."
        )
    return values.astype(np.float32)


def _column(table: pa.Table, name: str, who: str) -> np.ndarray | list[np.ndarray]:
    """A column without a view: a number a row, or a list a row."""
    column = table[name]
    _refuse(table, pc.is_null(column), who, name, "is null")
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return [np.asarray(values, np.float64) for values in column.to_pylist()]
    try:
        values = column.cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise ObjectiveError(f"{who}: column {name!r} is {column.type}, not a number ({error}).") from error
    except pa.ArrowNotImplementedError as error:
        raise ObjectiveError(f"{who}: column {name!r} is {column.type}, not a number.") from error
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ObjectiveError(
            f"{who}: column {name!r} holds {values[bad[0]]} in {row_name(table, int(bad[0]))}: not a finite number."
        )
    return values


def _refuse(table: pa.Table, wrong: Any, who: str, column: str, what: str) -> None:
    """ObjectiveError naming the first row where `wrong` is true."""
    bad = np.flatnonzero(pc.fill_null(wrong, False).to_numpy(zero_copy_only=False))
    if len(bad):
        raise ObjectiveError(
            f"{who}: column {column!r} {what} in {row_name(table, int(bad[0]))} ({len(bad)} of {table.num_rows} rows). "
            "Drop such rows before `train`, or fill the column."
        )


def _flat(column: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, np.ndarray]:
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
