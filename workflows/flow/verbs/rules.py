"""The verbs score, keep, pair and map: plain functions of a prompt group or of a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from selfloop.workflows.data.rows import Row, groups, with_column
from selfloop.workflows.errors import RecipeError
from selfloop.workflows.flow.telling import Seen, Told, counted, named
from selfloop.workflows.flow.verbs.base import PROMPT_COLUMNS, Context, Op, Shows, apply, reads_of

__all__ = ["Keep", "Map", "Pair", "Score"]

PAIR_SIDES = {
    "completion": "",
    "response_ids": "_ids",
    "response_logprobs": "_logprobs",
    "score": "_score",
    "sample": "_sample",
    "version": "_version",
}
PAIR_EXTRAS = ("weight", "margin")


@dataclass(frozen=True)
class Score(Op):
    """A plain function of a prompt group: one number (or None) a row."""

    verb: ClassVar[str] = "score"
    phrase: ClassVar[str] = "answers are scored"
    shows: ClassVar[Shows] = "value"
    function: Callable[..., Iterable[float | None]]
    column: str = "score"
    needs: frozenset[str] = frozenset()

    @property
    def reads(self) -> frozenset[str]:
        return self.needs

    @property
    def writes(self) -> frozenset[str]:
        return frozenset({self.column})

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        values: list[float | None] = [None] * tables[0].num_rows
        for name, rows in groups(tables[0]):
            made = apply(self.function, context, name, rows, context.draw(name))
            for row, value in zip(rows, made, strict=True):
                values[row.index] = value
        return with_column(tables[0], self.column, pa.array(values, pa.float64()))

    def tell(self, told: Told) -> Iterator[str]:
        yield f"{self.column} by {named(self.function)}"


@dataclass(frozen=True)
class Keep(Op):
    """The rows of each prompt group that a rule keeps; failed rows are never among them."""

    verb: ClassVar[str] = "keep"
    phrase: ClassVar[str] = "the answers worth learning from are kept"
    shows: ClassVar[Shows] = ""
    rule: Callable[..., Iterable[Row]]

    @property
    def reads(self) -> frozenset[str]:
        return reads_of(self.rule)

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        kept: list[int] = []
        for name, rows in groups(tables[0]):
            kept += sorted(row.index for row in apply(self.rule, context, name, rows, context.draw(name)))
        return tables[0].take(pa.array(kept, pa.int64()))

    def tell(self, told: Told) -> Iterator[str]:
        left = len(told.before) - len(told.rows)
        what = f"kept {counted(told.rows)}" if told.rows else "kept nothing of it"
        yield f"{what} by the rule {named(self.rule)}" + (f", dropped {left}" if left and told.rows else "")


@dataclass(frozen=True)
class Pair(Op):
    """Preference pairs of each prompt group, one row a pair."""

    verb: ClassVar[str] = "pair"
    phrase: ClassVar[str] = "better and worse answers are paired"
    shows: ClassVar[Shows] = "pair"
    rule: Callable[..., Iterable[tuple[Any, ...]]]
    adds: tuple[tuple[str, pa.DataType], ...] = ()

    @property
    def reads(self) -> frozenset[str]:
        return reads_of(self.rule) | {"prompt_id", "prompt_ids", "response_ids", "completion"}

    def columns(self, inputs: Sequence[frozenset[str]]) -> frozenset[str]:
        sides = {
            f"{side}{end}"
            for name, end in PAIR_SIDES.items()
            if name in inputs[0]
            for side in ("chosen", "rejected")
        }
        return (
            (inputs[0] & (PROMPT_COLUMNS | {"prompt_ids", "model", "version"}))
            | sides
            | {"sample", *PAIR_EXTRAS, *(name for name, _ in self.adds)}
        )

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        table = tables[0]
        chosen, rejected, numbers, extras = [], [], [], []
        for name, rows in groups(table):
            for number, pair in enumerate(apply(self.rule, context, name, rows, context.draw(name))):
                chosen.append(pair[0].index)
                rejected.append(pair[1].index)
                numbers.append(number)
                extras.append(pair[2] if len(pair) > 2 else {})
        take = {"chosen": pa.array(chosen, pa.int64()), "rejected": pa.array(rejected, pa.int64())}
        common = [
            name
            for name in table.column_names
            if name in PROMPT_COLUMNS or name in ("prompt_ids", "model", "version")
        ]
        made = table.select(common).take(take["chosen"])
        for name, end in PAIR_SIDES.items():
            for side, indices in take.items() if name in table.column_names else ():
                made = with_column(made, f"{side}{end}", table[name].take(indices))
        made = with_column(made, "sample", pa.array(numbers, pa.int64()))
        for name, default in zip(PAIR_EXTRAS, (1.0, None), strict=True):
            made = with_column(
                made, name, pa.array([extra.get(name, default) for extra in extras], pa.float64())
            )
        for name, kind in self.adds:
            made = with_column(made, name, pa.array([extra.get(name) for extra in extras], kind))
        return made

    def rows(self, n: int, groups: int) -> int:
        return min(n, groups)

    def tell(self, told: Told) -> Iterator[str]:
        made = counted(told.rows, "pair") if told.rows else "in no pair"
        yield f"{made} by the rule {named(self.rule)}"

    def became(self, before: list[Seen], among: Callable[[], list[Seen]], group: list[Seen]) -> list[Seen]:
        numbers = {row["sample"] for row in before}
        return [row for row in group if numbers & {row["chosen_sample"], row["rejected_sample"]}]


@dataclass(frozen=True)
class Map(Op):
    """A function of one row that returns none, one or many rows (dicts of the columns that change).

    A returned dict with `prompt` opens a new prompt group whose `parent` is the row's prompt. With `beside`, the second
    input's rows are handed to every call as a list.
    """

    verb: ClassVar[str] = "map"
    opens: ClassVar[bool] = True
    phrase: ClassVar[str] = "rows are rewritten"
    function: Callable[..., Any]
    adds: tuple[tuple[str, pa.DataType], ...] = ()
    needs: frozenset[str] = frozenset()
    beside: bool = False

    @property
    def reads(self) -> frozenset[str]:
        return self.needs

    @property
    def writes(self) -> frozenset[str]:
        return frozenset(name for name, _ in self.adds)

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        from selfloop.workflows.data.schema import prompt_id

        table = tables[0]
        schema = table.schema
        for name, kind in self.adds:
            if name not in schema.names:
                schema = schema.append(pa.field(name, kind))
        more = ([row for beside in tables[1:] for row in beside.to_pylist()],) if self.beside else ()
        made: list[dict[str, Any]] = []
        opened: dict[str, int] = {}
        for name, rows in groups(table):
            for row in rows:
                rng = context.draw(name, row.get("sample"))
                for new in apply(self.function, context, name, row, *more, rng):
                    declared(new, schema, self.function, context)
                    filled = {**row, **new}
                    if "prompt" in new and "prompt_id" not in new:
                        count = opened[name] = opened.get(name, -1) + 1
                        filled |= {
                            "prompt_id": prompt_id(new["prompt"], new.get("answer"), count, parent=name),
                            "parent": name,
                        }
                    made.append(filled)
        return pa.Table.from_pylist(made, schema=schema)


def declared(new: dict[str, Any], schema: pa.Schema, function: Any, context: Context) -> None:
    """Refuse a row with a column that neither its input has nor the recipe declared: it would be lost in silence."""
    unknown = sorted(set(new) - set(schema.names) - PROMPT_COLUMNS)
    if unknown:
        raise RecipeError(
            f"node {context.node!r}: {getattr(function, '__qualname__', type(function).__qualname__)} gave rows with the "
            f"column {unknown[0]!r}, which nobody declared; add adds={{{unknown[0]!r}: its Arrow type}} to the verb"
        )
