"""The `play` verb: one small async program per prompt group, for what depends on the model's own words.

All programs of a batch run at once, and what they ask in one turn of the event loop goes to the engine as one call.
An ask is seeded by its row, its tokens and how often the program has asked them before: never by time or order of
arrival, so a program can be played again anywhere and says the same.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from selfloop.workflows.data.rows import Row, groups
from selfloop.workflows.data.schema import COLUMNS, Message, assistant, prompt_id
from selfloop.workflows.data.seeds import derive_seed
from selfloop.workflows.errors import SelfloopError
from selfloop.workflows.flow.telling import Seen, Told, named
from selfloop.workflows.flow.verbs.base import PROMPT_COLUMNS, Context, Op, Place
from selfloop.workflows.flow.verbs.responses import RESPONSE_COLUMNS
from selfloop.workflows.flow.verbs.rules import declared

if TYPE_CHECKING:
    from selfloop.workflows.flow.asks import Ask, Reply
    from selfloop.workflows.models.codec import Codec

__all__ = ["VERDICT", "AskError", "Play", "Player", "Program", "Said", "Speaker", "graded"]

VERDICT = {"score": pa.float64(), "score_state": pa.string()}
"""What a program that judges adds, by `graded`."""

Program = Callable[..., Awaitable[Any]]
"""async (player, rows of one prompt group, [rows beside,] rng) -> None, or one or several of: `Said`, dict of columns."""


class AskError(Exception):
    """The engine refused one ask (too long, no tokens). A program that does not catch it gives a failed row."""


@dataclass(frozen=True)
class Said:
    """What a model said: its own tokens after `prompt_ids`, never re-tokenised.

    A continuation of a `Said` is one `Said` over all of it; `new` counts its last tokens, `step` is their text.
    """

    prompt_ids: list[int]
    ids: list[int]
    logprobs: list[float]
    text: str
    step: str
    new: int
    finish: str
    ended: bool  # by the end token
    seed: int
    source: tuple[str, int, str]  # role@version, version, node

    def row(self, **more: Any) -> dict[str, Any]:
        """The response columns, which make a row that can be trained on, and any others."""
        model, version, node = self.source
        return {
            "prompt_ids": self.prompt_ids,
            "response_ids": self.ids,
            "response_logprobs": self.logprobs,
            "response": self.text,
            "completion": assistant(self.text),
            "finish": self.finish,
            "seed": self.seed,
            "model": model,
            "version": version,
            "node": node,
            **more,
        }


@dataclass
class Desk:
    """Collects the asks of one turn of the event loop into one call of the engine."""

    call: Callable[[list[Any]], Awaitable[Sequence[Any]]]
    waiting: list[tuple[Any, asyncio.Future[Any]]] = field(default_factory=list)
    calls: set[asyncio.Task[None]] = field(default_factory=set)

    async def ask(self, one: Any) -> Any:
        loop = asyncio.get_running_loop()
        if not self.waiting:
            loop.call_soon(self.hand_over)
        answer = loop.create_future()
        self.waiting.append((one, answer))
        return await answer

    def hand_over(self) -> None:
        asked, self.waiting = self.waiting, []
        task = asyncio.get_running_loop().create_task(self.serve(asked))
        self.calls.add(task)
        task.add_done_callback(self.calls.discard)

    async def serve(self, asked: list[tuple[Any, asyncio.Future[Any]]]) -> None:
        try:
            replies = await self.call([one for one, _ in asked])
        except Exception as error:  # a broken engine: every program that waits for it hears of it
            for _, answer in asked:
                if not answer.done():
                    answer.set_exception(error)
            return
        for (_, answer), reply in zip(asked, replies, strict=True):
            if not answer.done():
                answer.set_result(reply)


class Speaker:
    """A model as one program sees it."""

    def __init__(self, context: Context, row: str, samples: Desk, labels: Desk, max_tokens: int):
        assert context.codec is not None
        self.context, self.row, self.max_tokens = context, row, max_tokens
        self.codec: Codec = context.codec
        self.samples, self.labels = samples, labels
        self.asked: Counter[str] = Counter()

    async def sample(
        self,
        messages: list[Message],
        n: int = 1,
        *,
        after: Said | str | Sequence[int] = "",
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        max_tokens: int | None = None,
        stop: tuple[str, ...] = (),
    ) -> list[Said]:
        """n responses, or continuations of a response begun: of a `Said` (its tokens stay part of the response), or of
        a text or tokens that the program gives (they are context)."""
        from selfloop.workflows.flow.asks import Ask, SamplingParams

        context, begun = self.tokens(messages, after)
        params = SamplingParams(temperature, top_p, top_k, max_tokens or self.max_tokens, stop)
        given = context + (begun.ids if begun else [])
        asks = [Ask(given, seed, params) for seed in self.seeds(given, n)]
        replies = await asyncio.gather(*map(self.samples.ask, asks))
        return [self.said(context, begun, ask, reply) for ask, reply in zip(asks, replies, strict=True)]

    async def say(self, messages: list[Message], **options: Any) -> Said:
        """One response; options as for `sample`."""
        return (await self.sample(messages, **options))[0]

    async def label_logprobs(
        self, messages: list[Message], labels: Sequence[str], *, after: Said | str | Sequence[int] = ""
    ) -> list[float]:
        """Log-probs, nats, of each label (one token) as the next token."""
        context, begun = self.tokens(messages, after)
        ids = tuple(context + (begun.ids if begun else []))
        return await self.labels.ask((ids, tuple(map(self.codec.token, labels))))

    def tokens(
        self, messages: list[Message], after: Said | str | Sequence[int]
    ) -> tuple[list[int], Said | None]:
        """The context's tokens, and the response begun, if it is the model's own."""
        if isinstance(after, Said):
            if after.ended:
                raise ValueError(f"this response has ended, so nothing can follow it: {after.text[:80]!r}")
            return after.prompt_ids, after
        begun = self.codec.text(after) if isinstance(after, str) else after
        return [*self.codec.encode(messages), *begun], None

    def seeds(self, ids: list[int], n: int) -> list[int]:
        key = hashlib.sha256(repr(ids).encode()).hexdigest()
        first = self.asked[key]
        self.asked[key] += n
        told = self.context
        return [
            derive_seed(told.seed, told.iteration, told.node, self.row, key, k)
            for k in range(first, first + n)
        ]

    def said(self, context: list[int], begun: Said | None, ask: Ask, reply: Reply) -> Said:
        if reply.finish == "error":
            raise AskError(reply.error or "the engine refused the ask")
        ids = [*(begun.ids if begun else []), *reply.ids]
        logprobs = [*(begun.logprobs if begun else []), *reply.logprobs]
        text, step = self.codec.decode([ids, reply.ids])
        ended = bool(ids) and ids[-1] in self.codec.ends
        source = (self.context.model, self.context.version, self.context.node)
        return Said(context, ids, logprobs, text, step, len(reply.ids), reply.finish, ended, ask.seed, source)


class Player:
    """What a program is given: its models, by the names that `play` was called with."""

    def __init__(self, voices: Sequence[str], speaker: Speaker):
        self.voices, self.speaker = tuple(voices), speaker

    def __getattr__(self, name: str) -> Speaker:
        if name.startswith("_") or name not in self.voices:
            raise AttributeError(f"this play has no model {name!r}; it was given {', '.join(self.voices)}")
        return self.speaker


@dataclass(frozen=True)
class Play(Op):
    """See the module. Its rows have the columns of its input, those of a response, and `adds`; a program that raises
    gives one failed row."""

    verb: ClassVar[str] = "play"
    place: ClassVar[Place] = "engine"
    responds: ClassVar[bool] = True
    opens: ClassVar[bool] = True
    fails: ClassVar[bool] = True
    program: Program
    voices: tuple[str, ...]
    adds: tuple[tuple[str, pa.DataType], ...] = ()
    needs: frozenset[str] = frozenset()
    beside: bool = False
    max_tokens: int = 256

    @property
    def reads(self) -> frozenset[str]:
        return self.needs | {"prompt_id"}

    @property
    def writes(self) -> frozenset[str]:
        return frozenset({*RESPONSE_COLUMNS, *(name for name, _ in self.adds)})

    def tell(self, told: Told) -> Iterator[str]:
        yield f"{told.model} in the program {named(self.program)}"

    def became(self, before: list[Seen], among: Callable[[], list[Seen]], group: list[Seen]) -> list[Seen]:
        return group

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        assert context.engine is not None
        engine = context.engine
        samples, labels = Desk(engine.sample), Desk(label_call(engine))
        more = ([row for table in tables[1:] for row in table.to_pylist()],) if self.beside else ()
        schema = self.schema(tables[0])
        played = [
            asyncio.ensure_future(
                self.play(name, rows, more, schema, Speaker(context, name, samples, labels, self.max_tokens))
            )
            for name, rows in groups(tables[0])
            if rows
        ]
        try:
            made = await asyncio.gather(*played)
        finally:
            for one in played:
                one.cancel()
        return pa.Table.from_pylist([row for rows in made for row in rows], schema=schema)

    async def play(
        self, group: str, rows: list[Row], more: tuple[Any, ...], schema: pa.Schema, speaker: Speaker
    ) -> list[dict[str, Any]]:
        """The rows of one program; a broken engine breaks the batch, anything else only this prompt group."""
        base = {name: rows[0][name] for name in rows[0] if name in PROMPT_COLUMNS}
        try:
            rng = speaker.context.draw(group)
            told = await self.program(Player(self.voices, speaker), rows, *more, rng)
        except SelfloopError:
            raise
        except Exception as error:  # the recipe's own code, on a model's words: it may raise anything
            return [failed_row(base, f"{program_name(self.program)} raised {type(error).__name__}: {error}")]
        several = [] if told is None else [told] if isinstance(told, Said | dict) else list(told)
        made: list[dict[str, Any]] = []
        for one in several:
            new = one.row() if isinstance(one, Said) else dict(one)
            declared(new, schema, self.program, speaker.context)
            made.append({"status": "ok", **base, **new, **opened(base, new, len(made))})
        order = list(dict.fromkeys(row["prompt_id"] for row in made))
        return sorted(made, key=lambda row: order.index(row["prompt_id"]))

    def schema(self, table: pa.Table) -> pa.Schema:
        schema = table.schema
        for name, kind in (*((name, COLUMNS[name][0]) for name in RESPONSE_COLUMNS), *self.adds):
            if name not in schema.names:
                schema = schema.append(pa.field(name, kind))
        return schema

    def failed(self, table: pa.Table, context: Context, error: str) -> pa.Table:
        """One failed row for each prompt group that could not be played at all."""
        rows = [
            failed_row({name: row[0][name] for name in row[0] if name in PROMPT_COLUMNS}, error)
            for _, row in groups(table, only_ok=False)
        ]
        return pa.Table.from_pylist(rows, schema=self.schema(table))


def opened(base: dict[str, Any], new: dict[str, Any], number: int) -> dict[str, Any]:
    """Where a row belongs: to its prompt group, as its next sample, or to a new group that its prompt opens."""
    if "prompt" not in new or "prompt_id" in new:
        return {"sample": number}
    name = prompt_id(new["prompt"], new.get("answer"), number, parent=base["prompt_id"])
    return {"prompt_id": name, "parent": base["prompt_id"], "sample": 0}


def graded(row: Any, score: float | None) -> dict[str, Any]:
    """A row with a verdict: a score, or None for one that could not be read."""
    return {**row, "score": score, "score_state": "abstain" if score is None else "score"}


def failed_row(base: dict[str, Any], error: str) -> dict[str, Any]:
    return {**base, "sample": 0, "finish": "error", "status": "failed", "error": error}


def program_name(program: Program) -> str:
    return getattr(program, "__qualname__", type(program).__qualname__)


def label_call(engine: Any) -> Callable[[list[Any]], Awaitable[list[list[float]]]]:
    """Answers label asks: those that ask for the same labels in one call of the engine."""

    async def call(asked: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[list[float]]:
        found: list[list[float]] = [[] for _ in asked]
        for labels in dict.fromkeys(labels for _, labels in asked):
            places = [place for place, (_, wanted) in enumerate(asked) if wanted == labels]
            values = await engine.label_logprobs([list(asked[place][0]) for place in places], list(labels))
            for place, value in zip(places, values, strict=True):
                found[place] = value
        return found

    return call
