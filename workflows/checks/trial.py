"""A trial of the code that a graph runs: rules, functions and judges on the run's own first prompts, before anything starts.

Responses are gold answers, right and exchanged in turn, so that groups have something to choose from. Nothing is
sampled or trained: a node behind a training, or behind rows of an earlier iteration, is left out, and where a model
judges, its prompts are written and the verdicts drawn. Rows come from the run's data, code from the user: both
run in a process of their own, with a deadline.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from selfloop.workflows.data.rows import groups, with_column
from selfloop.workflows.data.seeds import derive_seed
from selfloop.workflows.errors import SelfloopError, blamed
from selfloop.workflows.flow.graph import Graph, Node
from selfloop.workflows.flow.verbs.base import Context, Op
from selfloop.workflows.flow.verbs.judge import JudgeOp
from selfloop.workflows.flow.verbs.source import Source
from selfloop.workflows.judges.base import Judge, Verifier
from selfloop.workflows.judges.verifiers import FunctionVerifier, resolve
from selfloop.workflows.run.setup import Setup

__all__ = ["Tried", "try_code", "try_graph"]

PROMPTS = 4  # groups: enough that group statistics and merges have something to do
SECONDS = 10.0
MISTAKES = (AttributeError, ImportError, KeyError, NameError, TypeError)
"""What code raises whatever its rows: the run would stop too. Other errors may come of the trial's invented responses."""


@dataclass
class Tried:
    """problems: the run would stop there. notes: what the trial could not tell. node: the one it is at."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    node: str = ""


def try_code(setup: Setup, seconds: float = SECONDS) -> Tried:
    """Try the user's own code of the first iteration's graph; nothing where all code comes with Selfloop."""
    graph = setup.planner.graph(1)
    own = [one for one in code_of(setup, graph) if is_own(one)]
    if not own or any(getattr(one, "trial", True) is False for one in own):
        return Tried()
    here, there = multiprocessing.Pipe(duplex=False)
    # A fork has the modules and the rows already; Ray, torch and their threads are not there yet.
    process = multiprocessing.get_context("fork").Process(target=run_trial, args=(setup, there), daemon=True)
    process.start()
    there.close()
    tried, end = Tried(), time.monotonic() + seconds
    try:
        while here.poll(max(0.0, end - time.monotonic())):
            tried = here.recv()
            if not tried.node:
                return tried
        why = f"was stopped after {seconds:.0f} s"
    except EOFError:
        why = "ended without a word"
    finally:
        process.kill()
        process.join()
    tried.notes.append(
        f"the trial of your code {why} in node {tried.node!r}, so nothing behind it was tried. Code that costs "
        "money or time can say trial = False on its class (or function), and is not tried then"
    )
    return tried


def run_trial(setup: Setup, there: Any) -> None:
    """The trial in its own process: each node is named before it runs. What the code prints is not for the screen."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    for tried in try_graph(setup):
        there.send(tried)


def try_graph(setup: Setup) -> Iterator[Tried]:
    """Run what can be run of the first iteration's graph on a few rows; the last one that it gives has no node."""
    tried, tables = Tried(), dict[str, pa.Table]()
    replies = Replies()
    for node in setup.planner.graph(1):
        if isinstance(node.op, Source):
            if node.op.source in setup.sources:
                rows = setup.sources[node.op.source].slice(0, PROMPTS)
                replies.learn(rows)
                tables[node.name] = rows.select([name for name in rows.column_names if name in node.op.has])
        elif node.op is not None and not node.given and all(name in tables for name in node.inputs):
            tried.node = node.name
            yield tried
            table = Attempt(node, node.op, setup, replies, tried).run([tables[name] for name in node.inputs])
            if table is not None:
                tables[node.name] = table
    tried.node = ""
    yield tried


@dataclass
class Attempt:
    """One node, tried."""

    node: Node
    op: Op
    setup: Setup
    replies: Replies
    tried: Tried

    def run(self, tables: list[pa.Table]) -> pa.Table | None:
        """Its rows, or None where it has none to go on with; what went wrong is noted."""
        context = Context(self.node.name, 1, self.setup.config.seed, pauses=(0.0,))
        if self.node.model is not None:
            context.model, context.version = self.node.model.label, self.node.model.version
        context.engine, context.codec, context.scorer = self.replies, Letters(), Zeros()  # type: ignore[assignment]
        try:
            table = asyncio.run(self.op.run(tables, context))
        except Exception as error:  # the user's code: it may raise anything
            self.note(error)
            return None
        if isinstance(self.op, JudgeOp):
            return self.verdicts(self.op, table)
        return self.played(table) if self.op.responds else table

    def note(self, error: Exception) -> None:
        cause = error.__cause__ if isinstance(error, SelfloopError) and error.__cause__ else error
        sure = isinstance(cause, MISTAKES) or (error is cause and isinstance(error, SelfloopError))
        said = f"{error}" if isinstance(error, SelfloopError) else f"{type(error).__name__}: {error}"
        said = said.partition(" on prompt ")[0] if error is not cause else said
        start = "" if said.startswith("node ") else f"node {self.node.name!r}: "
        text = f"{start}{said}{blamed(cause)}, when it was tried on the first {PROMPTS} prompts with gold answers as responses"
        if sure:
            self.tried.problems.append(f"{text}. Mend it")
        else:
            self.tried.notes.append(text)

    def verdicts(self, op: JudgeOp, table: pa.Table) -> pa.Table:
        """Says why verdicts failed; gives drawn scores where a model would have judged."""
        column, by_rule = op.column, op.place != "engine"
        states: list[str] = table[f"{column}_state"].to_pylist()
        failed = [place for place, state in enumerate(states) if state == "failed"]
        if failed and by_rule:
            words = table[f"{column}_judgements"][failed[0]].as_py()
            why = f"{words[0]['text'] if words else ''}{self.place(op.judge, table)}"
            self.judged(why, len(failed), len(states))
        if by_rule:
            return table
        draw = random.Random(derive_seed(self.setup.config.seed, "trial", self.node.name))
        table = with_column(
            table, column, pa.array([float(draw.randint(0, 5)) for _ in states], pa.float64())
        )
        return with_column(table, f"{column}_state", pa.array(["score"] * len(states), pa.string()))

    def judged(self, why: str, failed: int, rows: int) -> None:
        """Say once what a judge raises: it judges held-out prompts too."""
        into = self.tried.problems if failed == rows else self.tried.notes
        if not any(text.endswith(why) for text in into):
            into.append(
                f"node {self.node.name!r}: the judge failed on {failed} of {rows} responses, when it was tried on the first "
                f"{PROMPTS} prompts with gold answers as responses: {why}"
            )

    @staticmethod
    def place(judge: Judge, table: pa.Table) -> str:
        """File and line at which a verifier raises."""
        if not isinstance(judge, Verifier):
            return ""
        for _, rows in groups(table):
            for row in rows:
                try:
                    judge.verify(row)
                except Exception as error:  # as above
                    return blamed(error)
        return ""

    def played(self, table: pa.Table) -> pa.Table:
        """A program that raises one of MISTAKES on every prompt is broken."""
        errors = [str(text) for text in table["error"].to_pylist()] if "error" in table.column_names else []
        broken = [text for text in errors if any(f" raised {kind.__name__}: " in text for kind in MISTAKES)]
        if broken and len(broken) == table.num_rows:
            self.tried.problems.append(
                f"node {self.node.name!r}: {broken[0]}, on each of the first {PROMPTS} prompts. Mend it"
            )
        return table


class Letters:
    """A codec of characters: no tokenizer has to be loaded, and every text comes back as it was."""

    hash = "trial"
    eos_token_id = 0
    ends = frozenset({0})

    @property
    def tokenizer(self) -> Letters:
        return self

    def encode(self, text: Any, **_: Any) -> list[int]:
        """Characters of a text, or of messages."""
        parts = [text] if isinstance(text, str) else [f"{one['role']}:{one['content']}" for one in text]
        return [ord(letter) for part in parts for letter in part]

    def encode_response(self, text: str, ended: bool = True) -> list[int]:
        return [*self.encode(text), self.eos_token_id] if ended else self.encode(text)

    def text(self, text: str) -> list[int]:
        return self.encode(text)

    def without_end(self, text: str) -> str:
        return text

    def token(self, label: str) -> int:
        return ord(label[:1] or " ")

    def decode(self, responses: Sequence[Sequence[int]]) -> list[str]:
        return ["".join(chr(letter) for letter in ids if letter != self.eos_token_id) for ids in responses]


class Replies:
    """An engine that says gold answers: a prompt's own for even seeds, another one's for odd, the first to other asks."""

    version = 0

    def __init__(self) -> None:
        self.answers: dict[tuple[int, ...], str] = {}

    def learn(self, rows: pa.Table) -> None:
        prompts, answers = rows["prompt"].to_pylist(), rows["answer"].to_pylist()
        for messages, answer in zip(prompts, answers, strict=True):
            self.answers[tuple(Letters().encode(messages))] = answer or messages[-1]["content"]

    async def sample(self, asks: Sequence[Any]) -> list[Any]:
        from selfloop.workflows.flow.asks import Reply

        known = list(self.answers.values())
        made = list[Any]()
        for ask in asks:
            own = self.answers.get(tuple(ask.prompt_ids), known[0])
            text = own if ask.seed % 2 == 0 else known[(known.index(own) + 1) % len(known)]
            ids = Letters().encode_response(text)[: ask.params.max_tokens]
            made.append(Reply(ids, [0.0] * len(ids)))
        return made

    async def logprobs(self, contexts: Sequence[Any], targets: Sequence[Sequence[int]]) -> list[list[float]]:
        return [[0.0] * len(ids) for ids in targets]

    async def label_logprobs(self, prompts: Sequence[Any], labels: Sequence[int]) -> list[list[float]]:
        return [[-1.0] * len(labels) for _ in prompts]


class Zeros:
    """A trainer that measures nothing."""

    async def measure(
        self, what: str, folder: str, contexts: Any, targets: list[list[int]], groups: Any
    ) -> list[Any]:
        return [0.0 if what == "rewards" else [0.0] * len(ids) for ids in targets]


def code_of(setup: Setup, graph: Graph) -> Iterator[Any]:
    """Everything of a graph that runs code: the recipe, and what its verbs were given."""
    yield setup.recipe
    for node in graph:
        for part in fields(node.op) if node.op is not None else ():
            value = getattr(node.op, part.name)
            if isinstance(value, FunctionVerifier):
                yield resolve(value.path)
            elif callable(value) or isinstance(value, BaseModel):
                yield getattr(value, "__self__", value)


def is_own(thing: Any) -> bool:
    """Whether it comes from the user, not with Selfloop."""
    module = getattr(thing, "__module__", type(thing).__module__)
    return str(module).partition(".")[0] != __name__.partition(".")[0]
