"""Rows as arrays: the views of every example, and the columns that its objective takes.

A view of a row is one token sequence with some tokens trained (a ranked view: several sequences). All arrays are
flat with bounds, so that an optimizer step is cut out of them without a Python loop over tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from selfloop.actors.train.rows.useless import nothing_left, useless_rows
from selfloop.actors.train.rows.views import ORDER, View, flattened, refuse_rows, row_name, view_of
from selfloop.workflows.errors import ObjectiveError, TrainerError
from selfloop.workflows.objectives.base import Objective
from selfloop.workflows.objectives.columns import OF_RESPONSE, ROW_READS, canonical, needed_columns

__all__ = ["Examples", "examples_of"]

SCALARS = ("values", "rewards")
COMPUTED = ("logprobs", "reference_logprobs", "old_logprobs", "hidden", *SCALARS)


def of_distributions(read: str) -> bool:
    """Whether it is made of whole distributions, the policy's and mostly a teacher's."""
    return read in ("token_kl", "correct") or read.startswith("kl_")


def computed(read: str) -> bool:
    """Whether the trainer makes it, and not a column of the rows."""
    return read in COMPUTED or of_distributions(read)


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


def _token_values(examples: Examples, view: str, column: str, who: str) -> np.ndarray:
    """A list column with one float a trained token, flat."""
    table = examples.table
    refuse_rows(table, pc.is_null(table[column]), who, column, "is null")
    values, lengths = flattened(table[column])
    if pa.types.is_list(table.schema.field(column).type.value_type):
        nested = table[column].combine_chunks().flatten()
        values, lengths = flattened(nested)[0], np.diff(examples.views[view].row_targets())
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
    refuse_rows(table, pc.is_null(column), who, name, "is null")
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
