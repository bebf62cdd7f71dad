"""The judge of Self-Rewarding Language Models (arXiv 2401.10020): an additive rubric of five points, in our words."""

from __future__ import annotations

import re

from selfloop.workflows.data.schema import Message
from selfloop.workflows.judges.base import PromptJudge, Row
from selfloop.workflows.judges.frames import conversation, frame

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

_SCORE = re.compile(re.escape(LABEL) + r"[\s*]*(-?\d+(?:\.\d+)?)(?![\d.]*\d)")


class AdditiveRubric(PromptJudge):
    """Five additive criteria, a justification, then `Score: n`: one number in [0, 5] a judgement.

    The last label followed by a number counts; a number outside [0, 5], or none, makes the judgement invalid. The
    score of a response is the mean of its valid judgements.
    """

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
    """The number after the last label that has one, or None when there is none in [0, 5]."""
    found = _SCORE.findall(text)
    value = float(found[-1]) if found else None
    return value if value is not None and 0 <= value <= MOST else None
