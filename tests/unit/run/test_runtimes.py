"""One suite for both runtimes: what a graph means must not depend on where it runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from selfloop.workflows.errors import FailedRowsError, NoSignalError, SelfloopError, StoreError
from selfloop.workflows.flow.iteration import Iteration
from selfloop.workflows.flow.recipe import Recipe
from selfloop.workflows.flow.stream import Model
from selfloop.workflows.judges.base import Verifier
from selfloop.workflows.objectives.dpo import DPO
from selfloop.workflows.objectives.sft import SFT
from selfloop.workflows.run.job import make_job
from selfloop.workflows.store.folder import RunFolder, write_json
from selfloop.workflows.store.parts import read_table, row_hash
from tests.unit.flows import close_shared_actors, fake_config, rows_of, run_on, setup_of

RUNTIMES = ["local", pytest.param("ray", marks=pytest.mark.real)]
runtimes = pytest.mark.parametrize("runtime", RUNTIMES)


@pytest.fixture(scope="module", autouse=True)
def one_cluster() -> Iterator[None]:
    yield
    close_shared_actors()


class Length(Verifier):
    """Longer is better; a length of 3 breaks it, a length of 4 it cannot judge."""

    reads = ("prompt", "response_ids")

    def verify(self, row: Any) -> float | None:
        if len(row["response_ids"]) == 3:
            raise ValueError("three")
        return None if len(row["response_ids"]) == 4 else float(len(row["response_ids"]))


def long_against_short(rows: list[Any], rng: Any) -> list[tuple[Any, Any]]:
    rows = [row for row in rows if row["score_state"] == "score"]
    best, worst = (
        max(rows, key=lambda row: row["score"], default=None),
        min(rows, key=lambda row: row["score"], default=None),
    )
    return [(best, worst)] if best is not None and best["score"] > worst["score"] else []


def keep_none(rows: list[Any], rng: Any) -> list[Any]:
    return []


def keep_random(rows: list[Any], rng: Any) -> list[Any]:
    return rng.sample(rows, 2)


def shout(row: Any, rng: Any) -> dict[str, Any] | None:
    return {"prompt": [{"role": "user", "content": row["prompt"][0]["content"].upper()}]}


def first_half(table: pa.Table, rng: Any) -> pa.Table:
    return table.slice(0, table.num_rows // 2)


class Plain(Recipe):
    def iteration(self, it: Iteration) -> Model:
        pairs = it.prompts().sample(it.policy, n=4).judge(Length()).pair(long_against_short)
        return it.policy.train(pairs, DPO(), reference=it.policy, optimizer="fresh")


class Wide(Recipe):
    """Two models in one iteration, a merge, a concat, a map, a gather, a saved stream, a model that is thrown away."""

    def iteration(self, it: Iteration) -> Model:
        prompts = it.prompts()
        both = prompts.sample(it.policy, n=2).merge(prompts.sample(it.initial, n=2, name="from-initial"))
        loud = prompts.map(shout, reads=("prompt",)).sample(it.policy, n=1, name="loud")
        rows = both.keep(keep_random).concat(loud).gather(first_half)
        ahead = it.policy.train(rows, SFT(), reference=None, optimizer="fresh", name="ahead")
        checked = prompts.sample(ahead, n=2, name="from-ahead").judge(Length()).pair(long_against_short)
        kept = it.saved("pairs", default=None)
        checked.save("pairs")
        learned = checked if kept is None else checked.concat(kept, name="with-earlier")
        return it.policy.train(learned, DPO(), reference=it.policy, optimizer="fresh")


class Waiting(Recipe):
    """Nodes that wait for rows of a model that is not served yet, beside others that could go on."""

    def iteration(self, it: Iteration) -> Model:
        prompts = it.prompts()
        mine, first = prompts.sample(it.policy, n=1), prompts.sample(it.initial, n=1, name="from-initial")
        both = mine.merge(first)
        few = both.map(beside_half, beside=mine.gather(first_half), reads=("prompt_id",))
        other = few.map(beside_half, beside=first, reads=("prompt_id",), name="beside-initial")
        return it.policy.train(other, SFT(), reference=None, optimizer="fresh")


def beside_half(row: Any, rng: Any, others: Any) -> dict[str, Any]:
    return {}


class Stopping(Recipe):
    def iteration(self, it: Iteration) -> Model:
        return it.policy.train(it.prompts().sample(it.policy, n=1), SFT(), reference=None, optimizer="fresh")

    def stop(self, metrics: Any) -> bool:
        return metrics[-1]["iteration"] >= 1


class Empty(Recipe):
    def iteration(self, it: Iteration) -> Model:
        kept = it.prompts().sample(it.policy, n=1).keep(keep_none)
        return it.policy.train(kept, SFT(), reference=None, optimizer="fresh")


@runtimes
def test_a_run_commits_every_node_and_evaluates_every_iteration(runtime: str, tmp_path: Path) -> None:
    metrics = run_on(runtime, fake_config(), tmp_path / "run", Plain())
    assert [line["iteration"] for line in metrics] == [0, 1, 2]
    assert all("heldout_accuracy" in line for line in metrics)
    manifest = RunFolder(tmp_path / "run").manifest(1)
    assert manifest["complete"] and manifest["roles"]["policy"]["folder"].endswith("policy")
    assert manifest["nodes"]["sample"]["rows"] == 24 * 4
    samples = rows_of(tmp_path / "run", 1, "sample")
    assert [row["sample"] for row in samples[:5]] == [0, 1, 2, 3, 0]
    assert {row["model"] for row in samples} == {"policy@0"} and {row["version"] for row in samples} == {0}
    assert {row["model"] for row in rows_of(tmp_path / "run", 2, "sample")} == {"policy@1"}


@runtimes
def test_verdicts_have_three_states_and_only_scores_are_learned_from(runtime: str, tmp_path: Path) -> None:
    metrics = run_on(runtime, fake_config(iterations=1), tmp_path / "run", Plain())
    rows = rows_of(tmp_path / "run", 1, "judge")
    for row in rows:
        expected = {3: "failed", 4: "abstain"}.get(len(row["response_ids"]), "score")
        assert row["score_state"] == expected and (row["score"] is None) == (expected != "score")
    assert {row["score_state"] for row in rows} == {"score", "abstain", "failed"}
    assert metrics[1]["judge_score_state_failed"] == sum(row["score_state"] == "failed" for row in rows)
    assert all(row["chosen_score"] > row["rejected_score"] for row in rows_of(tmp_path / "run", 1, "pair"))


@runtimes
def test_every_verb_and_several_models_in_one_iteration(runtime: str, tmp_path: Path) -> None:
    run_on(runtime, fake_config(), tmp_path / "run", Wide())
    merged = rows_of(tmp_path / "run", 2, "merge")
    assert [row["sample"] for row in merged[:4]] == [0, 1, 2, 3]
    assert [row["model"] for row in merged[:4]] == ["policy@1", "policy@1", "policy@0", "policy@0"]
    loud = rows_of(tmp_path / "run", 1, "loud")
    assert all(row["prompt"][0]["content"].isupper() and row["parent"] for row in loud)
    assert len(rows_of(tmp_path / "run", 1, "concat")) == 24 * 2 + 24
    assert len(rows_of(tmp_path / "run", 1, "gather")) == 36
    assert {row["model"] for row in rows_of(tmp_path / "run", 1, "from-ahead")} == {"policy@1#ahead"}
    new, both = rows_of(tmp_path / "run", 2, "pairs"), rows_of(tmp_path / "run", 2, "with-earlier")
    assert both == new + rows_of(tmp_path / "run", 1, "pairs")


@runtimes
def test_rows_do_not_depend_on_the_batch_size(runtime: str, tmp_path: Path) -> None:
    hashes = set()
    for size in (5, 64):
        run_on(runtime, fake_config(batch_size=size, iterations=1), tmp_path / str(size), Wide())
        folder = RunFolder(tmp_path / str(size))
        hashes.add(row_hash([read_table(part.path) for part in folder.parts(1, "pairs")]))
    assert len(hashes) == 1


@runtimes
def test_nothing_to_train_on_stops_the_run(runtime: str, tmp_path: Path) -> None:
    with pytest.raises(NoSignalError, match="nothing to train on in iterations 1 and 2"):
        run_on(runtime, fake_config(iterations=4), tmp_path / "run", Empty())
    assert RunFolder(tmp_path / "run").completed() == 2


class Weightless(Recipe):
    """Rows of weight 0 in iteration 2; of the model that it makes the iteration also samples."""

    def iteration(self, it: Iteration) -> Model:
        rows = it.prompts().sample(it.policy, n=2).score(Weight(it.index != 2), column="weight")
        made = it.policy.train(rows, SFT(), reference=None, optimizer="continued")
        it.prompts(name="again").sample(made, n=1, name="from-made").save("after")
        return made


@dataclass(frozen=True)
class Weight:
    value: float

    def __call__(self, rows: Any, rng: Any) -> list[float]:
        return [float(self.value)] * len(rows)


@runtimes
def test_an_iteration_of_zero_weights_is_not_trained_on_and_its_model_is_served(
    runtime: str, tmp_path: Path
) -> None:
    metrics = run_on(runtime, fake_config(iterations=3), tmp_path / "run", Weightless())
    folder = RunFolder(tmp_path / "run")
    manifests = [folder.manifest(index) for index in (1, 2, 3)]
    assert [bool(one["nodes"]["train"].get("idle")) for one in manifests] == [False, True, False]
    assert manifests[1]["roles"] == manifests[0]["roles"] != manifests[2]["roles"]
    assert {(row["model"], row["version"]) for row in rows_of(tmp_path / "run", 2, "after")} == {
        ("policy@2#train", 2)
    }
    assert [line.get("no_signal_share") for line in metrics] == [None, 0.0, 1.0, 0.0]


@runtimes
def test_failed_rows_are_data_until_there_are_too_many(runtime: str, tmp_path: Path) -> None:
    blocked = {"engine": "fake", "max_tokens": 32, "options": {"fail_on": {"ids": [1], "how": "error"}}}
    with pytest.raises(FailedRowsError, match="max_failed_rows"):
        run_on(runtime, fake_config(generator=blocked, max_failed_rows=0.01), tmp_path / "run", Plain())


@runtimes
def test_a_judge_that_breaks_too_often_stops_the_run(runtime: str, tmp_path: Path) -> None:
    with pytest.raises(FailedRowsError, match=r"verdicts \(score\) failed"):
        run_on(runtime, fake_config(max_failed_rows=0.01), tmp_path / "run", Plain())


@runtimes
def test_a_broken_rule_is_one_clear_error(runtime: str, tmp_path: Path) -> None:
    with pytest.raises(SelfloopError, match="keep"):
        run_on(runtime, fake_config(iterations=1), tmp_path / "run", Broken())


class Broken(Recipe):
    def iteration(self, it: Iteration) -> Model:
        kept = it.prompts().sample(it.policy, n=1).keep(raise_key)
        return it.policy.train(kept, SFT(), reference=None, optimizer="fresh")


def raise_key(rows: list[Any], rng: Any) -> list[Any]:
    raise KeyError("nothing")


@pytest.mark.real
def test_both_runtimes_give_the_same_rows(tmp_path: Path) -> None:
    hashes = []
    for runtime in ("local", "ray"):
        run_on(runtime, fake_config(), tmp_path / runtime, Wide())
        folder = RunFolder(tmp_path / runtime)
        nodes = sorted(folder.manifest(2)["nodes"])
        hashes.append(
            {
                node: row_hash([read_table(part.path) for part in folder.parts(2, node)])
                for node in nodes
                if folder.parts(2, node)
            }
        )
    assert hashes[0] == hashes[1] and len(hashes[0]) > 10


def test_an_extended_run_equals_one_started_with_more_iterations(tmp_path: Path) -> None:
    for iterations in (1, 3):
        run_on("local", fake_config(iterations=iterations), tmp_path / "extended", Wide())
    run_on("local", fake_config(iterations=3), tmp_path / "whole", Wide())
    assert hashes_of(tmp_path / "extended", 3) == hashes_of(tmp_path / "whole", 3)


def hashes_of(path: Path, iteration: int) -> dict[str, str]:
    folder = RunFolder(path)
    return {node: row_hash([read_table(part.path) for part in folder.parts(iteration, node)])
            for node in folder.manifest(iteration)["nodes"] if folder.parts(iteration, node)}  # fmt: skip


def test_old_checkpoints_go_and_needed_ones_stay(tmp_path: Path) -> None:
    run_on("local", fake_config(iterations=4, checkpoints={"keep": 2}), tmp_path / "run", Plain())
    kept = [
        index for index in range(1, 5) if (tmp_path / "run" / f"iteration={index:04d}" / "policy").exists()
    ]
    assert kept == [3, 4]


@runtimes
def test_a_run_that_stopped_in_training_goes_on(runtime: str, tmp_path: Path) -> None:
    """Nothing is served yet when it starts again, and the nodes behind the training wait for its model."""
    config = fake_config(iterations=1)
    run_on(runtime, config, tmp_path / "run", Plain())
    before = hashes_of(tmp_path / "run", 1)
    folder = RunFolder(tmp_path / "run")
    manifest = folder.manifest(1)
    for name in (
        "train",
        *(name for name in manifest["nodes"] if name.startswith(("heldout", "evaluation"))),
    ):
        del manifest["nodes"][name]
        shutil.rmtree(folder.node(1, name), ignore_errors=True)
    write_json(folder.iteration(1) / "manifest.json", {**manifest, "complete": False})
    run_on(runtime, config, tmp_path / "run", Plain())
    assert hashes_of(tmp_path / "run", 1) == before


@runtimes
def test_nodes_that_wait_hold_back_none_of_the_others(runtime: str, tmp_path: Path) -> None:
    """More batches than a node may be ahead of its readers."""
    config = fake_config(prompts={"heldout": 8, "options": {"size": 60}})
    metrics = run_on(runtime, config, tmp_path / "run", Waiting())
    assert [line["iteration"] for line in metrics] == [0, 1, 2]
    assert len(rows_of(tmp_path / "run", 2, "merge")) == 120


@runtimes
def test_a_part_that_is_gone_is_made_again(runtime: str, tmp_path: Path) -> None:
    config = fake_config(iterations=1)
    run_on(runtime, config, tmp_path / "run", Plain())
    before, folder = hashes_of(tmp_path / "run", 1), RunFolder(tmp_path / "run")
    write_json(folder.iteration(1) / "manifest.json", {**folder.manifest(1), "complete": False})
    for name in ("sample", "judge"):
        Path(folder.parts(1, name)[-1].path).unlink()
    run_on(runtime, config, tmp_path / "run", Plain())
    assert hashes_of(tmp_path / "run", 1) == before


def test_saved_rows_of_an_earlier_iteration_that_are_gone_stop_the_run(tmp_path: Path) -> None:
    run_on("local", fake_config(iterations=1), tmp_path / "run", Wide())
    Path(RunFolder(tmp_path / "run").parts(1, "pairs")[-1].path).unlink()
    with pytest.raises(StoreError, match="rows of node 'pairs' of iteration 1 are gone"):
        run_on("local", fake_config(iterations=2), tmp_path / "run", Wide())


def test_a_run_that_its_recipe_stopped_stays_stopped(tmp_path: Path) -> None:
    for _ in range(2):
        metrics = run_on("local", fake_config(iterations=4), tmp_path / "run", Stopping())
        assert [line["iteration"] for line in metrics] == [0, 1]


def test_a_run_that_was_moved_goes_on_from_its_own_weights(tmp_path: Path) -> None:
    run_on("local", fake_config(iterations=1), tmp_path / "first", Plain())
    (tmp_path / "first").rename(tmp_path / "moved")
    run_on("local", fake_config(iterations=1, seed=5), tmp_path / "first", Plain())
    setup, folder = setup_of(fake_config(), Plain()), RunFolder(tmp_path / "moved")
    job = make_job(setup, folder, {})
    assert job.models.restore(setup.initial) == 1
    assert job.models.places["policy@1"].folder == str(tmp_path / "moved" / "iteration=0001" / "policy")
    assert str(tmp_path / "first") not in (folder.iteration(1) / "manifest.json").read_text()
