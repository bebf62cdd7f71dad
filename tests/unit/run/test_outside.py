"""A method from outside: its run keeps a copy of its modules, and goes on from it when the originals are gone."""

from __future__ import annotations

import importlib
import inspect
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from selfloop.workflows.checks import inspect as check
from selfloop.workflows.config import Config, Draft
from selfloop.workflows.recipes import find_method
from selfloop.workflows.report.show import show
from selfloop.workflows.report.why import why
from selfloop.workflows.run.setup import Setup, open_config
from selfloop.workflows.store.folder import RunFolder
from selfloop.workflows.store.modules import changed_modules, keep_modules, local_modules, reach_modules
from tests.recipes.runs import run_recipe
from tests.unit.flows import fake_config

METHOD = """
from ourpack import rules
from selfloop.workflows.flow.recipe import Recipe
from selfloop.workflows.objectives.dpo import DPO


class Mine(Recipe):
    samples: int = 4

    @property
    def cut_answers(self):
        return "my own way"

    def iteration(self, it):
        answers = it.prompts().sample(it.policy, n=self.samples).score(rules.length, column="length")
        return it.policy.train(answers.pair(rules.pairs), DPO(beta=0.1), reference=it.policy, optimizer="fresh")
"""
RULES = """
from .texts import clean


def length(rows, rng):
    return [float(len(clean(row["response"]))) for row in rows]


def pairs(rows, rng):
    from ourpack.order import ordered

    best, worst = ordered(rows)
    return [(best, worst)] if best["length"] != worst["length"] else []
"""
TEXTS = "def clean(text):\n    return text.strip()\n"
ORDER = "def ordered(rows):\n    ranked = sorted(rows, key=lambda row: (row['length'], row['sample']))\n    return ranked[-1], ranked[0]\n"
FILES = {"ours.py": METHOD, "ourpack/__init__.py": "", "ourpack/rules.py": RULES, "ourpack/texts.py": TEXTS,
         "ourpack/order.py": ORDER, "ourpack/unused.py": "x = 1\n", "secret.txt": "not copied"}  # fmt: skip
COPIED = ["ourpack/__init__.py", "ourpack/order.py", "ourpack/rules.py", "ourpack/texts.py", "ours.py"]


def forget() -> None:
    """As in a process that has imported none of it."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("ours", "ourpack")]:
        del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a method, a package that it uses in part, and other files."""
    forget()
    monkeypatch.setattr(sys, "path", [*sys.path])
    work = tmp_path / "work"
    for name, text in FILES.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(text)
    monkeypatch.chdir(work)
    return work


def config_of(**more: Any) -> Config:
    fields = {"recipe": "ours:Mine", "judge": "exact", **more}
    find_method(fields["recipe"])
    return fake_config(fields.pop("recipe"), **fields)


def made(path: Path, **more: Any) -> RunFolder:
    config = config_of(**more)
    run_recipe(config, path)
    run = RunFolder(path)
    keep_modules(run, config.model_dump(mode="json"))
    return run


def leave(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process, elsewhere; the working folder is gone."""
    monkeypatch.chdir(here.parent)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(here)])
    shutil.rmtree(here)
    forget()


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))


def test_a_run_keeps_the_named_modules_and_what_they_import(tmp_path: Path, here: Path) -> None:
    run = made(tmp_path / "run")
    assert files_in(run.path / "code") == COPIED
    assert {name: (run.path / "code" / name).read_text() for name in COPIED} == {
        name: FILES[name] for name in COPIED
    }
    assert run.completed() == 2


def test_nothing_is_kept_of_what_is_installed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    keep_modules(run, {"recipe": "selfloop.workflows.recipes:GroupRelative", "judge": "yaml:dump", "seed": 1})
    assert not (run.path / "code").exists()
    assert local_modules(["json", "numpy", "selfloop.workflows.flow.recipe"]) == ({}, set())


def test_show_why_and_the_config_are_read_when_the_originals_are_gone(
    tmp_path: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made(tmp_path / "run")
    before = (show(run.path), why(run.path, "2"))
    keys = content(run)
    leave(here, monkeypatch)
    assert (show(run.path), why(run.path, "2")) == before
    assert "cut answers: my own way" in before[0]
    method = find_method("ours:Mine")
    assert method is not None and inspect.getfile(method) == str(run.path / "code" / "ours.py")
    assert content(run) == keys


def content(run: RunFolder) -> dict[str, Any]:
    """What keys know of the graph's nodes, from the code as it is found now."""
    _, config = open_config(run.path)
    return {node.name: node.settings for node in Setup(config).planner.graph(1)}


def test_a_run_goes_on_from_its_copy(tmp_path: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made(tmp_path / "whole", iterations=3)
    begun = made(tmp_path / "begun", iterations=2)
    leave(here, monkeypatch)
    (note,) = reach_modules(begun)
    assert note == f"the module ours of this run is gone, so the copies in {begun.path}/code are used"
    assert reach_modules(begun) == []  # said once
    config = open_config(begun.path)[1].model_copy(update={"iterations": 3})
    run_recipe(config, begun.path)
    keep_modules(begun, config.model_dump(mode="json"))
    assert files_in(begun.path / "code") == COPIED  # the copy is no original to be copied
    assert [begun.manifest(index)["nodes"] for index in (1, 2, 3)] == [
        whole.manifest(index)["nodes"] for index in (1, 2, 3)
    ]


def test_a_part_of_a_package_may_be_gone(tmp_path: Path, here: Path) -> None:
    run = made(tmp_path / "run")
    (here / "ourpack" / "order.py").unlink()
    forget()
    (note,) = reach_modules(run)
    assert "the module ourpack.order of this run is gone" in note
    assert content(run)  # one set of modules, not half of each


def test_a_strangers_copy_is_not_imported_where_the_originals_are(tmp_path: Path, here: Path) -> None:
    run = made(tmp_path / "run")
    (run.path / "code" / "ours.py").write_text("raise SystemExit('imported')\n")
    forget()
    assert reach_modules(run) == []
    assert "cut answers: my own way" in show(run.path) and content(run)


def test_it_is_said_that_the_originals_changed(tmp_path: Path, here: Path) -> None:
    run = made(tmp_path / "run", iterations=2)
    config = config_of(iterations=3)
    assert changed_modules(run, config.model_dump(mode="json")) == []
    (here / "ourpack" / "texts.py").write_text("def clean(text):\n    return text\n")
    notes = check(Draft(config=config, problems=[]), run.path).notes
    assert [note for note in notes if note.startswith("ourpack.texts changed since this run last went on")]
    keep_modules(run, config.model_dump(mode="json"))
    assert (run.path / "code" / "ourpack" / "texts.py").read_text() == "def clean(text):\n    return text\n"
    assert '"event": "code"' in (run.path / "events.jsonl").read_text()


@pytest.mark.parametrize(
    ("file", "old", "new", "other"),
    [
        ("ours.py", "DPO(beta=0.1)", "DPO(beta=0.2)", {"train"}),  # the class is in no key
        ("ours.py", "my own way", "another way", set()),
        ("ourpack/order.py", "row['sample']", "-row['sample']", {"pair", "train"}),
        ("ourpack/texts.py", "text.strip()", "text", {"score", "pair", "train"}),
    ],
)
def test_a_change_makes_again_what_uses_it(
    file: str, old: str, new: str, other: set[str], tmp_path: Path, here: Path
) -> None:
    before = keys_of(made(tmp_path / "before"))
    assert old in FILES[file]
    (here / file).write_text(FILES[file].replace(old, new))
    forget()
    after = keys_of(made(tmp_path / "after"))
    assert {name for name in before if before[name] != after[name]} & {
        "sample",
        "score",
        "pair",
        "train",
    } == other
    assert before["sample"] == after["sample"]


def keys_of(run: RunFolder) -> dict[str, str]:
    """The content key of every node of the first iteration."""
    return {name: entry["key"] for name, entry in run.manifest(1)["nodes"].items()}


def test_check_finds_what_is_wrong_in_it(here: Path) -> None:
    (here / "ourpack" / "rules.py").write_text(RULES.replace('row["response"]', 'row["respnse"]'))
    found = check(Draft(config=config_of(), problems=[])).problems
    assert len(found) == 1
    assert "no column 'respnse'" in found[0] and "ourpack/rules.py, line 6" in found[0]
