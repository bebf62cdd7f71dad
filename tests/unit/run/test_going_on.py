"""Runs that go on with other resources, on other data, after a failed start, and under another driver."""

from __future__ import annotations

import json
import os
import platform
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfloop.workflows.errors import InputError, RunLockedError
from selfloop.workflows.report.console import Console
from selfloop.workflows.run.going_on import changed_data, take_data
from selfloop.workflows.run.local import local_runtime
from selfloop.workflows.run.loop import loop
from selfloop.workflows.run.runner import Runner
from selfloop.workflows.run.setup import Setup
from selfloop.workflows.store.changes import FREE, NOTED, changes, kept_gpus
from selfloop.workflows.store.checkpoint import Place
from selfloop.workflows.store.folder import RunFolder, write_json
from selfloop.workflows.store.parts import read_table, row_hash
from tests.unit.flows import fake_config, run_on

VERSIONS = {"engine": {"settings": {"threads": 1, "dtype": "float32"}},
            "trainer": {"settings": {"threads": 1, "ranks": 1, "zero": 0, "tokens_per_micro_batch": 8192}}}  # fmt: skip


def config_of(**more: Any) -> Any:
    generator = {"engine": "fake", "max_tokens": 8, "options": {"length": 2, "emit_version": False}}
    return fake_config(
        "self-consistency-reward",
        settings={"samples": 4, "threshold": 0.0},
        **{"generator": generator, **more},
    )


def hashes(run: Path, iteration: int = 1) -> dict[str, str]:
    folder = RunFolder(run)
    nodes = [name for name in folder.manifest(iteration)["nodes"] if folder.parts(iteration, name)]
    return {
        name: row_hash([read_table(part.path) for part in folder.parts(iteration, name)]) for name in nodes
    }


def go(run: Path, config: Any, **settings: Any) -> RunFolder:
    """A run in this process whose actors have these settings; returns its folder."""
    from selfloop.actors.generate.generator import make_engine
    from selfloop.actors.generate.spec import EngineSpec
    from selfloop.actors.train.fake import FakeTrainer

    setup, folder = Setup(config), RunFolder(run)
    folder.open(config.model_dump(mode="json"))
    generator = config.generator
    engine = make_engine(EngineSpec(generator.engine, str(setup.folder), options=dict(generator.options)))
    try:
        runtime, job = local_runtime(setup, folder, engine, FakeTrainer(str(setup.folder)))
        job.versions = {kind: {"settings": held["settings"] | {k: v for k, v in settings.items() if k in held["settings"]}}
                        for kind, held in VERSIONS.items()}  # fmt: skip
        loop(setup, folder, runtime, job, Console(live=False))
    finally:
        folder.close()
    return folder


def reopen(folder: RunFolder, iteration: int, node: str, batches: int = 1, **readers: int) -> None:
    """Make the iteration incomplete again: this node is cut down to its first batches, readers of it to theirs, and all
    else behind it is gone."""
    cut, later = {node: batches, **readers}, False
    manifest = folder.manifest(iteration)
    for name in list(manifest["nodes"]):
        later = later or name == node
        if later:
            del manifest["nodes"][name]
            if name in cut:
                shorten(folder, iteration, name, cut[name])
            else:
                shutil.rmtree(folder.node(iteration, name), ignore_errors=True)
    write_json(folder.iteration(iteration) / "manifest.json", {**manifest, "complete": False, "roles": {}})


def shorten(folder: RunFolder, iteration: int, node: str, batches: int) -> None:
    from selfloop.workflows.store.parts import read_stored, write_part

    (part,) = folder.parts(iteration, node)
    tables = read_stored(part.stored()[:batches])
    write_part(str(folder.node(iteration, node)), 0, 0, tables, part.batches[:batches], part.about)


# Which keys


def test_keys_are_known_by_what_their_change_means() -> None:
    from selfloop.workflows.config import Config

    held = config_of().model_dump(mode="json")
    for key in (*FREE, *NOTED):
        at: Any = held
        for part in key.split("."):
            assert part in at, f"{key} is no key of the config"
            at = at[part]
    other = {
        **held,
        "generator": {**held["generator"], "replicas": 3, "threads": 2, "max_tokens": 9},
        "iterations": 9,
    }
    found = changes(held, Config.model_validate(other).model_dump(mode="json"))
    assert found.free == ["iterations was 2 and is now 9", "generator.replicas was 1 and is now 3"]
    assert found.noted == ["generator.threads was 1 and is now 2"]
    assert found.refused == ["generator.max_tokens was 8 and is now 9"]
    assert changes(other, held).refused[0] == "iterations was 9 and is now 2"
    assert all(key in found.refusal for key in (*FREE, *NOTED, "--again", "--run-dir"))


def test_devices_are_kept() -> None:
    assert (kept_gpus(None, 2), kept_gpus("cuda", 2), kept_gpus("cpu", 2), kept_gpus("cpu", 0)) == (
        2,
        2,
        0,
        0,
    )
    with pytest.raises(InputError, match="began on GPU"):
        kept_gpus("cuda", 0)


# batch_size


def test_a_started_node_keeps_its_batches_and_later_nodes_take_the_new_ones(tmp_path: Path) -> None:
    calm = go(tmp_path / "calm", config_of())
    run = go(tmp_path / "run", config_of())
    shutil.rmtree(run.iteration(2))
    (run.path / "metrics.jsonl").unlink()
    reopen(run, 1, "sample", batches=2)
    go(run.path, config_of(batch_size=7))
    cut = {name: entry["batches"] for name, entry in run.manifest(1)["nodes"].items() if "batches" in entry}
    assert cut["sample"] == cut["judge"] == 5  # 24 prompts by 5, as it was started
    assert cut["heldout-sampled"] == 2  # 8 prompts by 7: nothing of it was there
    assert {name: entry["batches"] for name, entry in run.manifest(2)["nodes"].items() if "batches" in entry}[
        "sample"
    ] == 4
    for iteration in (1, 2):
        assert hashes(run.path, iteration) == hashes(calm.path, iteration)


# threads, ranks, ZeRO


def test_finished_nodes_are_not_compared_and_say_under_what_they_were_made(tmp_path: Path) -> None:
    run = go(tmp_path / "run", config_of())
    reopen(run, 2, "sample", batches=2)
    before = run.manifest(1)["nodes"]
    go(run.path, config_of(), threads=2, ranks=2, zero=1)
    assert run.manifest(1)["nodes"] == before
    nodes = run.manifest(2)["nodes"]
    assert nodes["sample"]["made"] == [{"threads": 1}, {"threads": 2}]
    assert nodes["heldout-sampled"]["made"] == [{"threads": 2}]
    assert nodes["train"]["made"] == [{"threads": 2, "ranks": 2, "zero": 1, "tokens_per_micro_batch": 8192}]
    assert before["train"]["made"] == [VERSIONS["trainer"]["settings"]]
    whole = go(tmp_path / "whole", config_of())
    assert whole.manifest(1)["nodes"]["sample"]["key"] == before["sample"]["key"]
    assert (
        whole.manifest(2)["nodes"]["sample"]["key"] != nodes["sample"]["key"]
    )  # nobody takes a mixed node for a whole one


def test_a_node_of_several_settings_is_known_again(tmp_path: Path) -> None:
    run = go(tmp_path / "run", config_of())
    reopen(run, 2, "sample", batches=2)
    go(run.path, config_of(), threads=2)
    manifest = run.manifest(2)
    write_json(run.iteration(2) / "manifest.json", {**manifest, "complete": False})
    go(run.path, config_of(), threads=3)  # all is there: nothing is made, nothing is refused
    assert run.manifest(2)["nodes"] == manifest["nodes"]


@pytest.mark.parametrize("judged", [1, 2, 3])
def test_a_stream_that_was_cut_goes_on_with_other_settings(judged: int, tmp_path: Path) -> None:
    """What was made of a half made node carries the key that the node had then; so it is known, time and again."""
    run = go(tmp_path / "run", config_of())
    wanted = {iteration: hashes(run.path, iteration) for iteration in (1, 2)}
    reopen(run, 2, "sample", batches=3, judge=judged)
    keys = {name: run.parts(2, name)[0].about["key"] for name in ("sample", "judge")}
    go(run.path, config_of(), threads=2)
    nodes = run.manifest(2)["nodes"]
    assert [nodes[name]["key"] == keys[name] for name in keys] == [False, False]
    assert [part.about["key"] for part in run.parts(2, "judge")] == [keys["judge"], nodes["judge"]["key"]]
    assert {
        iteration: hashes(run.path, iteration) for iteration in (1, 2)
    } == wanted  # fakes make the same rows
    manifest = run.manifest(2)
    write_json(run.iteration(2) / "manifest.json", {**manifest, "complete": False})
    go(run.path, config_of(), threads=3)
    assert run.manifest(2)["nodes"] == manifest["nodes"]


def test_no_batch_is_committed_before_those_that_it_was_made_from(tmp_path: Path) -> None:
    from selfloop.workflows.executor.schedule import Executor, follows
    from selfloop.workflows.run.node import Batch

    run, config = RunFolder(tmp_path / "run"), config_of()
    run.open(config.model_dump(mode="json"))
    _, job = local_runtime(Setup(config), run, None, None)
    job.models.places["policy@0"] = Place("x")
    executor = Executor.__new__(Executor)  # no actors: what is handed to the writer is looked at
    Runner.__init__(executor, job)
    executor.begin(Setup(config).planner.graph(1))
    executor.flushed = {}
    asked: list[tuple[str, int]] = []
    executor.write = lambda flow, batches: asked.append((flow.node.name, len(batches)))  # type: ignore[method-assign]
    sample, judge = executor.flows["sample"], executor.flows["judge"]
    sample.waiting = [Batch(0, None, [])]
    judge.waiting = [Batch(0, None, []), Batch(1, None, [])]
    executor.flush(everything=True)
    assert asked == [("sample", 1)] and len(judge.waiting) == 2
    sample.writing = 1
    executor.flush(everything=True)
    assert asked[1:] == [("judge", 1)] and [batch.index for batch in judge.waiting] == [1]
    assert not follows(judge, judge.waiting[0])
    run.close()


def test_a_step_checkpoint_of_other_ranks_is_dropped_and_said(tmp_path: Path) -> None:
    run, config = RunFolder(tmp_path / "run"), config_of()
    run.open(config.model_dump(mode="json"))
    _, job = local_runtime(Setup(config), run, None, None)
    job.versions, said = VERSIONS, list[str]()
    job.say = said.append
    runner, graph = Runner(job), Setup(config).planner.graph(1)
    job.models.places["policy@0"] = Place("x")
    runner.begin(graph)
    steps = tmp_path / "steps"
    work = replace(job.train_node(graph.nodes["train"], graph, []).work, step_dir=str(steps))
    for made, left in (
        (VERSIONS["trainer"]["settings"], True),
        ({**VERSIONS["trainer"]["settings"], "ranks": 2}, False),
    ):
        write_json(steps / "step-000005" / "state.json", {"step": 5, "made": made, "key": "x"})
        runner.drop_steps(runner.flows["train"], work)
        assert steps.exists() == left
    assert said == [
        "Node train begins its training again: its checkpoint of step 5 is dropped, because ranks was 2 and is now 1."
    ]
    run.close()


# Data


def data_run(folder: Path, rows: int, config: dict[str, Any] | None = None) -> tuple[Any, RunFolder]:
    path = folder / "mine.jsonl"
    path.write_text(
        "".join(
            json.dumps({"prompt": f"add {number}", "answer": str(number)}) + "\n" for number in range(rows)
        )
    )
    made = config_of(prompts={"source": str(path), "heldout": 4}, **(config or {}))
    return made, RunFolder(folder / "run")


def test_changed_rows_are_told_and_need_a_yes(tmp_path: Path) -> None:
    config, folder = data_run(tmp_path, 20)
    setup = Setup(config)
    folder.open(config.model_dump(mode="json"))
    take_data(setup, folder)
    folder.close()
    go(folder.path, config)
    assert changed_data(Setup(config), folder) is None
    more, _ = data_run(tmp_path, 12, {"iterations": 3})
    assert changed_data(Setup(config), folder) is None  # finished: there is nothing to go on with
    said = changed_data(Setup(more), folder)
    assert said is not None and "--yes" in said
    assert f"prompts ({tmp_path}/mine.jsonl) had 16 rows and has 8 now" in said
    begun = folder.iteration(3) / "sample"
    begun.mkdir(parents=True)
    take_data(Setup(more), folder)  # with a yes
    assert not begun.exists() and changed_data(Setup(more), folder) is None
    go(folder.path, more)
    assert folder.completed() == 3


def test_rows_of_the_same_number_are_told_too(tmp_path: Path) -> None:
    config, folder = data_run(tmp_path, 20)
    folder.open(config.model_dump(mode="json"))
    take_data(Setup(config), folder)
    folder.commit_node(0, "evaluation", {})
    text = (tmp_path / "mine.jsonl").read_text().replace("add", "sub")
    (tmp_path / "mine.jsonl").write_text(text)
    said = changed_data(Setup(config), folder)
    assert said is not None and "has 16 rows as before, with other contents" in said
    folder.close()


# Starts that fail


def test_a_failed_start_leaves_nothing_and_not_the_users_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selfloop.workflows.executor import run as run_module

    def broken(setup: Setup, folder: RunFolder, console: Console) -> Any:
        folder.event("iteration", iteration=0)
        raise RuntimeError("no engine")

    monkeypatch.setattr(run_module, "run_over_ray", broken)
    (tmp_path / "mine").mkdir()
    for run in (tmp_path / "runs" / "a", tmp_path / "mine"):
        with pytest.raises(RuntimeError):
            run_module.run(config_of(), run, Console(live=False))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert list((tmp_path / "mine").iterdir()) == []

    def commits(setup: Setup, folder: RunFolder, console: Console) -> Any:
        folder.commit_node(0, "evaluation", {})
        raise RuntimeError("later")

    monkeypatch.setattr(run_module, "run_over_ray", commits)
    with pytest.raises(RuntimeError):
        run_module.run(config_of(), tmp_path / "mine", Console(live=False))
    assert RunFolder(tmp_path / "mine").committed()
    monkeypatch.setattr(run_module, "run_over_ray", broken)
    with pytest.raises(RuntimeError):  # a run that had begun keeps what it has
        run_module.run(config_of(), tmp_path / "mine", Console(live=False))
    assert RunFolder(tmp_path / "mine").committed()


def test_a_start_that_was_killed_blocks_nobody(tmp_path: Path) -> None:
    first = RunFolder(tmp_path / "run")
    first.open({"seed": 1})
    first.event("iteration", iteration=0)
    first.close()
    second = RunFolder(tmp_path / "run")
    assert second.open({"seed": 2}) is False
    assert second.config() == {"seed": 2} and not (tmp_path / "run" / "events.jsonl").exists()
    second.close()


def test_a_folder_with_other_things_gets_nothing_of_us(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError):
        RunFolder(tmp_path).open({})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


# Two drivers


def test_a_second_driver_is_told_who_works_on_the_run(tmp_path: Path) -> None:
    first = RunFolder(tmp_path / "run")
    first.open({})
    for _ in range(2):  # a refusal does not make it forget
        with pytest.raises(RunLockedError, match=rf"process {os.getpid()} on {platform.node()}, since "):
            RunFolder(tmp_path / "run").open({})
    first.close()
    third = RunFolder(tmp_path / "run")
    assert third.open({}) is True
    third.close()


@pytest.mark.parametrize(("start", "then"), [(2, 1), (1, 2)])
def test_other_replicas_go_on_to_the_same_rows(start: int, then: int, tmp_path: Path) -> None:
    def config(replicas: int) -> Any:
        generator = {"engine": "fake", "max_tokens": 8, "options": {"length": 2}, "replicas": replicas}
        return config_of(generator=generator)

    run_on("local", config(start), tmp_path / "calm")
    run_on("local", config(start), tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    reopen(folder, 2, "sample")
    run_on("local", config(then), tmp_path / "run")
    assert hashes(tmp_path / "run", 2) == hashes(tmp_path / "calm", 2)
    assert folder.config()["generator"]["replicas"] == then  # type: ignore[index]
