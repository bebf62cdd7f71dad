"""`selfloop new recipe NAME`: three files that run at once, and nothing is written over."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from selfloop.workflows.cli import app
from selfloop.workflows.config import load_config
from tests.recipes.runs import run_recipe
from tests.unit.flows import rows_of

ROOT = Path(__file__).parents[3]
SMALL = ["prompts.per_iteration=8", "prompts.heldout=4", "prompts.options.size=24", "generator.engine=fake"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("my_way", None)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def test_it_writes_a_method_that_runs_two_iterations(here: Path) -> None:
    said = call("new", "recipe", "my-way")
    assert said.exit_code == 0
    assert said.stdout.startswith("Written: my_way.py, my_way.yaml, test_my_way.py.")
    assert set(files(here)) == {"my_way.py", "my_way.yaml", "test_my_way.py"}
    assert call("check", "my_way.yaml").exit_code == 0
    metrics = run_recipe(load_config("my_way.yaml", SMALL), here / "run")
    assert len(metrics) == 3
    assert all(row["score"] > 0 for row in rows_of(here / "run", 2, "keep"))


def test_its_test_passes_and_its_code_is_in_order(here: Path) -> None:
    call("new", "recipe", "my_way")
    ours = ["--config", str(ROOT / "pyproject.toml"), "."]
    for command in (
        ["pytest", "-q", "test_my_way.py"],
        ["ruff", "check", "--ignore", "D103", *ours],
        ["ruff", "format", "--check", *ours],
    ):
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("there", ["my_way.py", "my_way.yaml", "test_my_way.py"])
def test_nothing_is_written_over(there: str, here: Path) -> None:
    (here / there).write_text("mine")
    said = call("new", "recipe", "my-way")
    assert said.exit_code == 2
    assert said.stderr == f"Error: {there} is there already, and is left as it is. Take another name\n"
    assert files(here) == {there: "mine"}


@pytest.mark.parametrize("name", ["My-Way", "7b", "a/b", "../up", "class", "x.py", "", "random", "torch", "selfloop", "recipe", "field"])  # fmt: skip
def test_a_name_that_will_not_do_is_refused(name: str, here: Path) -> None:
    said = call("new", "recipe", name)
    assert said.exit_code == 2
    assert said.stderr.startswith("Error: ")
    assert files(here) == {}
