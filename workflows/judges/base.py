"""What a judge is: something that gives verdicts. A verdict is a score, an abstention or a failure, never a zero by accident.

`Verifier` looks at one row on a CPU worker. `GroupJudge` looks at a whole prompt group (votes). `PromptJudge` asks a
language model: it writes the judge prompt and parses the reply.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from selfloop.workflows.data.schema import Message, VerdictState
from selfloop.workflows.judges.trial import ALL, columns_read

__all__ = ["Comparison", "Figure", "GroupJudge", "Judge", "PromptJudge", "Verdict", "Verifier"]

Row = Mapping[str, Any]
Figure = Literal["accuracy", "score", "seen"]
"""What the verdicts of a verifier add up to: a share of right answers; a mean score; or the one or the other, by whether
all scores seen are 0 or 1."""


TRIED: dict[tuple[type, str], frozenset[str]] = {}  # recipes may make a judge anew for every graph


class Verdict(NamedTuple):
    """One verdict. score is None unless state is 'score'; text says why, or holds the judge's own words."""

    score: float | None
    state: VerdictState = "score"
    text: str = ""


class Judge(BaseModel):
    """Base of all judges: frozen settings.

    reads: the columns its rows must have beside a response's own; empty: not declared, a trial tells them.
    score_range: the lowest and the highest score; another one is a failed verdict. None: any finite number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    reads: ClassVar[tuple[str, ...]] = ("prompt", "response")
    score_range: ClassVar[tuple[float, float] | None] = None

    @property
    def needs(self) -> frozenset[str]:
        """The columns that its rows must have."""
        return frozenset(self.reads)

    @property
    def needs_answer(self) -> bool:
        """Whether it needs the gold answer (the lint then asks the data set for one)."""
        return "answer" in self.needs

    @property
    def sees_answer(self) -> bool:
        """Whether it is shown the gold answer where there is one."""
        return self.needs_answer


class Verifier(Judge):
    """A rule on one row. Raising means the verifier broke: the verdict is 'failed'.

    trial: whether it may be tried before a run, on rows that are made up and on the first prompts.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    trial: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[str]:
        """The declared `reads`, else what `verify` reads of a few rows that are made up for it; tried once a process."""
        if self.reads or not self.trial:
            return frozenset(self.reads) or ALL
        known = (type(self), repr(self))
        if known not in TRIED:
            TRIED[known] = columns_read(self.verify)
        return TRIED[known]

    @property
    def sees_answer(self) -> bool:
        return not self.reads or self.needs_answer

    @property
    def figure(self) -> Figure:
        """What its verdicts add up to."""
        return "seen" if self.score_range is None else "score"

    def verify(self, row: Row) -> float | None:
        """Score of the row, or None to abstain."""
        raise NotImplementedError


class Comparison(Verifier):
    """A verifier that knows the gold answer: 1 is right and 0 wrong, so that its mean is an accuracy."""

    reads: ClassVar[tuple[str, ...]] = ("prompt", "response", "answer")
    score_range: ClassVar[tuple[float, float] | None] = (0, 1)

    @property
    def figure(self) -> Figure:
        return "accuracy"


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
