"""Judges that need no label: the samples of a prompt vote on its answer.

MajorityVote is the reward of TTRL (Zuo et al. 2025, arXiv 2504.16084), VoteShare the vote of ScPO (Prasad et al.
2024, arXiv 2411.04109). Neither reads the gold answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from selfloop.workflows.judges.answers import Extract, as_number, canonical, equivalent, extract_answer
from selfloop.workflows.judges.base import GroupJudge, Row

__all__ = ["MajorityVote", "VoteJudge", "VoteShare", "are_numbers", "voted"]


def voted(row: Row, extract: Extract) -> str | None:
    """What a response votes for: one string for all answers that mean the same (as text: that are the same). None
    where none can be read."""
    answer = extract_answer(row["response"] or "", extract)
    return None if answer is None else canonical(answer, extract)


def are_numbers(answers: Sequence[str]) -> bool:
    """Whether most of these text answers are numbers, so that 18 and 18.00 are two votes."""
    return 2 * sum(as_number(answer) is not None for answer in answers) > len(answers)


class VoteJudge(GroupJudge):
    """What both share: how the answers are read. Failed rows have no vote."""

    score_range: ClassVar[tuple[float, float] | None] = (0, 1)
    extract: Extract = "text"


class MajorityVote(VoteJudge):
    """1 for a response whose answer equals the most frequent one, else 0: TTRL's reward.

    The majority is found by the text of the answers, so 1/2 and 0.5 split the vote; a tie goes to the answer seen first
    (in sample order); the reward is by equivalence, so if 1/2 wins, 0.5 is right too.

    unparsed: what a response without a readable answer does. exclude: it has no vote and no score. fallback (TTRL's
    code): its last number votes, or, without one, the empty answer, which can win.
    """

    unparsed: Literal["exclude", "fallback"] = Field(
        default="exclude", description="responses without an answer"
    )

    def verify_group(self, rows: Sequence[Row]) -> list[float | None]:
        answers = [self.answer(row) for row in rows]
        order = sorted(range(len(rows)), key=lambda i: rows[i].get("sample", i))
        votes = Counter(answer for i in order if (answer := answers[i]) is not None)
        if not votes:
            return [None] * len(answers)
        winner = max(votes, key=votes.__getitem__)  # the first of the equals
        return [
            None if answer is None else float(equivalent(answer, winner, self.extract)) for answer in answers
        ]

    def answer(self, row: Row) -> str | None:
        if row.get("status", "ok") == "failed":
            return None
        text = row["response"] or ""
        found = extract_answer(text, self.extract)
        if found is None and self.unparsed == "fallback":
            return extract_answer(text, "number") or ""
        return found


class VoteShare(VoteJudge):
    """V(y) / k: the share of the prompt's k responses whose answer means the same; ScPO's vote.

    unparsed: what a response without a readable answer does. It never votes. exclude: it has no score. lose: its share
    is 0, so that any answer with a vote is better (IRPO, arXiv 2404.19733, counts it among the losers).
    """

    unparsed: Literal["exclude", "lose"] = Field(default="exclude", description="responses without an answer")

    def verify_group(self, rows: Sequence[Row]) -> list[float | None]:
        unread = 0.0 if self.unparsed == "lose" else None
        ok = [row.get("status", "ok") != "failed" for row in rows]
        answers = [voted(row, self.extract) if usable else None for row, usable in zip(rows, ok, strict=True)]
        votes = Counter(answer for answer in answers if answer is not None)
        return [
            votes[answer] / len(rows) if answer is not None else unread if usable else None
            for answer, usable in zip(answers, ok, strict=True)
        ]
