"""Verdicts of judges that break: asked again, then failed and counted, never a zero."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from selfloop.workflows.flow.verbs.base import Context
from selfloop.workflows.flow.verbs.judge import JudgeRule, parsed
from selfloop.workflows.judges.base import GroupJudge, Verifier
from selfloop.workflows.judges.prompts.rubric import AdditiveRubric

ROWS = pa.table({"prompt_id": ["a", "a", "b"], "response": ["1", "2", "3"], "status": ["ok"] * 3})


class Flaky(Verifier):
    """Breaks as often as it is told at each response, then says 1."""

    times: dict[str, int]
    seen: ClassVar[Counter[str]] = Counter()

    def verify(self, row: Mapping[str, Any]) -> float | None:
        self.seen[row["response"]] += 1
        if self.seen[row["response"]] <= self.times.get(row["response"], 0):
            raise ConnectionError("away")
        return 1.0


class Broken(GroupJudge):
    def verify_group(self, rows: Sequence[Mapping[str, Any]]) -> list[float | None]:
        if rows[0]["prompt_id"] == "b":
            raise ValueError("no")
        return [0.0] * len(rows)


@pytest.fixture(autouse=True)
def unseen() -> None:
    Flaky.seen.clear()


def verdicts(judge: Any) -> list[tuple[float | None, str]]:
    table = asyncio.run(JudgeRule(judge).run([ROWS], Context("judge", 1, 0, pauses=(0.0, 0.0, 0.0))))
    return list(zip(table["score"].to_pylist(), table["score_state"].to_pylist(), strict=True))


def test_a_verifier_that_breaks_now_and_then_is_asked_again() -> None:
    assert verdicts(Flaky(times={"2": 2})) == [(1.0, "score")] * 3
    assert Flaky.seen == {"1": 1, "2": 3, "3": 1}


def test_one_that_stays_broken_fails_its_row_alone() -> None:
    assert verdicts(Flaky(times={"2": 3})) == [(1.0, "score"), (None, "failed"), (1.0, "score")]


def test_a_group_judge_that_breaks_fails_its_group_alone() -> None:
    assert verdicts(Broken()) == [(0.0, "score"), (0.0, "score"), (None, "failed")]


def test_a_parser_that_raises_is_a_failure_and_none_an_abstention() -> None:
    assert parsed(lambda _: None, "hm", "hm").state == "abstain"
    broken = parsed(float, "x", "x")
    assert broken.state == "failed" and "ValueError" in broken.text


class Graded(Verifier):
    """Declares its range."""

    score_range: ClassVar[tuple[float, float] | None] = (0, 10)
    score: float

    def verify(self, row: Mapping[str, Any]) -> float | None:
        return self.score


@pytest.mark.parametrize("score", [-0.5, 10.5, float("nan"), float("inf")])
def test_a_score_outside_the_declared_range_is_a_failed_verdict(score: float) -> None:
    table = asyncio.run(JudgeRule(Graded(score=score)).run([ROWS], Context("judge", 1, 0, pauses=(0.0,))))
    assert table["score"].null_count == 3 and set(table["score_state"].to_pylist()) == {"failed"}
    text = table["score_judgements"].to_pylist()[0][0]["text"]
    assert f"score {score:g}" in text and "in Graded" in text
    assert ("outside its range 0 to 10" in text) == (abs(score) < 11)


@pytest.mark.parametrize("score", [0, 10])
def test_the_ends_of_a_range_belong_to_it(score: float) -> None:
    assert verdicts(Graded(score=score)) == [(score, "score")] * 3


def test_a_parser_is_held_to_the_range_of_its_judge() -> None:
    assert parsed(float, "4", "4", AdditiveRubric()).score == 4
    assert "outside its range 0 to 5" in parsed(float, "7", "7", AdditiveRubric()).text


def test_an_error_names_the_judge() -> None:
    table = asyncio.run(JudgeRule(Broken()).run([ROWS], Context("judge", 1, 0, pauses=(0.0,))))
    assert table["score_judgements"].to_pylist()[2][0]["text"] == "ValueError: no in Broken"


def test_what_is_no_number_fails_its_row_alone() -> None:
    class Odd(GroupJudge):
        def verify_group(self, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
            return ["yes" if row["response"] == "2" else 1 for row in rows]

    assert verdicts(Odd()) == [(1.0, "score"), (None, "failed"), (1.0, "score")]
