"""The "must hold" lines of the card self-consistency-reward that concern votes."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from selfloop.workflows.judges.answers import Extract
from selfloop.workflows.judges.votes import MajorityVote, VoteShare, are_numbers


def group(*responses: str | None) -> list[dict[str, Any]]:
    return [{"sample": i, "response": text} for i, text in enumerate(responses)]


def test_majority_vote() -> None:
    vote = MajorityVote()
    assert vote.verify_group(group("7", "7", "7", "3", "5")) == [1, 1, 1, 0, 0]
    assert vote.verify_group(group("7", "7", "7")) == [1, 1, 1]
    assert vote.verify_group(group("1", "2", "3")) == [1, 0, 0]


def test_a_tie_goes_to_the_answer_seen_first_in_sample_order() -> None:
    rows = group("3", "7", "7", "3")
    assert MajorityVote().verify_group(rows) == [1, 0, 0, 1]
    assert MajorityVote().verify_group(rows[::-1]) == [1, 0, 0, 1]


def test_the_majority_is_by_text_and_the_reward_by_equivalence() -> None:
    rows = group("1/2", "0.5", "1/2", "3", "3", "1/2")
    assert MajorityVote(extract="number").verify_group(rows) == [1, 1, 1, 0, 0, 1]
    split = group("1/2", "0.5", "3", "3", "3", "1/2")  # together 1/2 and 0.5 would be as many as 3
    assert MajorityVote(extract="number").verify_group(split) == [0, 0, 1, 1, 1, 0]


def test_answers_that_cannot_be_read_have_no_vote_unless_asked() -> None:
    rows = group("no", "none", "nil", "about 7", "7")
    assert MajorityVote(extract="number").verify_group(rows) == [None, None, None, 1, 1]
    fallback = MajorityVote(extract="number", unparsed="fallback")
    assert fallback.verify_group(rows) == [1, 1, 1, 0, 0]  # the empty answer wins, as in TTRL's code
    boxed = MajorityVote(extract="boxed", unparsed="fallback")
    assert boxed.verify_group(group(r"\boxed{7}", "so 7", "so 7", "8")) == [1, 1, 1, 0]
    assert MajorityVote(extract="number").verify_group(group("a", "b")) == [None, None]


def test_failed_rows_do_not_vote() -> None:
    rows = [{**row, "status": "failed"} if row["sample"] < 2 else row for row in group("3", "3", "7")]
    assert MajorityVote().verify_group(rows) == [None, None, 1]


def test_vote_shares() -> None:
    rows = group("a", "a", "a", "a", "a", "b", "b", "c")
    assert VoteShare().verify_group(rows) == [0.625] * 5 + [0.25] * 2 + [0.125]
    unread = group("1", "1", "x", "y")
    assert VoteShare(extract="number").verify_group(unread) == [0.5, 0.5, None, None]


@pytest.mark.parametrize("extract", ["number", "boxed"])
def test_equal_numbers_are_one_vote(extract: Extract) -> None:
    rows = group(*[rf"\boxed{{{answer}}}" for answer in ("1/2", "0.5", "0.50", "3")])
    assert VoteShare(extract=extract).verify_group(rows) == [0.75, 0.75, 0.75, 0.25]


def test_text_stays_exact() -> None:
    assert VoteShare().verify_group(group("18", "18.00", "018", "18")) == [0.5, 0.25, 0.25, 0.5]


def test_unreadable_answers_lose_only_where_asked() -> None:
    rows = [*group("7", "7", "none", "8"), {"sample": 4, "response": "7", "status": "failed"}]
    assert VoteShare(extract="number").verify_group(rows) == [0.4, 0.4, None, 0.2, None]
    assert VoteShare(extract="number", unparsed="lose").verify_group(rows) == [0.4, 0.4, 0.0, 0.2, None]


def test_whether_most_answers_are_numbers() -> None:
    assert are_numbers(["18", "1/2", "x"]) and are_numbers(["18.00"])
    assert not are_numbers(["18", "x"]) and not are_numbers([])


def test_votes_never_read_the_gold_answer() -> None:
    class Watched(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            assert name != "answer"
            return super().__getitem__(name)

    for judge in (MajorityVote(), VoteShare()):
        assert not judge.needs_answer
        judge.verify_group([Watched(row, answer="7") for row in group("7", "8")])
        assert pickle.loads(pickle.dumps(judge)) == judge
