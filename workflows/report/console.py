"""What a run prints: a live table on a terminal, else plain single lines that explain themselves.

with Console(iterations=3) as console:
    console.start("self-rewarding", {"model": "pocket", "run folder": "/…/runs/quickstart"})
    console.stage("sample", rows=512, total=1024, tokens_per_s=6900, queued=2)
    console.iteration(1, {"heldout_accuracy": 0.71})
    console.done()
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from rich.console import Console as Terminal
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from selfloop.workflows.report import curve
from selfloop.workflows.report.ticker import SILENCE, Ticker, elapsed

__all__ = ["Console"]

PHRASES = {  # of nodes that are not a verb of the recipe's page
    "train": "the policy learns",
    "heldout": "the exam on held-out prompts",
    "evaluation": "the exam's results are summed up",
}
QUIET = (
    "heldout",
    "evaluation",
)  # the exam is told in one sentence an iteration, its stages only when they take long


@dataclass
class Stage:
    """How far a node is. step, loss, left: of a training, instead of its rows and beside them."""

    rows: int = 0
    total: int | None = None
    tokens_per_s: float | None = None
    queued: int | None = None
    done: bool = False
    printed: float = 0.0
    step: str = ""
    loss: float | None = None
    left: str = ""
    what: str = ""

    def amount(self) -> str:
        if self.step:
            return self.step
        return f"{self.rows:,}" if self.total is None else f"{self.rows:,} of {self.total:,}"


def phrase(node: str, stage: Stage) -> str:
    """What a node does, in words, if they are known."""
    return stage.what or PHRASES.get(node.split("-", 1)[0], "")


class Console:
    """The face of a run. live: a redrawn table (default where the output is a terminal), else lines, no two of them more
    than 15 s apart while it is entered. now: the clock, seconds."""

    def __init__(
        self,
        iterations: int | None = None,
        live: bool | None = None,
        terminal: Terminal | None = None,
        now: Callable[[], float] = time.monotonic,
    ):
        self.terminal = terminal or Terminal(file=sys.stdout, highlight=False, soft_wrap=True)
        self.iterations = iterations
        self.is_live = self.terminal.is_terminal if live is None else live
        self.stages: dict[str, Stage] = {}
        self.history: dict[int, dict[str, Any]] = {}
        self.now = now
        self.started = self.spoken = now()
        self.activity = ""
        self.lock = threading.RLock()
        self.ticker: Ticker | None = None
        self.drawing: Live | None = None
        self.notes: set[str] = set()

    def __enter__(self) -> Self:
        if self.is_live:
            self.drawing = Live(
                console=self.terminal, get_renderable=self.render, refresh_per_second=4, transient=True
            )
            self.drawing.start()
        else:
            self.ticker = Ticker(self.tick)
            self.ticker.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.ticker is not None:
            self.ticker.stop()
            self.ticker = None
        if self.drawing is not None:
            self.drawing.stop()
            self.drawing = None

    def earlier(self, history: Iterable[Mapping[str, Any]]) -> None:
        """The metrics of a run that goes on, so that gains are told from its beginning."""
        self.history = {int(metrics["iteration"]): dict(metrics) for metrics in history}
        if self.history:
            last = max(self.history)
            self.line(f"Going on. So far, {curve.sentence(last, self.history[last], name=self.figure)}")

    @property
    def figure(self) -> str:
        """The metric that is told of every iteration."""
        return curve.figure(self.history.values())

    def line(self, text: str) -> None:
        """Print one line, above the table where there is one."""
        with self.lock:
            self.spoken = self.now()
            self.terminal.print(escape(text))

    @contextmanager
    def doing(self, what: str) -> Generator[None]:
        """Something that no node tells of, and that may take long: said while it lasts."""
        before, self.activity = self.activity, what
        try:
            yield
        finally:
            self.activity = before

    def tick(self) -> None:
        """Say what is going on if nothing has been said for long. Called every second, beside whatever else happens."""
        with self.lock:
            if self.now() - self.spoken < SILENCE:
                return
            running = [(node, stage) for node, stage in self.stages.items() if not stage.done]
            if self.activity or not running:
                self.line(f"[{self.clock()}] {self.activity or f'iteration {self.current()} is at work'} …")
            for node, stage in running if not self.activity else ():
                self.tell(node, stage)

    def tell(self, node: str, stage: Stage) -> None:
        stage.printed = self.now()
        self.line(self.plain(node, stage))

    def note(self, text: str) -> None:
        """Print what is worth knowing, once."""
        if text not in self.notes:
            self.notes.add(text)
            self.line(f"Note: {text}.")

    def start(self, title: str, facts: Mapping[str, object]) -> None:
        """Say what begins: a title and a few `name: value` lines."""
        self.line(title)
        width = max((len(name) for name in facts), default=0)
        for name, value in facts.items():
            self.line(f"  {name:<{width}}  {value}")

    def stage(
        self,
        node: str,
        rows: int,
        total: int | None = None,
        tokens_per_s: float | None = None,
        queued: int | None = None,
        done: bool = False,
        what: str = "",
    ) -> None:
        """How far a node of the running iteration is. what: what it does, in words. Call it as often as you like."""
        with self.lock:
            stage = self.stages.setdefault(node, Stage(printed=self.now()))
            finished_now = (done or (total is not None and rows >= total > 0)) and not stage.done
            stage.rows, stage.total, stage.queued, stage.what = rows, total, queued, what
            stage.step, stage.loss, stage.left = "", None, ""
            stage.tokens_per_s = tokens_per_s or (None if stage.done else stage.tokens_per_s)
            stage.done = stage.done or finished_now
            told = finished_now and not node.startswith(QUIET)
            if self.drawing is None and (told or self.now() - stage.printed >= SILENCE):
                self.tell(node, stage)

    def training(
        self,
        node: str,
        doing: str = "",
        step: int = 0,
        steps: int = 0,
        loss: float | None = None,
        tokens_per_s: float | None = None,
        left_s: float | None = None,
    ) -> None:
        """How far a train node is. doing: what it does before or after its steps."""
        with self.lock:
            stage = self.stages.setdefault(node, Stage(printed=self.now()))
            stage.step = doing or f"step {step:,} of {steps:,}"
            stage.tokens_per_s, stage.loss = tokens_per_s, loss
            stage.left = "" if left_s is None else elapsed(left_s)
            if self.drawing is None and self.now() - stage.printed >= SILENCE:
                self.tell(node, stage)

    def plain(self, node: str, stage: Stage) -> str:
        parts = [f"{node}: {stage.amount()}{'' if stage.step else ' rows'}{' (done)' if stage.done else ''}"]
        parts += [f"loss {stage.loss:.4f}"] if stage.loss is not None else []
        parts += [f"{stage.tokens_per_s:,.0f} tokens/s"] if stage.tokens_per_s else []
        parts += [f"{stage.left} left"] if stage.left else []
        parts += [f"{stage.queued} batches queued"] if stage.queued else []
        parts += [phrase(node, stage)] if phrase(node, stage) else []
        return f"[{self.clock()}] iteration {self.current()} · " + " · ".join(parts)

    def iteration(self, index: int, metrics: Mapping[str, Any], cut: str = "") -> None:
        """An iteration is complete (0: the initial policy was evaluated). cut: what the method does with cut answers."""
        before = self.history.get(max((key for key in self.history if key < index), default=-1))
        self.history[index] = dict(metrics)
        self.stages = {}
        told = curve.sentence(index, metrics, before, self.figure)
        self.line(f"[{self.clock()}] {told}{curve.signal(metrics, cut)}")

    def done(self, folder: object | None = None) -> None:
        """The run is complete: what it brought, and what to do next."""
        name = self.figure
        known = [(index, curve.number(self.history[index], name)) for index in sorted(self.history)]
        known = [(index, value) for index, value in known if value is not None]
        if len(known) > 1:
            (_, first), (last, value) = known[0], known[-1]
            what, unit = ("mean score", "") if name == curve.SCORE else ("accuracy", " points")
            self.line(
                f"Done in {self.clock()}: held-out {what} went from {curve.shown(first, name)} to "
                f"{curve.shown(value, name)} ({curve.gain(value, first, name)}{unit}) in {last} "
                f"iteration{'s' if last != 1 else ''}  {curve.sparkline([entry for _, entry in known])}"
            )
        else:
            self.line(f"Done in {self.clock()}")
        idle = [str(index) for index, metrics in sorted(self.history.items()) if metrics.get("idle")]
        if idle:
            self.line(f"  nothing was trained in iteration{'s' * (len(idle) > 1)} {', '.join(idle)}")
        if folder is not None:
            self.line(f"  look at it:  selfloop show {folder}")
            self.line(f"  talk to it:  selfloop chat {folder}")

    def clock(self) -> str:
        return elapsed(self.now() - self.started)

    def current(self) -> str:
        """The running iteration: the one after the last complete one."""
        number = max(self.history, default=-1) + 1
        return f"{min(number, self.iterations)} of {self.iterations}" if self.iterations else str(number)

    def render(self) -> Group:
        """The live table: stages of the running iteration, then accuracy by iteration."""
        tables: list[Table | Text] = (
            [self.stage_table()] if self.stages else [Text(f"iteration {self.current()}: starting …")]
        )
        tables += [Text(f"{self.activity} …")] if self.activity else []
        tables += [self.history_table()] if self.history else []
        return Group(*tables, Text(f"{self.clock()} since the start"))

    def stage_table(self) -> Table:
        table = Table(box=None, pad_edge=False, title=f"iteration {self.current()}", title_justify="left")
        for name in ("stage", "rows", "tokens/s", "queued", "what happens"):
            table.add_column(name, justify="right" if name in ("rows", "tokens/s", "queued") else "left")
        for node, stage in self.stages.items():
            rate = f"{stage.tokens_per_s:,.0f}" if stage.tokens_per_s else ""
            queued = str(stage.queued) if stage.queued else ""
            style = "dim" if stage.done else ""
            what = [f"loss {stage.loss:.4f}"] if stage.loss is not None else []
            what += [f"{stage.left} left"] if stage.left else []
            what += [phrase(node, stage)] if phrase(node, stage) else []
            table.add_row(escape(node), stage.amount(), rate, queued, " · ".join(what), style=style)
        return table

    def history_table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        figure, order = self.figure, sorted(self.history)
        for name in ("iteration", "score" if figure == curve.SCORE else "accuracy", "greedy", "gain", ""):
            table.add_column(name, justify="right" if name else "left")
        values = [curve.number(self.history[index], figure) for index in order]
        for index, value, bar in zip(
            order, values, curve.sparkline(values) or " " * len(values), strict=True
        ):
            likeliest = curve.number(self.history[index], curve.greedy(figure))
            gain = curve.gain(value, values[0], figure)
            table.add_row(str(index), curve.shown(value, figure), curve.shown(likeliest, figure), gain, bar)
        return table
