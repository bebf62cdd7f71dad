"""Judges in the manner of MT-bench (Zheng et al. 2023, arXiv 2306.05685), in our words: Pointwise and Pairwise.

A pair is judged in both orders and wins only if both calls name it; the tie rule is FastChat's (lm-sys, Apache-2.0).

Differs from FastChat:
1. The last `[[…]]` of a reply counts, and it alone; FastChat takes the first rating, and of verdicts the first in the order
   A, B, C. A judge that quotes a response before its verdict would be read as the response wishes. "[[A]], no: [[B]]" is B.
2. `[[4/10]]`, `[[4]]/10` and `[[4 out of 10]]` are 4. Another scale (`[[4/5]]`, `[[4]]/5`), a range (`[[3-4]]`,
   `[[3]]-[[4]]`), several numbers, "[[A]] or [[B]]" and a number outside 1 to 10 (`[[11]]`) are no verdict, and nothing
   before is taken in its place.
3. A single pair of brackets counts only in a reply without double ones, as in FastChat; here the last that holds a digit.
4. The texts stand in frames that they cannot close (`frames.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from selfloop.workflows.data.schema import Message
from selfloop.workflows.judges.base import PromptJudge, Row
from selfloop.workflows.judges.prompts.frames import conversation, frame

__all__ = [
    "Pairwise",
    "Pointwise",
    "PointwiseReference",
    "Tally",
    "Winner",
    "agreement",
    "both_orders",
    "compare_scores",
    "preference",
    "tally",
]

Winner = Literal["a", "b", "tie"]
"""Which of a pair is better. None in its place: the judge gave no readable verdict."""

MERITS = "helpfulness, relevance, accuracy, depth, creativity and level of detail"

POINT = """\
Judge, as an impartial reader, the quality of the response to the conversation below. Weigh {merits}.

{texts}
{reference}
Explain your judgement briefly, then rate the response from 1 to 10. End with the rating as a number in double square \
brackets after the word Rating."""

PAIR = """\
Judge, as an impartial reader, which of two responses serves the user of the conversation below better. Weigh \
{merits}. The order in which the responses stand, their lengths and their names must not sway you.

{texts}
{reference}
Explain your comparison briefly, then end with the verdict in double square brackets and nothing after it: the letter \
A if response_a is better, B if response_b is better, C if they are equally good. Do not write double square brackets \
anywhere else."""

REFERENCE = "\nThe reference is a right answer: compare with it first, and name mistakes.\n"

_SCALE = r"(?:[\s*_`]*(?:/|out of)\s*[0-9]+)?"  # behind the brackets
_PAIR = r"\[\[[^\[\]]*\]\]"
_JOINED = rf"(?:{_PAIR}[\s*_`]*(?:[-–—/]|to|or|and|out of)[\s*_`]*)*"  # [[3]]-[[4]] is one verdict, and none
_DOUBLE = re.compile(f"{_JOINED}{_PAIR}{_SCALE}")
_SINGLE = re.compile(rf"\[[^\[\]]*[0-9][^\[\]]*\]{_SCALE}")
_MARKS = re.compile(r"[][*_`$<>]")  # may stand around what is said
_RATING = re.compile(r"(?:rating:?\s*)?([0-9]+(?:\.[0-9]+)?)(?:\s*(?:/|out of)\s*10)?", re.IGNORECASE)


class Pointwise(PromptJudge):
    """A rating from 1 to 10 of one response: the last `[[…]]` of the reply, else its last `[…]` with a digit."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 2048

    def messages(self, row: Row) -> list[Message]:
        return _ask(POINT, row, response=row["response"])

    def parse(self, text: str) -> float | None:
        said = _last(_DOUBLE, text)
        match = _RATING.fullmatch(_last(_SINGLE, text) or "" if said is None else said)
        value = float(match[1]) if match else math.nan
        return value if 1 <= value <= 10 else None


class PointwiseReference(Pointwise):
    """Pointwise beside a right answer, for mathematics, reasoning and code."""

    reads: ClassVar[tuple[str, ...]] = ("prompt", "response", "answer")

    def messages(self, row: Row) -> list[Message]:
        return _ask(POINT, row, row["answer"], response=row["response"])


class Pairwise(PromptJudge):
    """Which of `response_a` and `response_b` is better, in one order: 1 the first column, 0 the second, .5 a tie.

    swapped shows response_b first and maps the verdict back. The last `[[…]]` of the reply counts, and is A, B or C.
    Ask in both orders, then `both_orders`.
    """

    reads: ClassVar[tuple[str, ...]] = ("prompt", "response_a", "response_b")
    swapped: bool = Field(default=False, description="show response_b first")
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 2048

    def messages(self, row: Row) -> list[Message]:
        first, second = row["response_a"], row["response_b"]
        if self.swapped:
            first, second = second, first
        return _ask(PAIR, row, response_a=first, response_b=second)

    def parse(self, text: str) -> float | None:
        score = {"A": 1.0, "B": 0.0, "C": 0.5}.get(_last(_DOUBLE, text) or "")
        return 1 - score if self.swapped and score is not None else score


def _ask(template: str, row: Row, answer: str | None = None, **responses: str) -> list[Message]:
    reference = {} if answer is None else {"reference": answer}
    texts = frame(conversation=conversation(row["prompt"]), **reference, **responses)
    text = template.format(merits=MERITS, texts=texts, reference=REFERENCE if reference else "")
    return [{"role": "user", "content": text}]


def _last(brackets: re.Pattern[str], text: str) -> str | None:
    """What the last brackets of this kind say, without marks; None where there are none."""
    found = brackets.findall(text)
    return _MARKS.sub("", found[-1]).strip() if found else None


def both_orders(first: Winner | float | None, second: Winner | float | None) -> Winner | None:
    """The verdict of a pair from its two calls, each already mapped back to the responses.

    A win needs both calls; anything else is a tie; a call without a verdict drops the pair (None).
    """
    one, two = _winner(first), _winner(second)
    if one is None or two is None:
        return None
    return one if one == two else "tie"


def _winner(verdict: Winner | float | None) -> Winner | None:
    if verdict is None or isinstance(verdict, str):
        return verdict
    return "tie" if verdict == 0.5 else "a" if verdict > 0.5 else "b"


def compare_scores(a: float | None, b: float | None, tie: float = 0.1) -> Winner | None:
    """A pair's verdict from two pointwise scores: a tie up to a difference of `tie`; None if one is missing."""
    if a is None or b is None:
        return None
    return "tie" if abs(a - b) <= tie + 1e-9 else "a" if a > b else "b"


def preference(first_logprobs: Sequence[float], second_logprobs: Sequence[float]) -> float:
    """P(a better) averaged over both orders: (P_1(A) + 1 - P_2(A)) / 2, P normalised over the labels A and B.

    Arguments: log-probs of (A, B), nats, when a stands first and when b stands first.
    """
    first, second = (1 / (1 + math.exp(b - a)) for a, b in (first_logprobs, second_logprobs))
    return (first + 1 - second) / 2


class Tally(NamedTuple):
    """Counts over pairs. consistency: share of pairs whose two calls agree; first_position: both chose the first."""

    wins: int
    losses: int
    ties: int
    dropped: int
    consistency: float
    first_position: float

    @property
    def win_rate(self) -> float:
        """wins / (wins + losses + ties)."""
        return self.wins / (self.wins + self.losses + self.ties)

    @property
    def adjusted_win_rate(self) -> float:
        """(wins + ties / 2) / (wins + losses + ties)."""
        return (self.wins + 0.5 * self.ties) / (self.wins + self.losses + self.ties)


def tally(calls: Sequence[tuple[Winner | float | None, Winner | float | None]]) -> Tally:
    """Sums up pairs of (verdict with a first, verdict with b first), both mapped back; wins are a's."""
    verdicts = [both_orders(*pair) for pair in calls]
    valid = [(_winner(one), _winner(two)) for one, two in calls if one is not None and two is not None]
    count = max(len(valid), 1)
    return Tally(
        wins=verdicts.count("a"),
        losses=verdicts.count("b"),
        ties=verdicts.count("tie"),
        dropped=verdicts.count(None),
        consistency=sum(one == two for one, two in valid) / count,
        first_position=sum(pair == ("a", "b") for pair in valid) / count,
    )


def agreement(one: Sequence[Winner | None], two: Sequence[Winner | None], *, ties: bool = True) -> float:
    """Share of pairs on which two judges agree; ties=False leaves out pairs either calls a tie. nan without any."""
    shared = [
        (x, y)
        for x, y in zip(one, two, strict=True)
        if x is not None and y is not None and (ties or "tie" not in (x, y))
    ]
    return sum(x == y for x, y in shared) / len(shared) if shared else math.nan
