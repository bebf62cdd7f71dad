"""A verb of one class and one method: lint, provenance, local runtime, screen, `why` and the picture take it as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

import pyarrow as pa
import pytest

from selfloop.workflows.data.rows import with_column
from selfloop.workflows.flow.iteration import Iteration
from selfloop.workflows.flow.lint import lint
from selfloop.workflows.flow.recipe import Recipe
from selfloop.workflows.flow.stream import Model, Stream
from selfloop.workflows.flow.telling import Told
from selfloop.workflows.flow.verbs.base import Context, Op
from selfloop.workflows.objectives.sft import SFT
from selfloop.workflows.report.graph import estimate, line, mermaid
from selfloop.workflows.report.why import explain
from selfloop.workflows.report.why.past import Past
from selfloop.workflows.store.folder import RunFolder
from tests.unit.flows import fake_config, rows_of, run_on, setup_of


@dataclass(frozen=True)
class Shout(Op):
    """Each answer `times` over, louder. With a second stream, how many rows that has."""

    verb: ClassVar[str] = "shout"
    phrase: ClassVar[str] = "answers are shouted"
    times: int = 2

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"response"})

    @property
    def writes(self) -> frozenset[str]:
        return frozenset({"loud", "heard"})

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        rows, *beside = tables
        loud = [row for text in rows["response"].to_pylist() for row in [f"{text}!".upper()] * self.times]
        many = rows.take(
            pa.array([row for row in range(rows.num_rows) for _ in range(self.times)], pa.int64())
        )
        heard = [sum(table.num_rows for table in beside)] * many.num_rows
        return with_column(with_column(many, "loud", pa.array(loud)), "heard", pa.array(heard))

    def rows(self, n: int, groups: int) -> int:
        return n * self.times

    def tell(self, told: Told) -> Iterator[str]:
        yield f"shouted {self.times} times, {len(told.before)} rows became {len(told.rows)}"


@dataclass(frozen=True)
class Echo(Op):
    """The model's answer as one of its own making: who wrote it says the op."""

    verb: ClassVar[str] = "echo"
    responds: ClassVar[bool] = True

    def author(self, model: str, version: int | None) -> tuple[str, int | None]:
        return "echo", None

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        rows = tables[0]
        rows = with_column(rows, "model", pa.array(["echo"] * rows.num_rows))
        rows = with_column(rows, "node", pa.array([context.node] * rows.num_rows))
        return with_column(rows, "version", pa.nulls(rows.num_rows, pa.int64()))


class Loud(Stream):
    """A stream with the new verbs."""

    def shout(self, times: int = 2, beside: Stream | None = None) -> Loud:
        return cast(Loud, self.add(Shout(times), *([beside] if beside else [])))

    def echo(self) -> Loud:
        return cast(Loud, self.add(Echo()))


def loud(stream: Stream) -> Loud:
    return Loud(stream.builder, stream.node)


class Shouted(Recipe):
    def iteration(self, it: Iteration) -> Model:
        prompts = it.prompts()
        shouted = loud(prompts.sample(it.policy, n=2)).shout(beside=prompts)
        return it.policy.train(shouted.add(Echo()), SFT(), reference=None, optimizer="fresh")


class Early(Recipe):
    def iteration(self, it: Iteration) -> Model:
        return it.policy.train(loud(it.prompts()).shout(), SFT(), reference=None, optimizer="fresh")


def test_the_lint_knows_what_a_new_verb_reads() -> None:
    assert lint(setup_of(fake_config(), Shouted()).planner) == []
    found = lint(setup_of(fake_config(), Early()).planner)
    assert any(
        text.startswith("node 'shout' reads response, and 'prompts' before it has only") for text in found
    )


def test_a_new_verb_runs_is_told_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup = setup_of(fake_config(), Shouted())
    run_on(
        "local", setup.config, tmp_path, Shouted()
    )  # it trains on the rows of echo, whose author is none of the models
    said = capsys.readouterr().out
    assert "shout: 96 of 96 rows (done) · answers are shouted" in said
    assert "echo: 96 of 96 rows (done)\n" in said
    rows = rows_of(tmp_path, 1, "shout")
    assert all(row["loud"] == f"{row['response']}!".upper() and row["heard"] == 24 for row in rows)

    told = " ".join(explain(Past(RunFolder(tmp_path), setup), f"{rows[0]['prompt_id']}@1", 200).split())
    assert "shout shouted 2 times, 2 rows became 4" in told
    assert "sample 0: heard = 24" in told
    assert (
        "echo echo sample 0:" in told
    )  # it tells nothing: its name says what it did, and its responses are shown

    graph = setup.planner.graph(1)
    number = list(graph.nodes).index("shout")
    assert f'n{number}["shout"]' in mermaid(graph)
    drawn = line(graph, graph.nodes["shout"], estimate(graph, setup))
    assert drawn == "  shout <- sample, prompts  [worker]  about 96 rows  + heard, loud"
