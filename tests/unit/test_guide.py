"""docs/write-a-method.md: its files run, and each of its mistakes gets the message that it shows."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfloop.workflows.cli import app
from selfloop.workflows.config import load_config
from selfloop.workflows.judges.verifiers import resolve
from tests.recipes.runs import run_recipe
from tests.unit.flows import rows_of

GUIDE = Path(__file__).parents[2] / "docs" / "write-a-method.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
FILES = {
    text.split()[1]: text for kind, text in BLOCKS if kind in ("python", "yaml")
}  # "# NAME" is their first line
MISTAKES = [(text, BLOCKS[place + 1][1]) for place, (kind, text) in enumerate(BLOCKS) if kind == "diff"]
CHECKS = [text for kind, text in BLOCKS if kind == "console" and "No problem" in text]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The reader's folder, with all files of the guide; modules that they make are forgotten again."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delenv("SELFLOOP_RUNS", raising=False)
    resolve.cache_clear()
    yield folder
    resolve.cache_clear()
    for name in FILES:
        sys.modules.pop(Path(name).stem, None)


def told(console: str) -> tuple[str, str]:
    """What a command says, and what the guide shows of it."""
    command, _, shown = console.partition("\n")
    said = CliRunner().invoke(app, command.removeprefix("$ selfloop ").split())
    return said.stderr + said.stdout, shown


def test_the_guide_has_its_files_and_six_mistakes() -> None:
    assert list(FILES) == [
        "best_of_n.py",
        "best_of_n.yaml",
        "closeness.py",
        "by_itself.py",
        "own_loss.py",
        "test_best_of_n.py",
    ]
    assert len(MISTAKES) == 6 and len(CHECKS) == 3


@pytest.mark.parametrize("console", CHECKS, ids=lambda text: text.partition("\n")[0])
def test_check_says_what_is_shown(console: str, mine: Path) -> None:
    said, shown = told(console)
    for line in shown.splitlines():
        assert line in said


@pytest.mark.parametrize(("change", "console"), MISTAKES, ids=range(1, len(MISTAKES) + 1))
def test_a_mistake_gets_the_message_that_is_shown(change: str, console: str, mine: Path) -> None:
    old, new = ("".join(f"{line[1:]}\n" for line in change.splitlines() if line[0] == sign) for sign in "-+")
    (path,) = (path for path in mine.iterdir() if path.is_file() and old in path.read_text(encoding="utf-8")
               and (path.stem == "by_itself") == ("by_itself" in console))  # fmt: skip
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    said, shown = told(console)
    assert said.replace(str(mine), "…/mine") == shown


@pytest.mark.parametrize("recipe", ["best_of_n:BestOfNDistillation", "by_itself:BestByItself"])
def test_both_methods_run_two_iterations(recipe: str, mine: Path) -> None:
    small = [
        "prompts.per_iteration=8",
        "prompts.heldout=4",
        "prompts.options.size=24",
        "generator.engine=fake",
    ]
    config = load_config("best_of_n.yaml", [f"recipe={recipe}", *small])
    metrics = run_recipe(config, mine / "run")
    assert len(metrics) == 3
    for iteration in (1, 2):
        sampled, kept = (rows_of(mine / "run", iteration, node) for node in ("sample", "keep"))
        assert len(sampled) == 8 * 8
        groups = {row["prompt_id"] for row in kept}
        assert 0 < len(groups) == len(kept) <= 8
        assert all(row["score"] > 0 for row in kept)


def test_the_loss_is_the_mean_over_answers(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.syspath_prepend(str(mine))
    from own_loss import EachAnswerTheSame

    logprobs = -torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, 0.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    loss = EachAnswerTheSame()({"response.logprobs": logprobs, "response.mask": mask})
    assert loss.total().item() == pytest.approx((2 + 5) / 2)


def test_the_reader_s_test_passes(mine: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "test_best_of_n.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
