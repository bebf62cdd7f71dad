"""Nothing is trained on rows of other weights than the recipe asked for."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from selfloop.workflows.data.schema import COLUMNS
from selfloop.workflows.errors import SelfloopError, TrainerError
from selfloop.workflows.flow.iteration import Iteration
from selfloop.workflows.flow.lint import lint
from selfloop.workflows.flow.provenance import Writer, Writers, refuse_strangers, writers_of
from selfloop.workflows.flow.recipe import Recipe
from selfloop.workflows.flow.stream import Model
from selfloop.workflows.objectives.sft import SFT
from selfloop.workflows.run.setup import Setup
from selfloop.workflows.store.folder import RunFolder
from selfloop.workflows.store.parts import read_table, write_part
from tests.unit.flows import close_shared_actors, fake_config, rows_of, run_on, setup_of

runtimes = pytest.mark.parametrize("runtime", ["local", pytest.param("ray", marks=pytest.mark.real)])
IDS = pa.list_(pa.int32())


@pytest.fixture(scope="module", autouse=True)
def one_cluster() -> Iterator[None]:
    yield
    close_shared_actors()


def one_by_others(row: Any, rng: Any) -> dict[str, Any]:
    """The rows of one prompt say that other weights wrote them."""
    return {"version": 7, "model": "policy@7"} if row["response"] and row["sample"] == 1 else {}


def made_up(row: Any, rng: Any) -> dict[str, Any]:
    return {"response_ids": [5, 6]}


def renamed(row: Any, rng: Any) -> dict[str, Any]:
    return {"node": "elsewhere"}


class Tampered(Recipe):
    change: Any = one_by_others

    def iteration(self, it: Iteration) -> Model:
        answers = it.prompts().sample(it.policy, n=2).map(self.change)
        return it.policy.train(answers, SFT(), reference=None, optimizer="fresh")


class Plain(Recipe):
    def iteration(self, it: Iteration) -> Model:
        answers = it.prompts().sample(it.policy, n=2)
        return it.policy.train(answers, SFT(), reference=None, optimizer="fresh")


class Invented(Recipe):
    def iteration(self, it: Iteration) -> Model:
        answers = it.prompts().map(made_up, adds={"response_ids": IDS, "prompt_ids": IDS})
        return it.policy.train(answers, SFT(), reference=None, optimizer="fresh")


class Ahead(Recipe):
    """Learns from samples of a model that is thrown away, from demonstrations, and from all that was saved."""

    def iteration(self, it: Iteration) -> Model:
        prompts = it.prompts()
        answers = prompts.sample(it.policy)
        ahead = it.policy.train(answers, SFT(), reference=None, optimizer="fresh", role="ahead", name="ahead")
        both = prompts.sample(ahead, name="future").merge(prompts.demonstrate(it.initial)).save("kept")
        old = it.saved("kept", last=2)
        return it.policy.train(both.concat(old) if old else both, SFT(), reference=None, optimizer="fresh")


@runtimes
def test_rows_that_name_other_weights_stop_the_run_before_training(runtime: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(TrainerError) as caught:
        run_on(runtime, fake_config(), run, Tampered())
    first = rows_of(run, 1, "map")[1]
    assert str(caught.value) == (
        "node 'train' was given rows of other weights than the recipe asked for: prompt_id "
        f"{first['prompt_id']!r}, sample 1 says node='sample', model='policy@7', version=7 (24 of 48 rows), and may be only of "
        "policy@0 (version 0) in 'sample'. Nothing was trained. Did a function of the recipe make up rows, or is a part of the run "
        "folder damaged? Mend it, delete the folder of the node that is wrong, and resume the run"
    )
    assert not (run / "iteration=0001" / "policy").exists()
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args


def test_rows_of_a_node_that_is_not_in_the_graph_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        SelfloopError, match=r"says node='elsewhere', model='policy@0', version=0 \(48 of 48 rows\)"
    ):
        run_on("local", fake_config(), tmp_path / "run", Tampered(change=renamed))


def test_a_damaged_part_stops_a_run_that_goes_on(tmp_path: Path) -> None:
    run, config = tmp_path / "run", fake_config()
    run_on("local", config, run, Plain())
    folder = RunFolder(run)
    part = folder.parts(2, "sample")[0]
    table = read_table(part.path)
    versions = [row["version"] if place else 0 for place, row in enumerate(table.to_pylist())]
    changed = table.set_column(table.column_names.index("version"), "version", pa.array(versions, pa.int64()))
    write_part(str(folder.node(2, "sample")), 0, 0, [changed], part.batches)
    manifest = folder.manifest(2)
    del manifest["nodes"]["train"]
    (run / "iteration=0002" / "manifest.json").unlink()
    for name, entry in manifest["nodes"].items():
        folder.commit_node(2, name, entry)
    with pytest.raises(TrainerError, match=r"model='policy@1', version=0 \(1 of \d+ rows\)"):
        run_on("local", config, run, Plain())


@runtimes
def test_models_of_the_iteration_demonstrations_and_saved_rows_are_let_through(
    runtime: str, tmp_path: Path
) -> None:
    run_on(runtime, fake_config(iterations=3), tmp_path / "run", Ahead())
    planner = setup_of(fake_config(iterations=3), Ahead()).planner
    (last,) = planner.graph(3).nodes["train"].inputs
    assert writers_of(planner.graph(3), last, planner.graph) == {
        writer for index in (1, 2, 3)
        for writer in (Writer("future", f"ahead@{index}#ahead", index), Writer("demonstrate", "prompts", None))
    }  # fmt: skip
    kept = rows_of(tmp_path / "run", 3, last)
    assert {row["version"] for row in kept} == {1, 2, 3, None} and len(kept) == 3 * 2 * 24


def test_pairs_are_known_by_both_sides() -> None:
    planner = Setup(fake_config("spin", iterations=3)).planner
    writers = Writers("train", writers_of(planner.graph(3), "concat", planner.graph))
    assert {writer.version for writer in writers.allowed} == {None, 1, 2}
    row = {
        "prompt_id": "p",
        "sample": 0,
        "model": "prompts",
        "version": None,
        "chosen_version": None,
        "rejected_version": 1,
    }
    refuse_strangers(table_of([row, {**row, "rejected_version": 2}]), writers)
    for wrong in ({"rejected_version": 0}, {"chosen_version": 3}, {"model": "other"}, {"version": 1}):
        with pytest.raises(TrainerError, match=r"prompt_id 'p', sample 0 says .* \(1 of 2 rows\)"):
            refuse_strangers(table_of([row, {**row, **wrong}]), writers)


def test_failed_rows_are_not_learned_from_and_not_asked() -> None:
    writers = Writers("train", frozenset({Writer("sample", "policy@0", 0)}))
    good = {
        "prompt_id": "p",
        "sample": 0,
        "node": "sample",
        "model": "policy@0",
        "version": 0,
        "status": "ok",
    }
    failed = {**dict.fromkeys(good), "prompt_id": "q", "status": "failed"}
    refuse_strangers(table_of([good, failed]), writers)
    refuse_strangers(table_of([failed]), writers)
    refuse_strangers(pa.table({}), writers)
    with pytest.raises(TrainerError, match="says node=None, model=None, version=None"):
        refuse_strangers(table_of([good, {**failed, "status": "ok"}]), writers)
    with pytest.raises(TrainerError, match="do not say which weights wrote them"):
        refuse_strangers(table_of([good]).select(["prompt_id", "sample", "status"]), writers)


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=pa.schema([(name, COLUMNS[name][0]) for name in rows[0]]))


def test_responses_that_no_node_made_are_found_before_the_run() -> None:
    assert lint(setup_of(fake_config(), Invented()).planner) == [
        "node 'train': no node before 'map' makes responses, so nothing says which weights wrote them. "
        "Make them by sample, demonstrate or play, or read saved ones"
    ]
    assert lint(setup_of(fake_config(), Tampered()).planner) == []
