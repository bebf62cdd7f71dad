"""Judges that are prompts: what they show, what they parse, how verdicts are put together."""

from __future__ import annotations

import math
import pickle
import re

import pytest

from selfloop.workflows.judges.prompts import mtbench
from selfloop.workflows.judges.prompts.mtbench import Pairwise, Pointwise, both_orders, tally
from selfloop.workflows.judges.prompts.rubric import AdditiveRubric, ScoreOnly

ROW = {
    "prompt": [{"role": "user", "content": "Name a {colour}."}],
    "response": "Blue.",
    "response_a": "Red.",
    "response_b": "Green.",
    "answer": "any",
}


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("It is fine.\nScore: 4", 4.0),
        ("Score: 2 at first, but on reflection\nScore: 3.5", 3.5),
        ("**Score:** 5", 5.0),
        ("Score: 4/5", 4.0),
        ("Score: 0", 0.0),
        ("Score: 3.", 3.0),
        ("Score: 6", None),
        ("Score: -1", None),
        ("Score: 45", None),
        ("Score: 3\nScore: 7", None),
        ("Score: <total>", None),
        ("score four", None),
        ("I give 4 points.", None),
        ("", None),
    ],
)
def test_the_rubric_reads_the_last_label_that_has_a_number(reply: str, score: float | None) -> None:
    assert AdditiveRubric().parse(reply) == score


TOTALS: dict[str, dict[str, float]] = {
    "a sum with its total": {
        "0 + 1 + 1 = 2": 2, "1 + 1 + 1 + 0 + 0 = 3": 3, "1+1+1=**3**": 3, "2 = 1 + 1 + 0": 2, "2 (1 + 1 + 0)": 2,
        "1 point + 1 point = 2 points": 2, "1 (relevant) + 1 (useful) + 0 = 2/5": 2, "0.5 + 0.1 + 0.2 = 0.8": 0.8,
    },
    "markup": {
        "<4>": 4, "[4]": 4, "`4`": 4, "$4$": 4, "**4**": 4, "(4)": 4, "[[4]]": 4, r"$\boxed{4}$": 4, "<total>4</total>": 4,
        "| 4 |": 4, "\n\n**4**": 4, "4</s>": 4,
    },
    "its scale": {
        "4/5": 4, "4 / 5 points": 4, "4 out of 5": 4, "4 (out of 5)": 4, "4 points out of a possible 5": 4, "4 of 5": 4,
        "**4**/5.": 4, "4 out of five": 4, "0/5": 0, "<4>/5": 4,
    },
    "a number": {"4.": 4, "3.5": 3.5, "4,5": 4.5, ".5": 0.5, "4 points": 4, "4 - good": 4, "4, since it helps": 4, "4\r\n": 4},
}  # fmt: skip
NO_TOTALS = {
    "a sum without its total": ["1 + 1 + 1", "1 + 1 =", "1 + 1 = 3", "3 (1 + 1)", "1 + 1 = 2 + 0", "1 + 1 - 1 = 1", "3 + 4 = 7"],
    "another scale": ["4/10", "4 out of 10", "4 out of ten", "4/4", "6/5", "1 + 1 = 2/10", "4 %", "4 percent", "80%", "4/"],
    "a range": ["3-4", "3 \u2013 4", "3 to 4", "3 or 4", "3 to four", "4 and a half", "3 -"],
    "several numbers": ["1,000", "1 000", "3, 4", "3 4", "4 (I considered 5)", "4 1/2", "1.2.3", "2 * 2", "4\u00bd", "3 -> 4"],
    "a sign or a bound": ["-1", "\u22121", "\u2013 1", "<4", ">4", "\u22654", "~4", "4+", "about 4"],
    "no number": ["four", "4th", "1e0", "\uff14", "N/A", "\n1. It is relevant"],
}  # fmt: skip


@pytest.mark.parametrize("kind", TOTALS)
def test_totals_are_read_as_a_whole(kind: str) -> None:
    assert {said: AdditiveRubric().parse(f"Fine.\nScore: {said}") for said in TOTALS[kind]} == TOTALS[kind]


@pytest.mark.parametrize("kind", NO_TOTALS)
def test_what_is_no_total_is_invalid_and_never_read_in_part(kind: str) -> None:
    assert {
        said: AdditiveRubric().parse(f"Fine.\nScore: {said}") for said in NO_TOTALS[kind]
    } == dict.fromkeys(NO_TOTALS[kind])


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("**Score**: 4", 4.0),
        ("**Score: 4**", 4.0),
        ("_Score:_ 4", 4.0),
        ("FINAL SCORE: 4/5", 4.0),
        ('{"score": 4}', 4.0),
        ("- Score: 4\n\nIt has 3 merits.", 4.0),
        ("Score: 4\nAs asked: Score: <total>", 4.0),
        ("Score: 4\nScore: 3-4", None),
        ("z-score: 4", None),
        ("underscore: 4", None),
    ],
)
def test_labels(reply: str, score: float | None) -> None:
    assert ScoreOnly().parse(reply) == score


def test_the_rubric_shows_conversation_and_response_and_asks_for_reasons_before_the_score() -> None:
    [message] = AdditiveRubric().messages(ROW)
    text = message["content"]
    assert (
        text.index("Name a {colour}.") < text.index("Blue.") < text.index("100 words") < text.index("Score:")
    )
    assert AdditiveRubric().parse(text) is None  # a judge that repeats its prompt has said nothing
    [bare] = ScoreOnly().messages(ROW)
    assert "justify" not in bare["content"]
    turns = [
        *ROW["prompt"],
        {"role": "assistant", "content": "Red."},
        {"role": "user", "content": "Another."},
    ]
    [longer] = AdditiveRubric().messages({**ROW, "prompt": turns})
    assert re.search(r"<assistant-(\w+)>\nRed\.\n</assistant-\1>", longer["content"])


def test_invalid_judgements_change_the_denominator() -> None:
    rubric = AdditiveRubric()

    def score(*replies: str) -> float | None:
        parsed = [rubric.parse(f"Score: {reply}") for reply in replies]
        return rubric.aggregate([value for value in parsed if value is not None])

    assert score("5", "4", "5") == pytest.approx(4.667, abs=1e-3)
    assert score("3", "invalid", "4") == 3.5
    assert score("4", "4", "4") == 4.0
    assert score("2", "3", "2") == pytest.approx(2.333, abs=1e-3)
    assert score("5", "invalid", "9") == 5.0


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Rating: [[7.5]]", 7.5),
        ("[8]", 8.0),
        ("[3] but [[6]]", 6.0),
        ("8/10", None),
        ("[[rating]]", None),
        ("[[0]]", None),
    ],
)
def test_pointwise_ratings(reply: str, score: float | None) -> None:
    assert Pointwise().parse(reply) == score


def test_pairwise_shows_both_orders_and_maps_back() -> None:
    plain, swapped = Pairwise(), Pairwise(swapped=True)
    first, second = plain.messages(ROW)[0]["content"], swapped.messages(ROW)[0]["content"]
    assert first.index("Red.") < first.index("Green.")
    assert second.index("Green.") < second.index("Red.")
    assert [plain.parse(f"[[{letter}]]") for letter in "ABC"] == [1.0, 0.0, 0.5]
    assert [swapped.parse(f"[[{letter}]]") for letter in "ABC"] == [0.0, 1.0, 0.5]
    assert plain.parse("[[B]], not [[A]]") == 1.0
    assert plain.parse("A") is None
    assert plain.parse(first) is None
    assert pickle.loads(pickle.dumps(swapped)) == swapped


def test_a_reference_is_shown_only_where_asked() -> None:
    assert "<reference-" in mtbench.PointwiseReference().messages(ROW)[0]["content"]
    assert "eference" not in Pointwise().messages(ROW)[0]["content"]


def test_a_pair_is_won_only_in_both_orders() -> None:
    assert both_orders("a", "a") == "a"
    assert both_orders("a", "b") == both_orders("a", "tie") == both_orders("tie", "a") == "tie"
    assert both_orders(None, "a") is both_orders("a", None) is None
    assert both_orders(1.0, 1.0) == "a"


def test_a_judge_that_always_names_the_first_yields_ties_and_no_consistency() -> None:
    found = tally([(Pairwise().parse("[[A]]"), Pairwise(swapped=True).parse("[[A]]"))] * 5)
    assert (found.wins, found.losses, found.ties) == (0, 0, 5)
    assert (found.consistency, found.first_position) == (0.0, 1.0)


def test_win_rates() -> None:
    calls = [("a", "a")] * 2 + [("b", "b")] + [("a", "b")] * 4 + [(None, "a")]
    found = tally(calls)
    assert found[:4] == (2, 1, 4, 1)
    assert found.win_rate == pytest.approx(0.2857, abs=1e-4)
    assert found.adjusted_win_rate == pytest.approx(0.5714, abs=1e-4)
    mirror = {"a": "b", "b": "a", "tie": "tie", None: None}
    swapped = tally([(mirror[one], mirror[two]) for one, two in calls])
    assert (swapped.wins, swapped.losses) == (1, 2)
    assert swapped.adjusted_win_rate + found.adjusted_win_rate == pytest.approx(1)


def test_scores_within_a_tenth_are_a_tie() -> None:
    assert mtbench.compare_scores(7.0, 7.1) == "tie"
    assert mtbench.compare_scores(7.0, 7.2) == "b"
    assert mtbench.compare_scores(None, 7.2) is None


def test_preference_of_a_judge_that_sees_only_the_position_is_a_half() -> None:
    position = (math.log(0.9), math.log(0.1))
    assert mtbench.preference(position, position) == pytest.approx(0.5)
    assert mtbench.preference(position, position[::-1]) == pytest.approx(0.9)


def test_agreement_with_and_without_ties() -> None:
    one, two = ["a", "tie", "b", "a", None], ["a", "tie", "a", "tie", "b"]
    assert mtbench.agreement(one, two) == 0.5
    assert mtbench.agreement(one, two, ties=False) == 0.5
    assert math.isnan(mtbench.agreement([None], ["a"]))
