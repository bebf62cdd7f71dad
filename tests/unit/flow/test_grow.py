"""The verb grow: rounds until enough is kept, disjoint slices, one ordered pool, both runtimes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from selfloop.workflows.errors import RecipeError
from selfloop.workflows.flow.iteration import Iteration
from selfloop.workflows.flow.lint import lint
from selfloop.workflows.flow.recipe import Recipe
from selfloop.workflows.flow.stream import Model, Stream
from selfloop.workflows.objectives.sft import SFT
from selfloop.workflows.report.console import Console
from selfloop.workflows.report.graph import describe
from selfloop.workflows.run.loop import loop
from selfloop.workflows.store.folder import RunFolder
from selfloop.workflows.store.parts import read_table, row_hash
from tests.unit.flows import close_shared_actors, fake_config, rows_of, run_on, runtime_of, setup_of

RUNTIMES = ["local", pytest.param("ray", marks=pytest.mark.real)]


@pytest.fixture(scope="module", autouse=True)
def one_cluster() -> Iterator[None]:
    yield
    close_shared_actors()


def some_even(rows: list[Any], rng: Any) -> list[Any]:
    """Keeps about half of the prompts, by what was sampled."""
    return rows if len(rows[0]["response_ids"]) % 2 else []


class Grown(Recipe):
    until: int = 10
    rounds: int = 4

    def iteration(self, it: Iteration) -> Model:
        pool = it.grow(self.attempt, until=self.until, rounds=self.rounds)
        return it.policy.train(pool, SFT(), reference=None, optimizer="fresh")

    def attempt(self, it: Iteration) -> Stream:
        return it.prompts().sample(it.policy, n=2).keep(some_even)


def config(**more: Any) -> Any:
    prompts = {"heldout": 8, "per_iteration": 8, "options": {"size": 70}}
    return fake_config(**{"prompts": prompts, **more})


def ids(path: Path, iteration: int, node: str) -> list[str]:
    return list(dict.fromkeys(row["prompt_id"] for row in rows_of(path, iteration, node)))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_rounds_go_on_until_enough_is_kept(runtime: str, tmp_path: Path) -> None:
    metrics = run_on(runtime, config(), tmp_path, Grown())
    for iteration in (1, 2):
        rounds = [ids(tmp_path, iteration, f"grow/round-{k}/sample") for k in (1, 2, 3, 4)]
        kept = [ids(tmp_path, iteration, f"grow/round-{k}/keep") for k in (1, 2, 3, 4)]
        needed = next(k for k in range(1, 5) if sum(map(len, kept[:k])) >= 10)
        assert [len(names) for names in rounds] == [8] * needed + [0] * (4 - needed) and 1 < needed < 4
        every = [name for names in rounds for name in names]
        assert len(every) == len(set(every)) == 8 * needed
        expected = [name for names in kept for name in names][:10]
        assert ids(tmp_path, iteration, "grow/pool") == expected and len(expected) == 10
    assert metrics[1]["grow_pool_rows"] == 20


def test_slices_of_iterations_are_disjoint(tmp_path: Path) -> None:
    run_on("local", config(), tmp_path, Grown())
    seen = [
        name
        for k in (1, 2)
        for node in ("grow/round-1/sample", "grow/round-2/sample")
        for name in ids(tmp_path, k, node)
    ]
    assert len(seen) == len(set(seen)) == 32


def test_rows_do_not_depend_on_batches(tmp_path: Path) -> None:
    hashes = set()
    for size in (3, 64):
        run_on("local", config(batch_size=size), tmp_path / str(size), Grown())
        folder = RunFolder(tmp_path / str(size))
        hashes.add(row_hash([read_table(part.path) for part in folder.parts(2, "grow/pool")]))
    assert len(hashes) == 1


def test_enough_in_the_first_round_leaves_the_others_empty(tmp_path: Path) -> None:
    run_on("local", config(), tmp_path, Grown(until=1))
    assert len(ids(tmp_path, 1, "grow/pool")) == 1 and rows_of(tmp_path, 1, "grow/round-2/keep") == []


def test_too_few_rounds_give_what_there_is(tmp_path: Path) -> None:
    run_on("local", config(), tmp_path, Grown(until=500, rounds=2))
    assert 0 < len(ids(tmp_path, 1, "grow/pool")) < 16


def write_tasks(row: Any, rng: Any) -> list[dict[str, Any]]:
    return [{"prompt": [{"role": "user", "content": f"count {rng.randrange(4)} in 1 2"}]} for _ in range(3)]


def new_text(rows: list[Any], pool: list[Any]) -> bool:
    return all(rows[0]["prompt"] != other["prompt"] for other in pool)


class TaskPool(Recipe):
    """New tasks, no two alike; a round sees those of the rounds before."""

    def iteration(self, it: Iteration) -> Model:
        tasks = it.grow(self.write, until=4, rounds=3, accept=new_text, name="tasks")
        return it.policy.train(tasks.sample(it.policy), SFT(), reference=None, optimizer="fresh")

    def write(self, it: Iteration) -> Stream:
        prompts = it.prompts()
        assert (it.pool is None) == (it.round.number == 0)
        return prompts.map(write_tasks) if it.pool is None else prompts.map(write_after, beside=it.pool)


def write_after(row: Any, pool: list[Any], rng: Any) -> list[dict[str, Any]]:
    assert pool
    return write_tasks(row, rng)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_pool_depends_on_what_it_holds(runtime: str, tmp_path: Path) -> None:
    prompts = {"heldout": 8, "per_iteration": 1, "options": {"size": 40}}
    run_on(runtime, config(prompts=prompts), tmp_path, TaskPool())
    texts = [row["prompt"][0]["content"] for row in rows_of(tmp_path, 1, "tasks/pool")]
    assert len(texts) == len(set(texts)) > 2
    assert len(rows_of(tmp_path, 1, "tasks/round-2/map")) == 3


def bad_accept(rows: list[Any], pool: list[Any]) -> bool:
    raise KeyError("what")


class BadAccept(Grown):
    def iteration(self, it: Iteration) -> Model:
        pool = it.grow(self.attempt, until=2, rounds=2, accept=bad_accept)
        return it.policy.train(pool, SFT(), reference=None, optimizer="fresh")


def test_an_accept_that_raises_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="node 'grow/round-1/pool': bad_accept raised KeyError"):
        run_on("local", config(), tmp_path, BadAccept())


def test_lint_and_description_know_the_rounds() -> None:
    setup = setup_of(config(), Grown())
    assert lint(setup.planner) == []
    graph = setup.planner.graph(1)
    assert graph.nodes["grow/round-2/gate"].inputs == ("grow/round-2/prompts", "grow/round-1/pool")
    assert graph.nodes["grow/round-3/pool"].inputs == (
        "grow/round-3/keep",
        "grow/round-1/pool",
        "grow/round-2/pool",
    )
    assert "flowchart" in describe(config())


def test_a_run_killed_between_rounds_goes_on(tmp_path: Path) -> None:
    """What is committed is taken over: the rest of the rounds give the same rows as an undisturbed run."""
    run_on("local", config(), tmp_path / "whole", Grown())
    setup = setup_of(config(), Grown())
    folder = RunFolder(tmp_path / "killed")
    folder.open(config().model_dump(mode="json"))
    with runtime_of("local", setup, folder) as (runtime, job):
        commit = job.folder.commit_node

        def dying(index: int, name: str, entry: dict[str, Any]) -> None:
            commit(index, name, entry)
            if name == "grow/round-1/pool":
                raise KeyboardInterrupt

        job.folder.commit_node = dying  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            loop(setup, folder, runtime, job, Console(live=False))
    folder.close()
    run_on("local", config(), tmp_path / "killed", Grown())
    whole, killed = (rows_of(tmp_path / name, 2, "grow/pool") for name in ("whole", "killed"))
    assert pa.Table.from_pylist(whole).equals(pa.Table.from_pylist(killed)) and whole
