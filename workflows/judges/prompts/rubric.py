"""The judge of Self-Rewarding Language Models (arXiv 2401.10020): an additive rubric of five points, in our words."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import ClassVar

from selfloop.workflows.data.schema import Message
from selfloop.workflows.judges.base import PromptJudge, Row
from selfloop.workflows.judges.prompts.frames import conversation, frame

__all__ = ["AdditiveRubric", "ScoreOnly", "last_score"]

LABEL = "Score:"
MOST = 5

CRITERIA = """\
Start from zero and add one point for each statement that is true of the response:
1. It is relevant: it deals with what the user asked for and gives something of use, even if much is missing.
2. It is substantial: it covers a large part of the request, though it may leave some of it open.
3. It is useful: it answers the essential parts of the request in a way the user can work with.
4. It is well made: written from an assistant's point of view, to the point, clear, complete and well organised.
5. It is expert work: accurate and insightful, made for this user, with nothing superfluous."""

TASK = """\
Grade how well a response serves its user: the response below, to the conversation before it.

{texts}

{criteria}

{ending}"""

REASONS = f"""\
First justify the points in at most 100 words. Then end with one line that holds the total, a number from 0 to {MOST}, \
after the label, exactly like this:
{LABEL} <total>"""

BARE = f"""\
Reply with one line and nothing else: the total, a number from 0 to {MOST}, after the label, exactly like this:
{LABEL} <total>"""

_SCORE = re.compile(r"""(?<![^\W_])(?<![^\W_]-)score["'*_`]*\s*[:\uff1a]""", re.IGNORECASE)
_SIGNS = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-") | dict.fromkeys("\u2044\u2215", "/")
)
_MARKUP = re.compile(r"</?[a-z]+>|\\boxed|[*_`$\"'\\]", re.IGNORECASE)
_FIVE = re.compile(r"(/|\bout\s+of)\s*five\b", re.IGNORECASE)
_NUMBER = re.compile(r"([.,]?\d(?:[\d.,]*\d)?)", re.ASCII)  # as it stands: 1,000 and 1.2.3 are one
_PLAIN = re.compile(r"\d+(?:\.\d+)?|\.\d+|\d+,\d\d?", re.ASCII)  # three digits after a comma are thousands
_BETWEEN = {
    "+": re.compile(r"[\w\s()\[\],:]*\+[\w\s()\[\],:]*"),
    "=": re.compile(r"[\w\s()\[\],:]*=[\w\s]*|\s*\(\s*=?\s*"),
    "/": re.compile(
        r"[\s>)\]}]*(?:points?|pts?\.?|stars?)?[\s(\[]*"
        r"(?:/|(?:out\s+)?of\b)(?:\s+(?:a|the|possible|maximum|total|of))*[\s<(\[{]*",
        re.IGNORECASE,
    ),
}
_GOES_ON = re.compile(  # behind the last number: another unit or scale, a sum or range that was cut
    r"\w|[\s)\]}>]*(?:[%\u2030+=/^\u00d7]|(?:per\s?cent|or|to|and|of|out\s+of)\b)|\s*-\s*$", re.IGNORECASE
)
_TERMS, _TOTAL = r"(?P<terms>[\d.]+(?:\+[\d.]+)*)", r"(?P<total>[\d.]+)(?:/(?P<scale>[\d.]+))?"
_SHAPES = (re.compile(f"{_TOTAL}(?:={_TERMS})?"), re.compile(f"{_TERMS}={_TOTAL}"))


class AdditiveRubric(PromptJudge):
    """Five additive criteria, a justification, then `Score: n`: one number in [0, 5] a judgement.

    The last label (`Score:` in any case, bold or not) with a number behind it on its line, or alone on the next line
    with text, counts. What follows it is read as a whole, never in part:
    - a number: 4, 4.5, 4,5, marked up as it may be (`**4**`, `<4>`, `[4]`, `` `4` ``, `$4$`), words behind it or not;
    - a number of its scale: 4/5, 4 out of 5, 4 points (of 5);
    - a sum with its total: 1 + 1 + 0 = 2, 2 = 1 + 1 + 0, 2 (1 + 1 + 0). The total must be that of its terms.
    All else makes the judgement invalid: another scale (4/10, 80 %), a range (3-4, 3 to 4), a sum without its total,
    a sign or a bound (-1, <4, 4+), any further number on the line, a total outside [0, 5], no number at all. The score
    of a response is the mean of its valid judgements.
    """

    score_range: ClassVar[tuple[float, float] | None] = (0, MOST)

    def messages(self, row: Row) -> list[Message]:
        texts = frame(conversation=conversation(row["prompt"]), response=row["response"])
        return [
            {"role": "user", "content": TASK.format(texts=texts, criteria=CRITERIA, ending=self.ending())}
        ]

    def ending(self) -> str:
        """What is asked for after the criteria."""
        return REASONS

    def parse(self, text: str) -> float | None:
        return last_score(text)


class ScoreOnly(AdditiveRubric):
    """The same criteria without a justification: cheaper, and another judge than AdditiveRubric."""

    max_tokens: int = 16

    def ending(self) -> str:
        return BARE


def last_score(text: str) -> float | None:
    """The total behind the last label that has a number, or None when it is no total in [0, 5] (see AdditiveRubric)."""
    for tail in reversed(_SCORE.split(text)[1:]):
        first, *more = tail.split("\n")
        below = not _MARKUP.sub("", first).strip()
        line = next((line for line in more if line.strip()), "") if below else first
        if any(letter.isnumeric() for letter in line):
            return _total(line, alone=below)
    return None


def _total(line: str, alone: bool) -> float | None:
    """The total that a line states. alone: no words may stand behind it."""
    plain = _FIVE.sub(rf"\1 {MOST}", _MARKUP.sub(" ", line.translate(_SIGNS)))
    before, *rest = _NUMBER.split(plain)
    numbers, between, after = rest[::2], rest[1:-1:2], "".join(rest[-1:])
    signs = [next((sign for sign, way in _BETWEEN.items() if way.fullmatch(gap)), "?") for gap in between]
    if (
        before.strip(" \t<([{|")
        or ("<" in before and ">" not in plain)
        or not all(_PLAIN.fullmatch(number) for number in numbers)
        or any(letter.isnumeric() for letter in "".join([*between, after]))
        or _GOES_ON.match(after)
        or (alone and any(letter.isalpha() for letter in after))
    ):
        return None
    said = "".join(
        f"{number.replace(',', '.')}{sign}" for number, sign in zip(numbers, [*signs, ""], strict=True)
    )
    match = next((match for shape in _SHAPES if (match := shape.fullmatch(said))), None)
    if match is None or (match["scale"] and Fraction(match["scale"]) != MOST):
        return None
    total, terms = Fraction(match["total"]), match["terms"]
    agrees = not terms or sum(map(Fraction, terms.split("+"))) == total
    return float(total) if agrees and total <= MOST else None
