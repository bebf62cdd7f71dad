"""What a run prints, and where its metrics go."""

from __future__ import annotations

import io
import json
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as Terminal

from selfloop.actors.train.telling import Teller
from selfloop.workflows.config import Config
from selfloop.workflows.errors import InputError
from selfloop.workflows.report.console import Console
from selfloop.workflows.report.trackers import Trackers
from selfloop.workflows.store.metrics import metric_name, read_metrics


def plain() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(2, terminal=Terminal(file=file, width=200, highlight=False, soft_wrap=True)), file


def test_plain_lines_explain_themselves() -> None:
    console, file = plain()
    with console:
        console.start("Selfloop: pocket improves itself", {"iterations": 2, "exam": "256 prompts"})
        console.iteration(0, {"heldout_accuracy": 0.5})
        console.stage("sample", 10, 100, tokens_per_s=7000)
        console.stage("sample", 100, 100, tokens_per_s=7000, queued=2, what="the policy answers prompts")
        console.stage("sample", 100, 100, tokens_per_s=7000, done=True)
        console.iteration(1, {"heldout_accuracy": 0.71})
        console.done("runs/x")
    lines = [line.replace("[0:00] ", "").rstrip() for line in file.getvalue().splitlines()]
    assert lines == [
        "Selfloop: pocket improves itself",
        "  iterations  2",
        "  exam        256 prompts",
        "initial policy: 50.0 % of its sampled answers to held-out prompts are right",
        "iteration 1 of 2 · sample: 100 of 100 rows (done) · 7,000 tokens/s · 2 batches queued · the policy answers prompts",
        "after iteration 1: 71.0 % of its sampled answers to held-out prompts are right (+21.0 points)",
        "Done in 0:00: held-out accuracy went from 50.0 % to 71.0 % (+21.0 points) in 1 iteration  ▁█",
        "  look at it:  selfloop show runs/x",
        "  talk to it:  selfloop chat runs/x",
    ]


def test_scores_are_told_as_scores() -> None:
    console, file = plain()
    for index, score in enumerate((6.5, 1.0, 7.0)):
        right = {"heldout_accuracy": 1.0} if score == 1.0 else {}
        console.iteration(index, {"heldout_score": score, "heldout_score_greedy": score, **right})
    console.done()
    assert "%" not in file.getvalue() and "accuracy" not in file.getvalue()
    assert "held-out mean score went from 6.5 to 7 (+0.5) in 2 iterations" in file.getvalue()
    assert [str(column.header) for column in console.history_table().columns][1] == "score"


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def clocked() -> tuple[Console, io.StringIO, Clock]:
    """A console that was not entered: nothing ticks but the test."""
    file, clock = io.StringIO(), Clock()
    terminal = Terminal(file=file, width=200, highlight=False, soft_wrap=True)
    return Console(3, live=False, terminal=terminal, now=clock), file, clock


def test_no_silence_of_fifteen_seconds_whatever_happens() -> None:
    """Nobody tells anything: start-up, then a node that has begun, then one between others."""
    console, file, clock = clocked()
    spoken: list[float] = []
    line = console.line

    def noted(text: str) -> None:
        spoken.append(clock.seconds)
        line(text)

    console.line = noted  # type: ignore[method-assign]

    def pass_time(seconds: int) -> None:
        for _ in range(seconds):
            clock.seconds += 1
            console.tick()

    with console.doing("engines and trainer start"):
        pass_time(40)
    console.stage("sample", 0, None, queued=4, what="the policy answers prompts")
    pass_time(20)
    console.stage("sample", 64, 64, done=True, what="the policy answers prompts")
    pass_time(20)
    assert file.getvalue().splitlines() == [
        "[0:14] engines and trainer start …",
        "[0:28] engines and trainer start …",
        "[0:42] iteration 0 of 3 · sample: 0 rows · 4 batches queued · the policy answers prompts",
        "[0:56] iteration 0 of 3 · sample: 0 rows · 4 batches queued · the policy answers prompts",
        "[1:00] iteration 0 of 3 · sample: 64 of 64 rows (done) · the policy answers prompts",
        "[1:14] iteration 0 of 3 is at work …",
    ]
    assert max(later - earlier for earlier, later in zip([0.0, *spoken], [*spoken, 80.0], strict=False)) < 15


def test_a_training_tells_step_loss_pace_and_time_left() -> None:
    console, file, clock = clocked()
    told: list[dict[str, Any]] = []
    teller = Teller(lambda one: told.append(asdict(one)), clock)
    for what in ("reference logprobs of batch 3 of 12", "reference logprobs of batch 9 of 12"):
        teller.doing(what)
        console.training("train", **told[-1])
        clock.seconds += 14
    teller.begin(20, 96)
    for step in range(21, 27):
        clock.seconds += 5
        teller.stepped({"step": float(step), "loss": 0.7 - step / 100, "tokens": 2000.0})
        console.training("train", **told[-1])
    console.stage("train", 768, 768, done=True)
    assert file.getvalue().splitlines() == [
        "[0:14] iteration 0 of 3 · train: reference logprobs of batch 9 of 12 · the policy learns",
        "[0:33] iteration 0 of 3 · train: step 21 of 96 · loss 0.4900 · 400 tokens/s · 6:15 left · the policy learns",
        "[0:48] iteration 0 of 3 · train: step 24 of 96 · loss 0.4600 · 400 tokens/s · 6:00 left · the policy learns",
        "[0:58] iteration 0 of 3 · train: 768 of 768 rows (done) · 400 tokens/s · the policy learns",
    ]


def test_a_ticker_stops_with_the_console() -> None:
    console, _, _ = clocked()
    with console:
        assert [thread.name for thread in threading.enumerate()].count("ticker") == 1
    assert "ticker" not in [thread.name for thread in threading.enumerate()]


def test_text_of_users_is_no_markup() -> None:
    console, file = plain()
    console.line("[red]runs/[x][/red]")
    assert file.getvalue() == "[red]runs/[x][/red]\n"


def test_live_table_on_a_terminal() -> None:
    file = io.StringIO()
    terminal = Terminal(file=file, force_terminal=True, width=80, height=30, color_system=None)
    with Console(2, terminal=terminal) as console:
        console.iteration(0, {"heldout_accuracy": 0.5, "heldout_accuracy_greedy": 0.6})
        console.stage("sample", 10, 100, 7000, 3)
        console.training("train", "", 12, 96, 0.5, 1450.0, 102.0)
        console.activity = "the engines get the weights of policy@1"
        terminal.print(console.render())
    shown = file.getvalue()
    for text in ("iteration 1 of 2", "stage", "10 of 100", "7,000", "50.0 %", "60.0 %", "since the start",
                 "step 12 of 96", "1,450", "loss 0.5000", "1:42", "the engines get the weights of policy@1 …"):  # fmt: skip
        assert text in shown


# Trackers


def tracked(run: Path, *names: Any) -> Trackers:
    return Trackers(run, Config(recipe="r", trackers=names))


def test_one_line_an_iteration_also_after_a_kill(tmp_path: Path) -> None:
    first = tracked(tmp_path)
    first.log(0, {"heldout_accuracy": 0.5})
    first.log(1, {"train/Loss": 2.0, "bad": float("nan")}, step=40)
    first.log(1, {"train/Loss": 3.0})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"iteration": 2, "heldout_acc')
    again = tracked(tmp_path)
    again.log(1, {"train/Loss": 4.0})
    again.log(2, {"heldout_accuracy": 0.6})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"iteration": 0, "heldout_accuracy": 0.5},
        {"iteration": 1, "step": 40, "train_loss": 2.0},
        {"iteration": 2, "heldout_accuracy": 0.6},
    ]
    assert read_metrics(tmp_path)[1]["train_loss"] == 2.0


def test_tensorboard_files_hold_the_same_numbers(tmp_path: Path) -> None:
    trackers = tracked(tmp_path, "tensorboard", "ray")
    trackers.log(1, {"heldout_accuracy": 0.5})
    trackers.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (point,) = events.Tensors("heldout_accuracy")
    assert (point.step, point.tensor_proto.float_val[0]) == (1, 0.5)


def test_ray_gauges_where_ray_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, list[float]] = {}

    class Gauge:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]):
            self.values = made.setdefault(name, [])

        def set_default_tags(self, tags: dict[str, str]) -> None:
            assert tags == {"run": tmp_path.name}

        def set(self, value: float) -> None:
            self.values.append(value)

    fake = type(sys)("ray")
    fake.is_initialized = lambda: True  # type: ignore[attr-defined]
    metrics = type(sys)("ray.util.metrics")
    metrics.Gauge = Gauge  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setitem(sys.modules, "ray.util", type(sys)("ray.util"))
    monkeypatch.setitem(sys.modules, "ray.util.metrics", metrics)
    trackers = tracked(tmp_path, "ray")
    trackers.log(1, {"train/loss": 2.0})
    trackers.log(2, {"train/loss": 1.0})
    assert made == {"selfloop_iteration": [1.0, 2.0], "selfloop_train_loss": [2.0, 1.0]}


def test_a_tracker_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError) as caught:
        tracked(tmp_path, "wandb")
    assert str(caught.value) == (
        "trackers names wandb, which is not installed. Install it (pip install 'selfloop[wandb]') or drop it"
    )


def test_metric_names() -> None:
    assert metric_name("train/Loss (mean)") == "train_loss_mean"
