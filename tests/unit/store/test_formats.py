"""Runs of older formats, each a folder as its Selfloop wrote it: read, never gone on with, nothing taken from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfloop.workflows.cli import chat, commands, runs
from selfloop.workflows.config import Config
from selfloop.workflows.errors import InputError
from selfloop.workflows.pocket.source import POCKET_MODEL
from selfloop.workflows.report.show import show
from selfloop.workflows.report.why import why
from selfloop.workflows.store.export import export_policy
from selfloop.workflows.store.folder import CHANGED, FORMAT, RunFolder
from selfloop.workflows.store.parts import read_table

FORMATS = Path(__file__).parent / "formats"
OLDER = sorted(int(path.name.removeprefix("format-")) for path in FORMATS.iterdir())


@pytest.fixture(params=OLDER)
def older(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A run of this format, with a checkpoint, moved to another folder since."""
    run = tmp_path / f"format-{request.param}"
    shutil.copytree(FORMATS / run.name, run)
    shutil.copytree(POCKET_MODEL, run / "iteration=0001" / "policy")
    return run


def call(*words: str) -> tuple[int, str]:
    """(exit status, what is said on stderr) of a command."""
    done = CliRunner().invoke(commands.app, list(words))
    return done.exit_code, done.stderr


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_there_is_a_folder_of_every_older_format() -> None:
    assert [*OLDER, FORMAT] == list(range(1, FORMAT + 1)) and list(CHANGED) == list(range(2, FORMAT + 1))


def test_they_are_read(older: Path, tmp_path: Path) -> None:
    assert "self-consistency-reward on pocket, 1 of 1 iterations" in show(older) and "sample" in show(older)
    assert "'train' of iteration 1 made it from policy@0" in " ".join(why(older, "1").split())
    row = read_table(RunFolder(older).parts(1, "pair")[0].path).to_pylist()[0]
    chain = why(older, f"{row['prompt_id']}/{row['chosen_sample']}@1")
    assert "pair" in chain and "the initial model, pocket" in chain
    assert chat.checkpoint_of(older) == (older / "iteration=0001" / "policy", 1)
    export_policy(older / "iteration=0001" / "policy", POCKET_MODEL, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize("command", ["run", "resume", "reuse", "check"])
def test_they_are_not_gone_on_with(command: str, older: Path, tmp_path: Path) -> None:
    config, before = str(older / "config.json"), files_in(older)
    words = {
        "run": ["run", config, "--run-dir", str(older)],
        "resume": ["resume", str(older), "iterations=2"],
        "reuse": ["run", config, f"reuse={older}", "--run-dir", str(tmp_path / "new")],
        "check": ["check", config, "--run-dir", str(older)],
    }[command]
    code, said = call(*words)
    number = int(older.name.removeprefix("format-"))
    assert code == 2 and len(said.strip().splitlines()) == 1
    assert f"{older} has format {number}" in said and "Use the Selfloop that made it" in said
    assert [what in said for what in CHANGED.values()] == [since > number for since in CHANGED]
    assert files_in(older) == before and not (tmp_path / "new").exists()


def test_the_library_refuses_them_too(older: Path, tmp_path: Path) -> None:
    from selfloop.workflows.executor.run import run

    held = json.loads((older / "config.json").read_text())["config"]
    for config, folder in ((held, older), ({**held, "reuse": str(older)}, tmp_path / "new")):
        with pytest.raises(InputError, match="goes on with runs of format"):
            run(Config(**config), folder)
    assert not (tmp_path / "new").exists()


def test_again_renames_one_aside(tmp_path: Path) -> None:
    run = shutil.copytree(FORMATS / "format-4", tmp_path / "run")
    held = json.loads((run / "config.json").read_text())
    free = runs.free_name(Config(**{**held["config"], "iterations": 2}), run)
    assert free == tmp_path / "run-1"
    runs.set_aside(run, free)
    assert not run.exists() and (tmp_path / "run-1" / "config.json").is_file()


def test_a_start_that_committed_nothing_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"format": 4, "config": {"a": 1}}))
    folder = RunFolder(tmp_path)
    assert not folder.open({"a": 1})
    folder.close()
    assert folder.format == FORMAT
