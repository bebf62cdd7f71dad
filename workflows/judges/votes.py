"""Judges that need no label: the samples of a prompt vote on its answer.

MajorityVote is the reward of TTRL (Zuo et al. 2025, arXiv 2504.16084), VoteShare the vote of ScPO (Prasad et al.
2024, arXiv 2411.04109). Neither reads the gold answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from selfloop.workflows.judges.answers import Extract, equivalent, extract_answer
from selfloop.workflows.judges.base import GroupJudge, Row

__all__ = ["MajorityVote", "VoteJudge", "VoteShare"]


class VoteJudge(GroupJudge):
    """What both share: each response's answer, None where it has no vote.

    Votes are counted by the answer's text, so 1/2 and 0.5 are two answers. unparsed: what a response without a
    readable answer does. exclude: it has no vote and no score. fallback (TTRL's code): its last number votes, or,
    without one, the empty answer, which can win.
    """

    extract: Extract = "text"
    unparsed: Literal["exclude", "fallback"] = Field(
        default="exclude", description="responses without an answer"
    )

    def answers(self, rows: Sequence[Row]) -> list[str | None]:
        """The voted answer of each row."""
        return [self.answer(row) for row in rows]

    def answer(self, row: Row) -> str | None:
        if row.get("status", "ok") == "failed":
            return None
        text = row["response"] or ""
        found = extract_answer(text, self.extract)
        if found is None and self.unparsed == "fallback":
            return extract_answer(text, "number") or ""
        return found


class MajorityVote(VoteJudge):
    """1 for a response whose answer equals the most frequent one, else 0: TTRL's reward.

    The majority is found by text, a tie goes to the answer seen first (in sample order); the reward is by
    equivalence, so if 1/2 wins, 0.5 is right too.
    """

    def verify_group(self, rows: Sequence[Row]) -> list[float | None]:
        answers = self.answers(rows)
        order = sorted(range(len(rows)), key=lambda i: rows[i].get("sample", i))
        votes = Counter(answer for i in order if (answer := answers[i]) is not None)
        if not votes:
            return [None] * len(answers)
        winner = max(votes, key=votes.__getitem__)  # the first of the equals
        return [
            None if answer is None else float(equivalent(answer, winner, self.extract)) for answer in answers
        ]


class VoteShare(VoteJudge):
    """V(y) / k: the share of the prompt's k responses that have the same answer, by text; ScPO's vote."""

    def verify_group(self, rows: Sequence[Row]) -> list[float | None]:
        answers = self.answers(rows)
        votes = Counter(answer for answer in answers if answer is not None)
        return [None if answer is None else votes[answer] / len(rows) for answer in answers]
