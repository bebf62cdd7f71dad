"""The verbs sample and demonstrate: responses by a model, or by whoever wrote the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from selfloop.workflows.data.rows import Row, groups, with_column
from selfloop.workflows.data.schema import Message
from selfloop.workflows.data.seeds import derive_seed
from selfloop.workflows.flow.telling import Told, named
from selfloop.workflows.flow.verbs.base import PROMPT_COLUMNS, Context, Op, Place, call
from selfloop.workflows.flow.verbs.responses import (
    RESPONSE_COLUMNS,
    add_responses,
    encode,
    numbered,
    reply_row,
)

if TYPE_CHECKING:
    from selfloop.workflows.models.codec import Codec

__all__ = ["Demonstrate", "Sample"]


@dataclass(frozen=True)
class Sample(Op):
    """n responses a row. Each has a seed of its own, so batches, replicas and retries do not matter.

    show: other messages that the model is given for a row; the row's prompt stays what it is.
    """

    verb: ClassVar[str] = "sample"
    place: ClassVar[Place] = "engine"
    responds: ClassVar[bool] = True
    fails: ClassVar[bool] = True
    phrase: ClassVar[str] = "the policy answers prompts"
    metrics: ClassVar[tuple[str, ...]] = ("tokens", "truncated")
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

    @property
    def writes(self) -> frozenset[str]:
        return frozenset(RESPONSE_COLUMNS)

    def columns(self, inputs: Sequence[frozenset[str]]) -> frozenset[str]:
        return (inputs[0] & PROMPT_COLUMNS) | self.writes

    def rows(self, n: int, groups: int) -> int:
        return self.n * n

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        from selfloop.workflows.flow.asks import Ask, SamplingParams

        assert context.engine is not None and context.codec is not None
        prompts = tables[0].select([name for name in tables[0].column_names if name in PROMPT_COLUMNS])
        params = SamplingParams(self.temperature, self.top_p, self.top_k, self.max_tokens, self.stop)
        encoded = [encode(context.codec, messages) for messages in self.shown(tables[0], context)]
        names: list[str] = prompts["prompt_id"].to_pylist()
        numbers = numbered(name for name in names for _ in range(self.n))
        seeds = [
            derive_seed(context.seed, context.iteration, context.node, names[place // self.n], k)
            for place, k in enumerate(numbers)
        ]
        asks = [
            Ask(ids, seeds[row * self.n + k], params)
            for row, (ids, error) in enumerate(encoded)
            if error is None
            for k in range(self.n)
        ]
        replies = iter(await context.engine.sample(asks))
        rows = [
            reply_row(next(replies) if error is None else None, ids, error)
            for ids, error in encoded
            for _ in range(self.n)
        ]
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

    def tell(self, told: Told) -> Iterator[str]:
        top = f", top_k {self.top_k}" if self.top_k else ""
        how = f"temperature {self.temperature:g}, top_p {self.top_p:g}{top}, at most {self.max_tokens} tokens"
        stop = f", stopped at {', '.join(map(repr, self.stop))}" if self.stop else ""
        yield f"{told.model} wrote {self.n} {'sample' if self.n == 1 else 'samples'} a prompt: {how}{stop}"
        if self.show is not None:
            yield f"it was shown other messages than the prompt, made by {named(self.show)}"


@dataclass(frozen=True)
class Demonstrate(Op):
    """The text in a column as the response to its prompt, with the template's end of turn unless it is cut. Its source wrote it;
    end markers that it spells at its end are taken off (`stripped`).

    The column may hold messages, of which the last one counts; the source's `label` of the response stays beside it.
    """

    verb: ClassVar[str] = "demonstrate"
    responds: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ("stripped",)
    column: str = "answer"
    source: str = "prompts"
    max_tokens: int | None = None

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"prompt_id", "prompt", self.column})

    @property
    def writes(self) -> frozenset[str]:
        return frozenset({*RESPONSE_COLUMNS, "stripped"})

    def columns(self, inputs: Sequence[frozenset[str]]) -> frozenset[str]:
        return (inputs[0] & (PROMPT_COLUMNS | {"label"})) | self.writes

    def author(self, model: str, version: int | None) -> tuple[str, int | None]:
        return self.source, None

    def tell(self, told: Told) -> Iterator[str]:
        yield f"the text of {self.column!r} in the source {self.source!r} as a response: no weights wrote it"

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        from selfloop.workflows.models.codec import codec_of

        codec = context.codec or codec_of(context.folder)
        kept = PROMPT_COLUMNS | {"label"}
        prompts = tables[0].select([name for name in tables[0].column_names if name in kept])
        given = tables[0][self.column].to_pylist()
        texts: list[Any] = [
            value[-1]["content"] if isinstance(value, list) and value else value for value in given
        ]
        rows = [
            self.row(codec, messages, text)
            for messages, text in zip(prompts["prompt"].to_pylist(), texts, strict=True)
        ]
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
