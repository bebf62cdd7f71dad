"""Who may have written what a train node learns from: the refusal of rows of other weights than the recipe asked for.

A graph says which nodes make the responses that flow into `train`, and with which model. Rows say the same of themselves.
Where the two differ (a function that invents rows, an engine that served other weights, a damaged part) nothing is
trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from selfloop.workflows.errors import TrainerError
from selfloop.workflows.flow.graph import Graph

__all__ = ["Writer", "Writers", "made_before", "refuse_strangers", "writers_of"]

NAMES = ("prompt_id", "sample", "chosen_sample", "rejected_sample")
SHOWN = 6


class Writer(NamedTuple):
    """A node that makes responses, with its model as its rows name it. A named source has no version."""

    node: str
    model: str
    version: int | None

    def __str__(self) -> str:
        weights = "no weights" if self.version is None else f"version {self.version}"
        return f"{self.model} ({weights}) in {self.node!r}"


@dataclass(frozen=True)
class Writers:
    """Those whose responses the train node `node` may learn from."""

    node: str
    allowed: frozenset[Writer]


def writers_of(graph: Graph, node: str, graph_of: Callable[[int], Graph]) -> frozenset[Writer]:
    """Every node before this one (or itself) that makes responses, also those of earlier iterations whose rows were kept.

    graph_of: the graph of an earlier iteration.
    """
    found: set[Writer] = set()
    waiting, seen = [(graph, node)], set[tuple[int, str]]()
    while waiting:
        where, first = waiting.pop()
        if (where.iteration, first) in seen:
            continue
        seen.add((where.iteration, first))
        for held in where.before(first):
            if held.saved is not None:
                waiting.append((graph_of(held.saved.iteration), held.saved.node))
            elif held.op is not None and held.op.responds:
                model = (held.model.label, held.model.version) if held.model else ("", None)
                found.add(Writer(held.name, *held.op.author(*model)))
    return frozenset(found)


def made_before(graph: Graph, node: str) -> bool:
    """Whether this node or one before it makes responses, or reads rows of an earlier iteration."""
    return any((held.op and held.op.responds) or held.saved for held in graph.before(node))


def refuse_strangers(table: pa.Table, writers: Writers) -> None:
    """Raise TrainerError at the first row (failed ones aside) that none of the writers can have made.

    A response is known by its node, model and version; a pair by the model and version of its chosen side and by the
    version of its rejected side.
    """
    if table.num_rows == 0:
        return
    if "status" in table.column_names:
        table = table.filter(pc.fill_null(pc.not_equal(table["status"], "failed"), True))
    for columns, known in claims(table, writers):
        counted = table.group_by(list(columns)).aggregate([]).to_pylist()
        wrong = [row for row in counted if tuple(row[name] for name in columns) not in known]
        if wrong:
            refuse(table, wrong[0], writers)


def claims(table: pa.Table, writers: Writers) -> Iterator[tuple[tuple[str, ...], set[tuple[Any, ...]]]]:
    """Columns that say who wrote a row, with what they may hold."""
    names, allowed = set(table.column_names), writers.allowed
    if not {"model", "version"} <= names:
        raise TrainerError(
            f"node {writers.node!r}: the rows to learn from do not say which weights wrote them (they have no columns model "
            f"and version, only {', '.join(table.column_names)}). Let the function that made them keep these columns"
        )
    if "node" in names:
        yield ("node", "model", "version"), {tuple(writer) for writer in allowed}
    else:
        yield ("model", "version"), {(writer.model, writer.version) for writer in allowed}
    for side in ("chosen_version", "rejected_version"):
        if side in names:
            yield (side,), {(writer.version,) for writer in allowed}


def refuse(table: pa.Table, wrong: dict[str, Any], writers: Writers) -> None:
    """Name the first such row, what it says, and what would be right."""
    mask = pa.array([True] * table.num_rows)
    for name, value in wrong.items():
        same = pc.is_null(table[name]) if value is None else pc.fill_null(pc.equal(table[name], value), False)
        mask = pc.and_(mask, same)
    rows = table.filter(mask)
    first = ", ".join(f"{name} {rows[name][0].as_py()!r}" for name in NAMES if name in rows.column_names)
    said = ", ".join(f"{name}={value!r}" for name, value in wrong.items())
    known = sorted(map(str, writers.allowed))
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    raise TrainerError(
        f"node {writers.node!r} was given rows of other weights than the recipe asked for: {first} says {said} "
        f"({rows.num_rows} of {table.num_rows} rows), and may be only of {', '.join(known[:SHOWN]) or 'nobody'}{more}. "
        "Nothing was trained. Did a function of the recipe make up rows, or is a part of the run folder damaged? Mend it, "
        "delete the folder of the node that is wrong, and resume the run"
    )
