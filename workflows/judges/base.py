"""What a judge is: something that gives verdicts. A verdict is a score, an abstention or a failure, never a zero by accident.

`Verifier` looks at one row on a CPU worker. `GroupJudge` looks at a whole prompt group (votes). `PromptJudge` asks a
language model: it writes the judge prompt and parses the reply.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict

from selfloop.workflows.data.schema import Message, VerdictState

__all__ = ["GroupJudge", "Judge", "PromptJudge", "Verdict", "Verifier"]

Row = Mapping[str, Any]


class Verdict(NamedTuple):
    """One verdict. score is None unless state is 'score'; text says why, or holds the judge's own words."""

    score: float | None
    state: VerdictState = "score"
    text: str = ""


class Judge(BaseModel):
    """Base of all judges: frozen settings; `reads` are the columns its rows must have beside a response's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    reads: ClassVar[tuple[str, ...]] = ("prompt", "response")

    @property
    def needs_answer(self) -> bool:
        """Whether it reads the gold answer (the lint then asks the data set for one)."""
        return "answer" in self.reads


class Verifier(Judge):
    """A rule on one row. Raising means the verifier broke: the verdict is 'failed'."""

    reads: ClassVar[tuple[str, ...]] = ("prompt", "response", "answer")

    def verify(self, row: Row) -> float | None:
        """Score of the row, or None to abstain."""
        raise NotImplementedError


class GroupJudge(Judge):
    """A rule on all responses of one prompt."""

    def verify_group(self, rows: Sequence[Row]) -> Sequence[float | None]:
        """One score (or None) a row, in the order of the rows."""
        raise NotImplementedError


class PromptJudge(Judge):
    """A language model as judge: `messages(row)` is its prompt, `parse(text)` reads one reply.

    Texts that others wrote belong in `frames.frame(conversation=…, response=…)`, whose tags no text can close.

    With `labels`, nothing is sampled: `parse_labels` gets the log-probs of the labels as next tokens.
    """

    max_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 0.9
    labels: tuple[str, ...] = ()

    def messages(self, row: Row) -> list[Message]:
        raise NotImplementedError

    def parse(self, text: str) -> float | None:
        """The score in a reply, or None when it cannot be read."""
        raise NotImplementedError

    def parse_labels(self, logprobs: Sequence[float]) -> float | None:
        """The score from the labels' log-probs, one a label, nats, in the order of `labels`."""
        raise NotImplementedError

    def aggregate(self, scores: Sequence[float]) -> float | None:
        """One score from the valid judgements (at least one): their mean."""
        return statistics.fmean(scores)
