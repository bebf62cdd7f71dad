"""Verdicts of judges that break: asked again, then failed and counted, never a zero."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from selfloop.workflows.flow.judging import JudgeRule, parsed
from selfloop.workflows.flow.ops import Context
from selfloop.workflows.judges.base import GroupJudge, Verifier

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
