"""Verifiers of answers: rules that know the gold answer. 1 right, 0 wrong, None when no answer could be read.

A config names one of `VERIFIERS`, or a function of one's own as `module:function`.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, ClassVar

from pydantic import Field, model_validator

from selfloop.workflows.errors import InputError, JudgeError, nearest
from selfloop.workflows.judges.answers import Extract, equivalent, extract_answer, no_number
from selfloop.workflows.judges.base import Comparison, Row, Verifier
from selfloop.workflows.judges.math.expressions import final_expression, form_of
from selfloop.workflows.judges.math.process import compare, require_math_verify
from selfloop.workflows.judges.math.worker import score
from selfloop.workflows.judges.reading.numbers import CLOCK
from selfloop.workflows.outside.load import load

__all__ = ["VERIFIERS", "AnswerVerifier", "Choice", "Exact", "FunctionVerifier", "Math", "Number", "verifier"]


class AnswerVerifier(Comparison):
    """Compares the response's final answer with the gold one; both are read in the same way."""

    extract: ClassVar[Extract] = "text"

    def gold(self, answer: str | None) -> str | None:
        """What responses are compared with, or None when it cannot be read."""
        return extract_answer(answer or "", self.extract)

    def verify(self, row: Row) -> float | None:
        gold = self.gold(row["answer"])
        if gold is None:
            raise ValueError(f"the gold answer {row['answer']!r} cannot be read as {self.extract}")
        said = extract_answer(row["response"] or "", self.extract)
        return None if said is None else float(equivalent(said, gold, self.extract))


class Exact(AnswerVerifier):
    """The same text, without case, outer punctuation and repeated spaces."""


class Number(AnswerVerifier):
    """The same number, exactly: the one marked as the answer, else the last; the gold answer may be a worked solution ending
    in '#### 18'. 12 % is 12. An answer that can be no number (`3\\sqrt{2}`, `x^2`, a list) is wrong; a time equals itself.
    """

    extract: ClassVar[Extract] = "number"

    def gold(self, answer: str | None) -> str | None:
        found = super().gold(answer)
        return answer.strip() if found is None and answer and CLOCK.fullmatch(answer.strip()) else found

    def verify(self, row: Row) -> float | None:
        response, gold = row["response"] or "", self.gold(row["answer"])
        if gold is not None and CLOCK.fullmatch(gold) and (times := CLOCK.findall(response)):
            return float(times[-1] == gold)
        said = super().verify(row)
        return 0.0 if said is None and no_number(response) else said


class Choice(AnswerVerifier):
    """The same letter of a multiple-choice question."""

    extract: ClassVar[Extract] = "choice"


class Math(AnswerVerifier):
    """The same mathematics by math-verify (fractions, sets, intervals, expressions), in a process of its own.

    Answers are found as by all verifiers, and handed over whole, as LaTeX; letters only, times and numbers of another base are
    compared as text. A gold answer of which only a part can be read is refused. Tolerance (math-verify's): decimals are equal
    if they are when rounded to 6 places, so 0.333333 is 1/3, while 0.333 is not; expressions without decimals are equal
    exactly, or to 15 digits; 12 % is 12 and also 0.12; `x = 5` is 5; 1 < x < 3 is (1, 3). A response that is not compared
    within `deadline` seconds abstains.
    """

    extract: ClassVar[Extract] = "boxed"
    deadline: float = Field(default=5.0, gt=0, description="seconds a comparison may take")
    compared_by = staticmethod(score)  # in the process; named here so that content keys know its code

    @model_validator(mode="after")
    def installed(self) -> Math:
        require_math_verify()
        return self

    def gold(self, answer: str | None) -> str | None:
        found = final_expression(answer or "", "whole")
        return found if found is not None and form_of(found).kind != "unread" else None

    def verify(self, row: Row) -> float | None:
        return compare(row["answer"] or "", row["response"] or "", self.deadline)


class FunctionVerifier(Verifier):
    """A user's function of one row: a score (True and False count as 1 and 0), or None to abstain.

    Attributes of the function declare what a class declares: `check.reads = ("response",)`, the columns that its rows must
    have, without which three made-up rows show them; `check.score_range = (0, 10)`, without which any finite number is a
    score; `check.trial = False`. Declared scores are reported as scores, undeclared ones if any is neither 0 nor 1.
    """

    extract: ClassVar[Extract] = "text"
    path: str = Field(description="module:function")

    @property
    def reads(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return tuple(getattr(resolve(self.path), "reads", ()))

    @property
    def trial(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return getattr(resolve(self.path), "trial", True) is not False

    @property
    def score_range(self) -> tuple[float, float] | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return getattr(resolve(self.path), "score_range", None)

    @model_validator(mode="after")
    def found(self) -> FunctionVerifier:
        resolve(self.path)
        return self

    def content(self) -> dict[str, Any]:
        """What counts of it in a content key: the function, wherever its file is, and its range."""
        return {"function": resolve(self.path), "score_range": self.score_range}

    def verify(self, row: Row) -> float | None:
        score = resolve(self.path)(row)
        if score is None:
            return None
        if not isinstance(score, int | float) or not math.isfinite(score):
            raise JudgeError(
                f"{self.path} returned {score!r}; a verifier returns a finite number, or None to abstain"
            )
        return float(score)


VERIFIERS: dict[str, type[Verifier]] = {"exact": Exact, "number": Number, "math": Math, "choice": Choice}


def verifier(name_or_path: str) -> Verifier:
    """The verifier of this name, or the user's own at module:function (or module:class). Raises InputError."""
    if name_or_path in VERIFIERS:
        return VERIFIERS[name_or_path]()
    if ":" not in name_or_path:
        near = nearest(name_or_path, VERIFIERS)
        hint = f"did you mean {near}? " if near else ""
        raise InputError(
            f"judge={name_or_path} is no verifier; {hint}there are {', '.join(VERIFIERS)}, "
            "and a function of your own as module:function"
        )
    target: Any = resolve(name_or_path)
    if isinstance(target, Verifier):
        return target
    if isinstance(target, type) and issubclass(target, Verifier):
        return target()
    return FunctionVerifier(path=name_or_path)


@cache
def resolve(path: str) -> Any:
    """What a module:function names. Raises InputError when it is not there."""
    found = load(path, "judge")
    if not callable(found) and not isinstance(found, Verifier):
        raise InputError(f"judge={path} is {type(found).__name__}, not a function of one row")
    return found
