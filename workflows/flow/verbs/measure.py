"""The `measure` verb: what a model makes of given tokens, by the trainer's forward without gradient."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pyarrow as pa

from selfloop.workflows.data.rows import with_column
from selfloop.workflows.flow.telling import Told
from selfloop.workflows.flow.verbs.base import Context, Op, Place, Shows, Wants

__all__ = ["Measure", "Measured"]

Measured = Literal["logprobs", "values", "rewards"]
"""Of a view: log-prob of each token, nats; a critic's value before each token; a reward model's number at the last one."""


@dataclass(frozen=True)
class Measure(Op):
    """A view's log-probs, values or rewards under a model. Its agreement with training is why no engine is asked.

    Null where context and view are longer than the model takes. A reward is a verdict: beside it stands `COLUMN_state`, failed
    where there is no number (a failed row, a longer one, or none finite).
    """

    verb: ClassVar[str] = "measure"
    place: ClassVar[Place] = "trainer"
    phrase: ClassVar[str] = "log-probs are measured"
    shows: ClassVar[Shows] = "value"
    metrics: ClassVar[tuple[str, ...]] = ("verdicts",)
    what: Measured = "logprobs"
    under: str = "response"
    column: str = "measured_logprobs"

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"prompt_id", "prompt_ids", f"{self.under}_ids"})

    @property
    def writes(self) -> frozenset[str]:
        return frozenset({self.column, f"{self.column}_state"} if self.what == "rewards" else {self.column})

    @property
    def wants(self) -> Wants:
        return self.what

    def tell(self, told: Told) -> Iterator[str]:
        yield f"{self.what} of its {self.under} under {told.model}"

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        assert context.scorer is not None
        own = f"{self.under}_prompt_ids"
        contexts = tables[0][own if own in tables[0].column_names else "prompt_ids"].to_pylist()
        targets = tables[0][f"{self.under}_ids"].to_pylist()
        asked = [
            row
            for row, (context_ids, ids) in enumerate(zip(contexts, targets, strict=True))
            if context_ids and ids
        ]
        names = tables[0]["prompt_id"].to_pylist()
        groups = [len(list(rows)) for _, rows in itertools.groupby(asked, key=lambda row: names[row])]
        found = await context.scorer.measure(
            self.what,
            context.folder,
            [contexts[row] for row in asked],
            [targets[row] for row in asked],
            groups,
        )
        scalar = self.what == "rewards"
        values: list[Any] = [None if scalar or ids is None else [] for ids in targets]
        for row, value in zip(asked, found, strict=True):
            values[row] = value if (math.isfinite(value) if scalar else value) else None
        if not scalar:
            return with_column(tables[0], self.column, pa.array(values, pa.list_(pa.float32())))
        table = with_column(tables[0], self.column, pa.array(values, pa.float64()))
        states = ["failed" if value is None else "score" for value in values]
        return with_column(table, f"{self.column}_state", pa.array(states, pa.string()))
