"""What each verb does to one batch. An op is a frozen, picklable description that knows how to run itself.

Both runtimes call the same ops: `op.run(tables, context)` takes one table an input and returns one table. Where it runs
is `op.place`: on an engine, on the trainer, on a CPU worker. Rows that fail become data (`status`); an op that breaks
raises.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from selfloop.workflows.data.schema import COLUMNS, Message, assistant
from selfloop.workflows.data.seeds import derive_seed
from selfloop.workflows.errors import RecipeError, SelfloopError
from selfloop.workflows.flow.keys import identity
from selfloop.workflows.flow.rows import Row, groups, with_column

if TYPE_CHECKING:
    from selfloop.actors.engines import Engine
    from selfloop.workflows.flow.codec import Codec

__all__ = [
    "Concat",
    "Context",
    "Demonstrate",
    "Gather",
    "Keep",
    "Map",
    "Merge",
    "Op",
    "Pair",
    "Place",
    "Sample",
    "Save",
    "Score",
    "Source",
    "Summary",
]

Place = Literal["driver", "engine", "trainer", "worker"]
PROMPT_COLUMNS = frozenset({"prompt_id", "prompt", "answer", "meta", "parent"})
RESPONSE_COLUMNS = ("sample", "prompt_ids", "response_ids", "response", "completion", "response_logprobs", "finish",
                    "seed", "model", "version", "node", "status", "error")  # fmt: skip
PAIR_SIDES = {"completion": "", "response_ids": "_ids", "response_logprobs": "_logprobs", "score": "_score",
              "sample": "_sample", "version": "_version"}  # fmt: skip
PAIR_EXTRAS = ("weight", "margin")


class Scorer(Protocol):
    """What `measure` needs of a trainer: `what` a checkpoint makes of targets after contexts, one value a row. groups: sizes
    of consecutive prompt groups."""

    async def measure(
        self,
        what: str,
        folder: str,
        contexts: list[list[int]],
        targets: list[list[int]],
        groups: Sequence[int],
    ) -> list[Any]: ...


@dataclass
class Context:
    """What an op is given beside its tables."""

    node: str
    iteration: int
    seed: int
    model: str = ""  # role@version
    version: int = 0
    folder: str = ""  # checkpoint of the model
    engine: Engine | None = None
    codec: Codec | None = None
    scorer: Scorer | None = None
    pauses: tuple[float, ...] = (
        0.0,
        0.2,
        1.0,
    )  # seconds before each time that rows are judged whose judge broke

    def draw(self, *parts: object) -> random.Random:
        """A generator that depends only on the run, the iteration, the node and these parts."""
        return random.Random(derive_seed(self.seed, self.iteration, self.node, *parts))


@dataclass(frozen=True)
class Op:
    """Base of all ops. `reads`: columns its inputs must have. `columns`: what its rows have afterwards."""

    verb: ClassVar[str] = ""
    place: ClassVar[Place] = "worker"
    barrier: ClassVar[bool] = False

    @property
    def reads(self) -> frozenset[str]:
        return frozenset()

    def columns(self, inputs: Sequence[frozenset[str]]) -> frozenset[str]:
        return inputs[0]

    @property
    def settings(self) -> dict[str, Any]:
        """The filled-in settings, for content keys and `check`."""
        return {item.name: identity(getattr(self, item.name)) for item in fields(self)}

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        raise NotImplementedError


@dataclass(frozen=True)
class Source(Op):
    """Rows of a named source, from row `start` of its seeded order. The driver slices them."""

    verb: ClassVar[str] = "prompts"
    place: ClassVar[Place] = "driver"
    source: str = "prompts"
    start: int = 0
    count: int = 0
    has: frozenset[str] = PROMPT_COLUMNS

    def columns(self, inputs: Sequence[frozenset[str]]) -> frozenset[str]:
        return self.has


@dataclass(frozen=True)
class Sample(Op):
    """n responses a row. Each has a seed of its own, so batches, replicas and retries do not matter.

    show: other messages that the model is given for a row; the row's prompt stays what it is.
    """

    verb: ClassVar[str] = "sample"
    place: ClassVar[Place] = "engine"
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    show: Callable[[Row], list[Message]] | None = None
    needs: frozenset[str] = frozenset()

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"prompt_id", "prompt"}) | self.needs

    def columns(self, inputs: Sequence[frozenset[str]]) -> frozenset[str]:
        return (inputs[0] & PROMPT_COLUMNS) | frozenset(RESPONSE_COLUMNS)

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        from selfloop.actors.engines import Ask, SamplingParams

        assert context.engine is not None and context.codec is not None
        prompts = tables[0].select([name for name in tables[0].column_names if name in PROMPT_COLUMNS])
        params = SamplingParams(self.temperature, self.top_p, self.top_k, self.max_tokens, self.stop)
        encoded = [encode(context.codec, messages) for messages in self.shown(tables[0], context)]
        names: list[str] = prompts["prompt_id"].to_pylist()
        numbers = numbered(name for name in names for _ in range(self.n))
        seeds = [derive_seed(context.seed, context.iteration, context.node, names[place // self.n], k)
                 for place, k in enumerate(numbers)]  # fmt: skip
        asks = [Ask(ids, seeds[row * self.n + k], params)
                for row, (ids, error) in enumerate(encoded) if error is None for k in range(self.n)]  # fmt: skip
        replies = iter(await context.engine.sample(asks))
        rows = [reply_row(next(replies) if error is None else None, ids, error)
                for ids, error in encoded for _ in range(self.n)]  # fmt: skip
        repeated = prompts.take(
            pa.array([row for row in range(len(names)) for _ in range(self.n)], pa.int64())
        )
        return add_responses(repeated, rows, seeds, numbers, context)

    def shown(self, table: pa.Table, context: Context) -> list[list[Message]]:
        """The messages that the model is given for each row."""
        messages = table["prompt"].to_pylist()
        if self.show is not None:
            for name, rows in groups(table):
                for row in rows:
                    messages[row.index] = call(self.show, context, name, row)
        return messages

    def failed(self, table: pa.Table, context: Context, error: str) -> pa.Table:
        """The rows of prompts that could not be sampled at all."""
        count = table.num_rows * self.n
        prompts = table.select([name for name in table.column_names if name in PROMPT_COLUMNS])
        repeated = prompts.take(
            pa.array([row for row in range(table.num_rows) for _ in range(self.n)], pa.int64())
        )
        samples = numbered(name for name in table["prompt_id"].to_pylist() for _ in range(self.n))
        return add_responses(repeated, [reply_row(None, [], error)] * count, [0] * count, samples, context)


@dataclass(frozen=True)
class Demonstrate(Op):
    """The text in a column as the response to its prompt, with the template's end of turn unless it is cut. Its source wrote it;
    end markers that it spells at its end are taken off (`stripped`).

    The column may hold messages, of which the last one counts; the source's `label` of the response stays beside it.
    """

    verb: ClassVar[str] = "demonstrate"
    column: str = "answer"
    source: str = "prompts"
    max_tokens: int | None = None

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"prompt_id", "prompt", self.column})

    def columns(self, inputs: Sequence[frozenset[str]]) -> frozenset[str]:
        return (inputs[0] & (PROMPT_COLUMNS | {"label"})) | frozenset(RESPONSE_COLUMNS) | {"stripped"}

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        from selfloop.workflows.flow.codec import codec_of

        codec = context.codec or codec_of(context.folder)
        kept = PROMPT_COLUMNS | {"label"}
        prompts = tables[0].select([name for name in tables[0].column_names if name in kept])
        given = tables[0][self.column].to_pylist()
        texts: list[Any] = [
            value[-1]["content"] if isinstance(value, list) and value else value for value in given
        ]
        rows = [self.row(codec, messages, text)
                for messages, text in zip(prompts["prompt"].to_pylist(), texts, strict=True)]  # fmt: skip
        told = replace(context, model=self.source, codec=codec)
        table = add_responses(prompts, rows, [None] * len(rows), [0] * len(rows), told)
        marked = [bool(text) and codec.without_end(text) != text for text in texts]
        table = with_column(table, "stripped", pa.array(marked, pa.bool_()))
        return with_column(table, "version", pa.nulls(len(rows), pa.int64()))

    def row(self, codec: Codec, messages: list[dict[str, str]], text: str | None) -> dict[str, Any]:
        """The response's columns: no log-probs, because nobody sampled it."""
        prompt_ids, error = encode(codec, messages)
        text = codec.without_end(text or "")
        ids = codec.encode_response(text)
        if not text:
            error = error or f"the prompt has no {self.column} to show"
        cut = self.max_tokens is not None and len(ids) > self.max_tokens
        made = reply_row(None, prompt_ids, error)
        if error:
            return made
        finish = "length" if cut else "stop"
        told = {"response_ids": ids[: self.max_tokens], "finish": finish, "status": "ok"}
        return made | told | {"response_logprobs": None}


def numbered(names: Iterable[str]) -> list[int]:
    """The number of each row within its prompt group, from 0."""
    seen: dict[str, int] = {}
    numbers: list[int] = []
    for name in names:
        numbers.append(seen.get(name, 0))
        seen[name] = numbers[-1] + 1
    return numbers


def encode(codec: Codec, messages: list[dict[str, str]]) -> tuple[list[int], str | None]:
    """Tokens of a prompt, or why the chat template refused it."""
    try:
        return codec.encode(messages), None
    except (
        Exception
    ) as error:  # a template is a program of the model's author: whatever it raises is about this row
        return [], f"the chat template refused these messages: {type(error).__name__}: {error}"


def reply_row(reply: Any, prompt_ids: list[int], error: str | None) -> dict[str, Any]:
    """The columns of one reply."""
    problem = error if reply is None else reply.error
    finish = "error" if reply is None else reply.finish
    failed = finish == "error"
    return {
        "prompt_ids": prompt_ids,
        "response_ids": [] if reply is None else reply.ids,
        "response_logprobs": [] if reply is None else reply.logprobs,
        "finish": finish,
        "status": "failed" if failed else "ok",
        "error": problem if failed else None,
    }


def add_responses(
    table: pa.Table,
    rows: list[dict[str, Any]],
    seeds: list[Any],
    samples: list[int],
    context: Context,
) -> pa.Table:
    """Append the response columns to a table that has one row a response."""
    texts = context.codec.decode([row["response_ids"] for row in rows]) if context.codec else [""] * len(rows)
    made: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
    made |= {
        "sample": samples,
        "seed": seeds,
        "response": texts,
        "completion": [assistant(text) for text in texts],
    }
    constants = {"model": context.model, "version": context.version, "node": context.node}
    for name in RESPONSE_COLUMNS:
        values = [constants[name]] * len(rows) if name in constants else made.get(name, [])
        table = with_column(table, name, pa.array(values, COLUMNS[name][0]))
    return table


@dataclass(frozen=True)
class Score(Op):
    """A plain function of a prompt group: one number (or None) a row."""

    verb: ClassVar[str] = "score"
    function: Callable[..., Iterable[float | None]]
    column: str = "score"
    needs: frozenset[str] = frozenset()

    @property
    def reads(self) -> frozenset[str]:
        return self.needs

    def columns(self, inputs: Sequence[frozenset[str]]) -> frozenset[str]:
        return inputs[0] | {self.column}

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        values: list[float | None] = [None] * tables[0].num_rows
        for name, rows in groups(tables[0]):
            made = apply(self.function, context, name, rows, context.draw(name))
            for row, value in zip(rows, made, strict=True):
                values[row.index] = value
        return with_column(tables[0], self.column, pa.array(values, pa.float64()))


def reads_of(rule: Any) -> frozenset[str]:
    """The columns without which a rule could not choose, as it declares them in `reads`."""
    return frozenset(getattr(rule, "reads", ()))


@dataclass(frozen=True)
class Keep(Op):
    """The rows of each prompt group that a rule keeps; failed rows are never among them."""

    verb: ClassVar[str] = "keep"
    rule: Callable[..., Iterable[Row]]

    @property
    def reads(self) -> frozenset[str]:
        return reads_of(self.rule)

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        kept: list[int] = []
        for name, rows in groups(tables[0]):
            kept += sorted(row.index for row in apply(self.rule, context, name, rows, context.draw(name)))
        return tables[0].take(pa.array(kept, pa.int64()))


@dataclass(frozen=True)
class Pair(Op):
    """Preference pairs of each prompt group, one row a pair."""

    verb: ClassVar[str] = "pair"
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
        common = [name for name in table.column_names
                  if name in PROMPT_COLUMNS or name in ("prompt_ids", "model", "version")]  # fmt: skip
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


@dataclass(frozen=True)
class Map(Op):
    """A function of one row that returns none, one or many rows (dicts of the columns that change).

    A returned dict with `prompt` opens a new prompt group whose `parent` is the row's prompt. With `beside`, the second
    input's rows are handed to every call as a list.
    """

    verb: ClassVar[str] = "map"
    function: Callable[..., Any]
    adds: tuple[tuple[str, pa.DataType], ...] = ()
    needs: frozenset[str] = frozenset()
    beside: bool = False

    @property
    def reads(self) -> frozenset[str]:
        return self.needs

    def columns(self, inputs: Sequence[frozenset[str]]) -> frozenset[str]:
        return inputs[0] | {name for name, _ in self.adds}

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


@dataclass(frozen=True)
class Gather(Op):
    """A function of the whole stream: a threshold over all rows, a deduplication, a rating fit. A barrier."""

    verb: ClassVar[str] = "gather"
    barrier: ClassVar[bool] = True
    function: Callable[..., pa.Table]
    needs: frozenset[str] = frozenset()
    adds: frozenset[str] = frozenset()

    @property
    def reads(self) -> frozenset[str]:
        return self.needs

    def columns(self, inputs: Sequence[frozenset[str]]) -> frozenset[str]:
        return inputs[0] | self.adds

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        return self.function(tables[0], context.draw("gather"))


@dataclass(frozen=True)
class Merge(Op):
    """Join streams of the same prompts inside each prompt group; samples are numbered anew.

    Batch k is joined with batch k, so the lint refuses streams that are not cut into the same batches.
    """

    verb: ClassVar[str] = "merge"

    def columns(self, inputs: Sequence[frozenset[str]]) -> frozenset[str]:
        return frozenset.union(*inputs)

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        joined = pa.concat_tables(tables, promote_options="default")
        order: dict[str, int] = {}
        ids = joined["prompt_id"].to_pylist()
        for name in ids:
            order.setdefault(name, len(order))
        rank = pa.array([order[name] for name in ids], pa.int64())
        joined = joined.take(pc.sort_indices(pa.table({"g": rank, "i": pa.array(range(len(ids)))}),
                                             sort_keys=[("g", "ascending"), ("i", "ascending")]))  # fmt: skip
        return with_column(joined, "sample", pa.array(numbered(joined["prompt_id"].to_pylist()), pa.int64()))


@dataclass(frozen=True)
class Concat(Op):
    """Append the batches of further streams (other prompts)."""

    verb: ClassVar[str] = "concat"

    def columns(self, inputs: Sequence[frozenset[str]]) -> frozenset[str]:
        return frozenset.union(*inputs)

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        return tables[0]


@dataclass(frozen=True)
class Save(Op):
    """Keep a stream under its node's name for `saved(name)` of later iterations."""

    verb: ClassVar[str] = "save"

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        return tables[0]


@dataclass(frozen=True)
class Summary(Op):
    """Named numbers from whole streams: a barrier whose rows are (name, value)."""

    verb: ClassVar[str] = "summary"
    barrier: ClassVar[bool] = True
    function: Callable[..., dict[str, float]]

    def columns(self, inputs: Sequence[frozenset[str]]) -> frozenset[str]:
        return frozenset({"name", "value"})

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        numbers = self.function(*tables, seed=derive_seed(context.seed, context.iteration, context.node))
        return pa.table({"name": pa.array(list(numbers), pa.string()),
                         "value": pa.array(list(numbers.values()), pa.float64())})  # fmt: skip


def declared(new: dict[str, Any], schema: pa.Schema, function: Any, context: Context) -> None:
    """Refuse a row with a column that neither its input has nor the recipe declared: it would be lost in silence."""
    unknown = sorted(set(new) - set(schema.names) - PROMPT_COLUMNS)
    if unknown:
        raise RecipeError(
            f"node {context.node!r}: {getattr(function, '__qualname__', type(function).__qualname__)} gave rows with the "
            f"column {unknown[0]!r}, which nobody declared; add adds={{{unknown[0]!r}: its Arrow type}} to the verb"
        )


def apply(function: Callable[..., Any], context: Context, group: str, *args: Any) -> list[Any]:
    """What a recipe's function gives for a prompt group, as a list."""

    def listed() -> list[Any]:
        result = function(*args)
        return [] if result is None else [result] if isinstance(result, dict) else list(result)

    return call(listed, context, group, named=function)


def call(function: Callable[..., Any], context: Context, group: str, *args: Any, named: Any = None) -> Any:
    """What a recipe's function gives; what it raises becomes one typed error."""
    try:
        return function(*args)
    except SelfloopError:
        raise
    except Exception as error:  # the recipe's own code: it may raise anything
        function = named or function
        name = getattr(function, "__qualname__", type(function).__qualname__)
        raise RecipeError(
            f"node {context.node!r}: {name} raised {type(error).__name__}: {error} on prompt {group} (iteration "
            f"{context.iteration}). The rows before it are committed: mend {name} and resume the run"
        ) from error
