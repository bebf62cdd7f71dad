"""Verbs that change a response's text or the context it stands in. Tokens are encoded anew only where text is new.

Rows that are not what was sampled say so (`edited`) and have no sampling log-probs: an importance ratio on them would be
wrong, and the lint refuses it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from selfloop.workflows.data.rows import Row, groups, with_column
from selfloop.workflows.data.schema import COLUMNS, Message, assistant
from selfloop.workflows.errors import RecipeError
from selfloop.workflows.flow.verbs.base import Context, Op, Shows, call
from selfloop.workflows.flow.verbs.responses import encode
from selfloop.workflows.models.codec import codec_of

__all__ = ["Edit", "Recontext"]

SAMPLED = ("response_logprobs", "chosen_logprobs", "rejected_logprobs")


@dataclass(frozen=True)
class Edit(Op):
    """Another text for a response: the row itself if it is the same, no row for None.

    A response that was cut stays without an end token.
    """

    verb: ClassVar[str] = "edit"
    shows: ClassVar[Shows] = "text"
    function: Callable[[Row], str | None]
    needs: frozenset[str] = frozenset()

    @property
    def reads(self) -> frozenset[str]:
        return self.needs | {"prompt_id", "prompt_ids", "response_ids", "response"}

    @property
    def writes(self) -> frozenset[str]:
        return frozenset({"edited"})

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        codec = context.codec or codec_of(context.folder)
        kept: list[int] = []
        changed: dict[int, str] = {}
        for name, rows in groups(tables[0]):
            for row in rows:
                text = call(self.function, context, name, row)
                if text is not None:
                    kept.append(row.index)
                if text is not None and text != row["response"]:
                    changed[row.index] = text
        table = tables[0].take(pa.array(kept, pa.int64()))
        columns = {name: table[name].to_pylist() for name in EDITED if name in table.column_names}
        before = table["edited"].to_pylist() if "edited" in table.column_names else [False] * len(kept)
        for place, index in enumerate(kept):
            if index in changed:
                cut = table["finish"][place].as_py() == "length" if "finish" in table.column_names else False
                text = codec.without_end(changed[index])
                new = {
                    "response": text,
                    "response_ids": codec.encode_response(text, ended=not cut),
                    "completion": assistant(text),
                    "response_logprobs": None,
                }
                for name, values in columns.items():
                    values[place] = new[name]
        for name, values in columns.items():
            table = with_column(table, name, pa.array(values, COLUMNS[name][0]))
        marks = [was or index in changed for was, index in zip(before, kept, strict=True)]
        return with_column(table, "edited", pa.array(marks, pa.bool_()))


EDITED = ("response", "response_ids", "completion", "response_logprobs")


@dataclass(frozen=True)
class Recontext(Op):
    """The same response tokens under other messages; None keeps a row's own.

    Without `view` they replace the row's prompt (chosen and rejected of a pair alike). With it they are the context of a
    further view, `VIEW_prompt_ids`, whose tokens are those of the view `of`.
    """

    verb: ClassVar[str] = "recontext"
    messages: Callable[[Row], list[Message] | None]
    view: str | None = None
    of: str = "response"
    needs: frozenset[str] = frozenset()

    @property
    def reads(self) -> frozenset[str]:
        return self.needs | {"prompt_id", "prompt_ids"} | ({f"{self.of}_ids"} if self.view else set())

    @property
    def writes(self) -> frozenset[str]:
        return frozenset({f"{self.view}_prompt_ids", f"{self.view}_ids"} if self.view else {"edited"})

    @property
    def function(self) -> Callable[[Row], list[Message] | None]:
        """What it tells of itself."""
        return self.messages

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        codec = context.codec or codec_of(context.folder)
        table = tables[0]
        ids = table["prompt_ids"].to_pylist()
        prompts = table["prompt"].to_pylist()
        for name, rows in groups(table):
            for row in rows:
                said = call(self.messages, context, name, row)
                if said is None:
                    continue
                ids[row.index], error = encode(codec, said)
                prompts[row.index] = said
                if error:
                    raise RecipeError(f"node {context.node!r}: {error} (prompt {name})")
        column = pa.array(ids, COLUMNS["prompt_ids"][0])
        if self.view:
            table = with_column(table, f"{self.view}_prompt_ids", column)
            return with_column(table, f"{self.view}_ids", table[f"{self.of}_ids"])
        table = with_column(
            with_column(table, "prompt_ids", column), "prompt", pa.array(prompts, COLUMNS["prompt"][0])
        )
        for name in [name for name in SAMPLED if name in table.column_names]:
            table = with_column(table, name, pa.nulls(table.num_rows, COLUMNS[name][0]))
        return with_column(table, "edited", pa.array([True] * table.num_rows, pa.bool_()))
