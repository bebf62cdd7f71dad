"""The pocket world's roles: prompts, parsers, truths, judges."""

from __future__ import annotations

import math

import pytest

from selfloop.workflows.pocket import roles
from selfloop.workflows.pocket.tasks import Task

TASK = Task("sort", ("52913",))
ROW = {"prompt": roles.answer_messages(TASK.text), "response": "12359", "other": "91235"}


def test_point() -> None:
    assert roles.point_messages(TASK.text, "12359")[0]["content"] == "sort 52913\nanswer: 12359\nright?"
    assert (roles.point_truth(TASK, "12359"), roles.point_truth(TASK, "12395")) == ("yes", "no")
    assert [roles.parse_point(text) for text in ("yes", " no\n", "yes no", "")] == [True, False, None, None]


def test_comparison() -> None:
    assert roles.comparison_messages(TASK.text, "1", "2")[0]["content"] == "sort 52913\nA: 1\nB: 2\nbetter?"
    assert roles.comparison_truth(TASK, "12359", "1") == "A"
    assert roles.comparison_truth(TASK, "1", "12359") == "B"
    assert roles.comparison_truth(TASK, "1", "2") is None
    assert [roles.parse_comparison(text) for text in ("A", "B ", "C", "AB")] == ["A", "B", None, None]


@pytest.mark.parametrize(
    ("said", "critique", "place"),
    [
        ("12359", "right", 0),
        ("12395", "wrong at 4", 4),
        ("1235", "wrong at 5", 5),
        ("123599", "wrong at 6", 6),
        ("", "wrong at 1", 1),
    ],
)
def test_critique(said: str, critique: str, place: int) -> None:
    assert roles.critique_truth(TASK, said) == critique
    assert roles.parse_critique(critique) == place


def test_unreadable_critique() -> None:
    assert roles.parse_critique("wrong") is None
    assert roles.critique_messages(TASK.text, "1")[0]["content"].endswith("answer: 1\ncritique")


def test_refinement_and_principles() -> None:
    plain, guided = (
        roles.refinement_messages(TASK.text, "1"),
        roles.refinement_messages(TASK.text, "1", "wrong at 2"),
    )
    assert plain[0]["content"] == "sort 52913\nanswer: 1\nimprove"
    assert guided[0]["content"] == "sort 52913\nanswer: 1\ncritique: wrong at 2\nimprove"
    assert roles.refinement_truth(TASK, "1") == "12359"
    written = {rule: roles.principle_truth(TASK, rule) for rule in roles.PRINCIPLES}
    assert written == {
        "with spaces": "1 2 3 5 9",
        "with dashes": "1-2-3-5-9",
        "in brackets": "[12359]",
        "backwards": "95321",
    }


def test_new_task() -> None:
    assert roles.new_task_messages()[0]["content"] == "new task"
    assert roles.new_task_truth("max 123") and roles.new_task_truth("max 123", "max")
    assert not roles.new_task_truth("max 123", "sort") and not roles.new_task_truth("max")


def test_long_or_broken_responses_stay_one_short_line() -> None:
    content = roles.point_messages(TASK.text, "1\n2\n" * 500)[0]["content"]
    assert content.count("\n") == 2 and len(content) < 80
    assert roles.task_of(roles.point_messages(TASK.text, "1")) == TASK.text


def test_point_judge_is_graded() -> None:
    judge = roles.PocketPointJudge()
    assert judge.messages(ROW) == roles.point_messages(TASK.text, "12359")
    assert judge.parse_labels([math.log(0.3), math.log(0.1)]) == pytest.approx(5 * 0.75)
    assert judge.parse_labels([-math.inf, -math.inf]) is None
    assert (judge.parse("yes"), judge.parse("no"), judge.parse("maybe")) == (5.0, 0.0, None)
    assert judge.aggregate([5.0, 5.0, 0.0, 5.0]) == 3.75


def test_comparison_judge_in_both_orders() -> None:
    straight, swapped = roles.PocketComparison(), roles.PocketComparison(swapped=True)
    assert straight.messages(ROW) == roles.comparison_messages(TASK.text, "12359", "91235")
    assert swapped.messages(ROW) == roles.comparison_messages(TASK.text, "91235", "12359")
    logprobs = [math.log(0.6), math.log(0.2)]
    assert straight.parse_labels(logprobs) == pytest.approx(0.75)
    assert swapped.parse_labels(logprobs) == pytest.approx(0.25)
    assert (straight.parse("A"), swapped.parse("A"), swapped.parse("B"), straight.parse("?")) == (
        1.0,
        0.0,
        1.0,
        None,
    )
