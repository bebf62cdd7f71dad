"""Content keys: what another run has made is taken over, what was made by other code is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from selfloop.workflows.errors import InputError
from selfloop.workflows.run import job
from selfloop.workflows.run.setup import Setup
from selfloop.workflows.store.folder import RunFolder, write_json
from selfloop.workflows.store.keys import content_key, identity, source_hash
from selfloop.workflows.store.parts import read_table, row_hash
from tests.unit.flows import fake_config, run_on


def config_of(reuse: Path | None = None, **settings: Any) -> Any:
    generator = {"engine": "fake", "max_tokens": 8, "options": {"length": 2}}
    more: dict[str, Any] = {"generator": generator, **({"reuse": str(reuse)} if reuse else {})}
    return fake_config(
        "self-consistency-reward", settings={"samples": 4, "threshold": 0.0, **settings}, **more
    )


def nodes(run: Path, iteration: int) -> dict[str, Any]:
    return RunFolder(run).manifest(iteration)["nodes"]


def reused(run: Path, iteration: int) -> set[str]:
    return {name for name, entry in nodes(run, iteration).items() if "reused" in entry}


def rows_hash(run: Path, iteration: int, node: str) -> str:
    return row_hash([read_table(part.path) for part in RunFolder(run).parts(iteration, node)])


@pytest.mark.parametrize("runtime", ["local", "ray"])
def test_a_run_of_the_same_config_takes_everything(runtime: str, tmp_path: Path) -> None:
    run_on(runtime, config_of(), tmp_path / "first")
    again = run_on(runtime, config_of(tmp_path / "first"), tmp_path / "again")
    for iteration in range(3):
        assert reused(tmp_path / "again", iteration) == set(nodes(tmp_path / "again", iteration))
    first = json.loads((tmp_path / "first" / "metrics.jsonl").read_text().splitlines()[-1])
    assert again[-1]["heldout_accuracy"] == first["heldout_accuracy"]
    made = nodes(tmp_path / "again", 2)["train"]["model"]
    assert made["folder"] == "iteration=0002/policy"
    assert (tmp_path / "again" / made["folder"] / "config.json").is_file()


def test_rows_of_another_encoding_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_on("local", config_of(), tmp_path / "first")
    monkeypatch.setattr(job, "ENCODING", job.ENCODING + 1)
    run_on("local", config_of(tmp_path / "first"), tmp_path / "again")
    assert reused(tmp_path / "again", 1) == set()


def test_another_loss_takes_the_samples_of_the_first_iteration(tmp_path: Path) -> None:
    run_on("local", config_of(), tmp_path / "first")
    run_on("local", config_of(tmp_path / "first", beta=0.9), tmp_path / "other")
    assert {"sample", "judge", "pair"} <= reused(tmp_path / "other", 1)
    assert "train" not in reused(tmp_path / "other", 1)
    assert rows_hash(tmp_path / "other", 1, "sample") == rows_hash(tmp_path / "first", 1, "sample")


def test_other_settings_take_nothing_that_depends_on_them(tmp_path: Path) -> None:
    run_on("local", config_of(), tmp_path / "first")
    run_on("local", config_of(tmp_path / "first", threshold=0.1), tmp_path / "threshold")
    assert "pair" not in reused(tmp_path / "threshold", 1) and "judge" in reused(tmp_path / "threshold", 1)
    seeded = config_of(tmp_path / "first").model_copy(update={"seed": 1})
    run_on("local", seeded, tmp_path / "seeded")
    assert not reused(tmp_path / "seeded", 0) | reused(tmp_path / "seeded", 1)


def test_rows_of_other_code_are_not_gone_on_with(tmp_path: Path) -> None:
    run_on("local", config_of(), tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    manifest = folder.manifest(2)
    manifest["complete"], manifest["nodes"]["judge"]["key"] = False, "0" * 32
    write_json(folder.iteration(2) / "manifest.json", manifest)
    with pytest.raises(InputError, match=r"node 'judge' of iteration 2 were made by other code"):
        run_on("local", config_of(), tmp_path / "run")


def test_a_run_with_other_batches_is_refused_by_the_check(tmp_path: Path) -> None:
    from selfloop.workflows.checks import problems

    run_on("local", config_of(), tmp_path / "first")
    other = config_of(tmp_path / "first").model_copy(update={"batch_size": 7})
    assert any("Set batch_size=5" in problem for problem in problems(other))
    assert any("is no run folder" in problem for problem in problems(config_of(tmp_path / "nothing")))


def test_keys_are_the_same_in_every_process() -> None:
    code = ("from tests.unit.run.test_reuse import first_key; print(first_key())")  # fmt: skip
    found = {
        subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PATH": ""}, text=True,
                       capture_output=True, check=True).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert found == {first_key() + "\n"}


def first_key() -> str:
    graph = Setup(config_of()).planner.graph(1)
    node = graph.nodes["sample"]
    return content_key(graph.nodes["pair"], {"judge": "x"}, {}, {}) + content_key(
        node, {"prompts": "x"}, {"policy@0": "y"}, {}
    )


def helper(value: int) -> int:
    return value + 1


def uses_helper(value: int) -> int:
    return helper(value)


def test_a_key_knows_the_functions_that_a_rule_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    from selfloop.workflows.store import keys

    before = source_hash(uses_helper)
    keys.hash_of.cache_clear()
    monkeypatch.setitem(uses_helper.__globals__, "helper", lambda value: value + 2)
    assert source_hash(uses_helper) != before
    assert identity(frozenset("cab")) == ["a", "b", "c"]
