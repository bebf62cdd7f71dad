"""A method from outside on real Ray: workers find its modules in the working folder, and in the run's copy when that is gone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from selfloop.workflows.store.folder import RunFolder
from tests.unit.run.test_outside import FILES

pytestmark = pytest.mark.real

CONFIG = """
recipe: ours:Mine
judge: ourpack.judge:right
iterations: 1
prompts: {heldout: 8, options: {size: 16}}
generator: {engine: fake, max_tokens: 32}
evaluation: {samples: 2, bootstrap: 100}
max_failed_rows: 1.0
trackers: []
"""
JUDGE = "from ourpack.texts import clean\n\n\ndef right(row):\n    return clean(row['response']) == row['answer']\n"


def selfloop(folder: Path, *arguments: str) -> str:
    code = "from selfloop.workflows.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_run_of_ones_own_method_goes_on_without_its_working_folder(tmp_path: Path) -> None:
    work, elsewhere, run = tmp_path / "work", tmp_path / "elsewhere", tmp_path / "run"
    for name, text in {**FILES, "ourpack/judge.py": JUDGE, "c.yaml": CONFIG}.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(text)
    elsewhere.mkdir()
    selfloop(work, "run", "c.yaml", "--run-dir", str(run))
    shutil.rmtree(work)
    said = selfloop(elsewhere, "resume", str(run), "iterations=2")
    assert (
        f"the modules ourpack.judge, ours of this run are gone, so the copies in {run}/code are used" in said
    )
    assert RunFolder(run).completed() == 2
    nodes = [set(RunFolder(run).manifest(index)["nodes"]) for index in (1, 2)]
    assert nodes[0] == nodes[1] and {"sample", "score", "pair", "train"} <= nodes[0]
    assert "cut answers: my own way" in selfloop(elsewhere, "show", str(run))
    assert "DPO" in selfloop(elsewhere, "why", str(run), "2")
    selfloop(elsewhere, "export", str(run), str(tmp_path / "policy"))
    assert (tmp_path / "policy" / "config.json").is_file()
