"""Selection rules: the "must hold" lines of the cards self-rewarding, expert-iteration and self-consistency-reward."""

from __future__ import annotations

import pickle
import random
from typing import Any

import pytest

from selfloop.workflows.judges.votes import VoteShare
from selfloop.workflows.rules.keep import BestOfN, Correct
from selfloop.workflows.rules.pairs import MostAgainstLeast, best_against_worst

Rows = list[dict[str, Any]]


def judged(*judgements: tuple[float | None, ...]) -> Rows:
    """One row a response; None is an invalid judgement."""
    rows: Rows = []
    for sample, scores in enumerate(judgements):
        valid = [score for score in scores if score is not None]
        single = [{"state": "abstain" if s is None else "score", "score": s, "text": ""} for s in scores]
        rows.append(
            {
                "sample": sample,
                "status": "ok",
                "response": f"response {sample}",
                "score": sum(valid) / len(valid) if valid else None,
                "score_state": "score" if valid else "abstain",
                "score_judgements": single,
            }
        )
    return rows


def scored(*scores: float) -> Rows:
    return judged(*[(score,) for score in scores])


def names(pairs: list[Any]) -> list[tuple[int, int]]:
    return [(pair[0]["sample"], pair[1]["sample"]) for pair in pairs]


def rng() -> random.Random:
    return random.Random(0)


def test_best_against_worst() -> None:
    rows = judged((5, 4, 5), (3, None, 4), (4, 4, 4), (2, 3, 2))
    assert names(best_against_worst(rows, rng())) == [(0, 3)]
    assert names(best_against_worst(rows[::-1], rng())) == [(0, 3)]


def test_no_pair_without_two_different_scores() -> None:
    assert best_against_worst(scored(4, 4, 4, 4), rng()) == []
    assert best_against_worst(judged((5,), (None,), (None,)), rng()) == []
    assert best_against_worst(judged((None,), (None,)), rng()) == []
    assert best_against_worst([], rng()) == []


def test_an_invalid_judgement_is_never_a_zero() -> None:
    rows = judged((5, None, None), (4, 4, 4), (None, None, None))
    assert names(best_against_worst(rows, rng())) == [(0, 1)]


def test_failed_rows_and_failed_verdicts_are_left_out() -> None:
    rows = scored(5, 4, 3, 2, 1)
    rows[0] |= {"status": "failed"}
    rows[4] |= {"score_state": "failed"}
    assert names(best_against_worst(rows, rng())) == [(1, 3)]


def test_equal_scores_are_decided_by_variance_then_by_sample() -> None:
    rows = judged((5, 3, 4), (4, 4, 4), (4, 4, 4), (1, 3, 2), (2, 2, 2))
    assert names(best_against_worst(rows, rng())) == [(1, 4)]


def test_best_of_n() -> None:
    rows = judged((1,), (3,), (None,), (3,), (2,))
    assert [row["sample"] for row in BestOfN()(rows, rng())] == [1]
    assert [row["sample"] for row in BestOfN(keep=3)(rows, rng())] == [1, 3, 4]
    assert BestOfN()(judged((None,)), rng()) == []
    assert [row["sample"] for row in BestOfN()(scored(0.0), rng())] == [0]  # one sample: no selection


@pytest.mark.parametrize(("correct", "kept"), [(25, 10), (10, 10), (3, 3), (0, 0)])
def test_at_most_ten_correct_ones_a_problem(correct: int, kept: int) -> None:
    rows = scored(*[1.0] * correct, *[0.0] * (32 - correct))
    found = Correct()(rows, rng())
    assert len(found) == kept
    assert all(row["score"] == 1 for row in found)
    assert len({row["sample"] for row in found}) == kept


def test_the_kept_ones_are_a_seeded_random_draw_that_ignores_the_order_of_rows() -> None:
    rows = scored(*[1.0] * 25)
    first = Correct()(rows, random.Random(1))
    assert first == Correct()(rows[::-1], random.Random(1))
    assert first != Correct()(rows, random.Random(2))
    assert [row["sample"] for row in first] == sorted(row["sample"] for row in first)
    assert len(Correct(cap=1)(rows, rng())) == 1
    assert len(Correct(cap=None)(rows, rng())) == 25


def test_copies_can_be_left_out() -> None:
    rows = [{**row, "response": "same"} for row in scored(1, 1, 1)] + scored(0)
    assert len(Correct()(rows, rng())) == 3
    assert [row["sample"] for row in Correct(dedup=True)(rows, rng())] == [0]


def voted(*responses: str, **settings: Any) -> Rows:
    rows: Rows = [{"sample": i, "response": text, "status": "ok"} for i, text in enumerate(responses)]
    for row, share in zip(rows, VoteShare(**settings).verify_group(rows), strict=True):
        row |= {"score": share, "score_state": "abstain" if share is None else "score"}
    return rows


def test_most_against_least_voted() -> None:
    rows = voted(*"aaaaabbc")
    [(chosen, rejected, more)] = MostAgainstLeast()(rows, rng())
    assert (chosen["response"], rejected["response"], more) == ("a", "c", {"weight": 0.375 + 0.125})
    drawn = {MostAgainstLeast()(rows, random.Random(seed))[0][0]["sample"] for seed in range(50)}
    assert drawn == {0, 1, 2, 3, 4}


def test_the_cards_weight() -> None:
    # votes 5, 2, 1 of k = 8: w = (5 - 1) / 8
    [(_, rejected, more)] = MostAgainstLeast()(voted(*"aaaaabbc"), rng())
    assert rejected["response"] == "c" and more == {"weight": 4 / 8}


def test_an_unreadable_answer_is_in_no_pair_unless_asked() -> None:
    said = ["7"] * 5 + ["8"] * 2 + ["none"]
    [(_, rejected, more)] = MostAgainstLeast(extract="number")(voted(*said, extract="number"), rng())
    assert (rejected["response"], more) == ("8", {"weight": 3 / 8})
    rows = voted(*said, extract="number", unparsed="lose")
    [(_, rejected, more)] = MostAgainstLeast(extract="number")(rows, rng())
    assert (rejected["response"], more) == ("none", {"weight": 5 / 8})
    nothing = voted("no", "none", extract="number", unparsed="lose")
    assert MostAgainstLeast(threshold=0.0, extract="number")(nothing, rng()) == []


def test_answers_that_mean_the_same_are_never_a_pair() -> None:
    rule = MostAgainstLeast(threshold=0.0, extract="number")
    assert rule(voted("$18", "$18", "$18.00", extract="number"), rng()) == []
    rows = voted("$18", "18.00", "$18", "17", extract="number")
    drawn = [rule(rows, random.Random(seed))[0] for seed in range(30)]
    assert {pair[0]["response"] for pair in drawn} == {"$18", "18.00"}
    assert {(pair[1]["response"], pair[-1]["weight"]) for pair in drawn} == {("17", 0.5)}


def test_too_few_votes_drop_the_question() -> None:
    assert MostAgainstLeast()(voted(*"aaabbbcc"), rng()) == []
    assert len(MostAgainstLeast()(voted(*"aaaabbcc"), rng())) == 1  # exactly half is enough
    assert MostAgainstLeast(threshold=0.7)(voted(*"aaaaabbc"), rng()) == []
    assert MostAgainstLeast()(voted(*"aaaa"), rng()) == []
    assert MostAgainstLeast()(voted(" ", " "), rng()) == []


def test_a_tie_for_most_votes_goes_to_the_answer_seen_first() -> None:
    rows = voted(*"baabc")
    rule = MostAgainstLeast(threshold=0.4)
    assert {rule(rows, random.Random(seed))[0][0]["response"] for seed in range(20)} == {"b"}


def test_rules_pickle() -> None:
    for rule in (best_against_worst, BestOfN(), Correct(cap=3), MostAgainstLeast(threshold=0.6)):
        assert pickle.loads(pickle.dumps(rule)) == rule
