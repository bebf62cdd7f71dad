"""A user's own judge: what it needs, what it may declare, how it is reported, how it fails."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from selfloop.workflows.checks import problems
from selfloop.workflows.config import Config
from selfloop.workflows.errors import FailedRowsError, InputError
from selfloop.workflows.judges import base
from selfloop.workflows.judges.trial import columns_read
from selfloop.workflows.judges.verifiers import verifier
from selfloop.workflows.report.show import show
from selfloop.workflows.run.problems import graph_problems
from selfloop.workflows.run.setup import Setup
from selfloop.workflows.store.keys import identity
from selfloop.workflows.store.metrics import read_metrics
from tests.unit.flows import fake_config, run_on

SOURCE = """
def length(row):
    return float(len(row["response"]))

def short(row):
    return len(row["response"]) < 4

def graded(row):
    return 9.0 if row["response"] else 2.0
graded.reads = ("response",)
graded.score_range = (0, 10)

def far(row):
    return 11
far.score_range = (0, 10)

def same(row):
    return row["response"] == row["answer"]

def raises(row):
    return row["nope"]

def copies(row):
    return "x" in dict(row)["response"]

def maybe(row):
    return 1.0 if row["response"].startswith("zz") and row["answer"] else 0.0
"""


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"own_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    rows = [{"prompt": f"Say {number}."} for number in range(24)]
    (tmp_path / "bare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answered = [{**row, "answer": str(number)} for number, row in enumerate(rows)]
    (tmp_path / "answered.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answered))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(globals(), "NAME", name)


NAME = ""


def config_of(judge: str, source: str = "bare.jsonl", **more: Any) -> Config:
    fields = {"max_failed_rows": 0.01, "settings": {"samples": 2}, **more}
    prompts = {"source": source, "heldout": 8}
    return fake_config("expert-iteration", prompts=prompts, judge=f"{NAME}:{judge}", iterations=1, **fields)


def test_needs_are_the_columns_read_on_a_trial() -> None:
    needs = {
        name: verifier(f"{NAME}:{name}").needs for name in ("length", "same", "copies", "maybe", "raises")
    }
    assert needs == {
        "length": {"response"},
        "same": {"response", "answer"},
        "copies": {"prompt", "response", "answer"},  # what is read of a copy cannot be seen
        "maybe": {"response"},
        "raises": {"response"},
    }
    assert columns_read(lambda row: row.get("answer")) == {"response", "answer"}
    assert columns_read(lambda row: "answer" in row) == {"response"}


def test_declared_reads_win_and_make_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = verifier(f"{NAME}:graded")
    monkeypatch.setattr(base, "columns_read", lambda _: pytest.fail("tried"))
    assert judge.needs == {"response"} and not judge.needs_answer and not judge.sees_answer


def test_a_trial_leaves_no_trace_and_is_not_waited_for(tmp_path: Path) -> None:
    def slow(row: Any) -> None:
        (tmp_path / "begun").touch()
        calls.append(row["response"])
        time.sleep(60)

    calls: list[str] = []
    started = time.monotonic()
    assert columns_read(slow, seconds=1.0) == {"prompt", "response", "answer"}  # not known
    assert time.monotonic() - started < 30 and (tmp_path / "begun").exists() and calls == []
    assert columns_read(lambda row: os._exit(3)) == {"prompt", "response", "answer"}


def test_a_judge_is_tried_once_and_not_where_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []
    monkeypatch.setattr(base, "columns_read", lambda verify: tried.append(verify) or frozenset({"response"}))
    for _ in range(3):
        assert verifier(f"{NAME}:length").needs == {"response"}
    assert len(tried) == 1
    monkeypatch.setattr(sys.modules[NAME].short, "trial", False, raising=False)
    assert verifier(f"{NAME}:short").needs == {"prompt", "response", "answer"} and len(tried) == 1


def test_a_judge_of_the_response_alone_needs_no_answers() -> None:
    assert graph_problems(Setup(config_of("length"))) == []
    assert problems(config_of("length")) == []
    found = graph_problems(Setup(config_of("same")))
    assert any("the prompts have none" in one and f"{NAME}:same does not need it" in one for one in found)
    with_answers = Setup(config_of("maybe", "answered.jsonl")).planner.graph(1)
    assert all(
        "answer" in node.columns for node in with_answers if node.verb == "prompts"
    )  # it may read them


def test_the_range_is_part_of_the_content_key(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = verifier(f"{NAME}:graded")
    before = identity(judge)
    monkeypatch.setattr(sys.modules[NAME].graded, "score_range", (0, 20))
    assert identity(judge) != before


def run_of(judge: str, tmp_path: Path, **more: Any) -> dict[str, Any]:
    run_on("local", config_of(judge, **more), tmp_path / "run")
    return read_metrics(tmp_path / "run")[-1]


@pytest.mark.parametrize("judge", ["length", "graded"])
def test_scores_are_reported_as_scores(
    judge: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = run_of(judge, tmp_path)
    assert "heldout_score" in metrics and not any("accuracy" in name or "pass_at" in name for name in metrics)
    told = capsys.readouterr().out
    assert "have a mean score of" in told and "are right" not in told and "Done" not in told
    curve = show(tmp_path / "run").partition("Held-out score")[2].partition("\n\n")[0]
    assert "gain" in curve and "%" not in curve.replace("95 %", "")


def test_right_and_wrong_are_reported_as_a_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = run_of("short", tmp_path, source="answered.jsonl")
    assert metrics["heldout_accuracy"] == metrics["heldout_score"]
    assert "% of its sampled answers to held-out prompts are right" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        ("raises", r"KeyError: .*'nope'.* in {name}:raises, prompt [0-9a-f]{{16}} 'Say \d+\.'"),
        ("far", r"score 11 is outside its range 0 to 10 in {name}:far, prompt [0-9a-f]{{16}} 'Say \d+\.'"),
    ],
)
def test_a_failed_verdict_shows_the_first_error(judge: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(FailedRowsError) as caught:
        run_of(judge, tmp_path)
    assert re.search(f"verdicts .score. failed.*The first: {said.format(name=NAME)}", str(caught.value))
    assert "first failure: " in show(tmp_path / "run")


def test_the_trial_says_nothing_of_what_is_not_there() -> None:
    with pytest.raises(InputError, match="no 'gone'"):
        verifier(f"{NAME}:gone")
