"""`recipe: module:Class`: a method of one's own is found, and what is wrong with it is said with the way out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from selfloop.workflows.checks import inspect as check
from selfloop.workflows.config import read_config
from selfloop.workflows.flow.verbs.judge import JudgeBy
from selfloop.workflows.recipes import GroupRelative, find_method, outside
from selfloop.workflows.report.methods import methods_table
from selfloop.workflows.run.setup import Setup

RECIPE = """
from selfloop.workflows.flow.recipe import Recipe
from selfloop.workflows.objectives.sft import SFT


class Mine(Recipe):
    samples: int = 2

    def iteration(self, it):
        answers = it.prompts().sample(it.policy, n=self.samples)
        return it.policy.train(answers, SFT(), reference=None, optimizer="fresh")
"""
HEAD = "from selfloop.workflows.flow.recipe import Recipe\n\n\nclass Mine(Recipe):\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder; modules that its files make are forgotten again."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name, module in [*sys.modules.items()]:
        if str(getattr(module, "__file__", "")).startswith(f"{tmp_path}/"):
            del sys.modules[name]


def problems(*overrides: str) -> list[str]:
    return read_config("quickstart", ["settings={}", *overrides]).problems


def test_a_class_of_the_working_folder_is_a_method(here: Path) -> None:
    (here / "own_method.py").write_text(RECIPE)
    draft = read_config("quickstart", ["settings={samples: 3}", "recipe=own_method:Mine"])
    assert draft.problems == [] and draft.config is not None
    recipe = Setup(draft.config).recipe
    assert (type(recipe).__name__, recipe.model_dump()) == ("Mine", {"samples": 3})
    assert "sample" in {node.name for node in Setup(draft.config).planner.graph(1)}


def test_its_settings_are_checked_like_those_of_any_method(here: Path) -> None:
    (here / "own_settings.py").write_text(RECIPE)
    wrong = read_config("quickstart", ["settings={sampels: 3}", "recipe=own_settings:Mine"]).problems
    assert len(wrong) == 1
    assert (
        "settings.sampels is not a setting of own_settings:Mine. Did you mean settings.samples?" in wrong[0]
    )


def test_it_may_lie_in_a_package(here: Path) -> None:
    (here / "pack_a" / "deep").mkdir(parents=True)
    (here / "pack_a" / "deep" / "method.py").write_text(RECIPE)
    assert problems("recipe=pack_a.deep.method:Mine") == []


@pytest.mark.parametrize(
    ("file", "text", "recipe", "said"),
    [
        ("right_one", RECIPE, "rigth_one:Mine", ("No module named 'rigth_one'", "it must be installed, or lie in the folder", "Did you mean right_one:Mine?")),
        ("typo", RECIPE, "typo:Mien", ("module typo has no 'Mien'. Did you mean typo:Mine?",)),
        ("dotted", RECIPE, "dotted.py:Mine", ("named without .py. Write dotted:Mine",)),
        ("slash", RECIPE, "./slash.py:Mine", ("is not module:Name", "Write e.g. mine:Name")),
        ("slash2", RECIPE, "sub/slash2.py:Mine", ("is not module:Name", "Write sub.slash2:Mine")),
        ("plain", RECIPE + "\n\nclass Other:\n    pass\n", "plain:Other", ("is the class Other, and no Recipe", "Did you mean plain:Mine?")),
        ("function", RECIPE + "\n\ndef other():\n    pass\n", "function:other", ("is a function, and no Recipe", "Did you mean function:Mine?")),
        ("bare", HEAD + "    samples: int = 2\n", "bare:Mine", ("has no iteration(self, it)",)),
        ("untyped", HEAD + "    samples = 4\n", "untyped:Mine", ("untyped.py, line 4) has no type. Write samples: int = 4",)),
        ("unknown", "from __future__ import annotations\n" + HEAD + "    samples: Foo = 4\n\n    def iteration(self, it): ...\n", "unknown:Mine", ("the type of a setting cannot be read: name 'Foo' is not defined",)),
        ("syntax", "def f(:\n", "syntax:Mine", ("SyntaxError: invalid syntax", "syntax.py, line 1). Mend it")),
        ("name", "x = 1\ny = z\n", "name:Mine", ("NameError: name 'z' is not defined", "name.py, line 2). Mend it")),
        ("needs", "\nimport no_such_package\n", "needs:Mine", ("No module named 'no_such_package'", "needs.py, line 2). Install what is missing")),
        ("leaves", "raise SystemExit(3)\n", "leaves:Mine", ("SystemExit: 3", "leaves.py, line 1)")),
    ],
)  # fmt: skip
def test_a_mistake_is_said_with_the_way_out(
    file: str, text: str, recipe: str, said: tuple[str, ...], here: Path
) -> None:
    (here / f"{file}.py").write_text(text)
    (found,) = problems(f"recipe={recipe}")
    assert found.startswith("command line: recipe=")
    for part in said:
        assert part in found


class Package:
    """What `entry_points` knows of the package that a point is of."""

    name = "their-methods"
    version = "1.2"
    metadata: dict[str, str] = {}  # noqa: RUF012


def points(monkeypatch: pytest.MonkeyPatch, **named: str) -> None:
    found = [vars(EntryPoint(name.replace("_", "-"), value, outside.GROUP)) for name, value in named.items()]
    made = [EntryPoint(one["name"], one["value"], one["group"]) for one in found]
    for one in made:
        vars(one)["dist"] = Package()
    monkeypatch.setattr(outside, "entry_points", lambda group: made if group == "selfloop.recipes" else [])


def test_an_installed_package_gives_methods(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "their_method.py").write_text(RECIPE)
    points(monkeypatch, their_way="their_method:Mine")
    assert problems("recipe=their-way") == []
    method = find_method("their-way")
    assert method is not None and method.__name__ == "Mine"


def test_a_slug_that_clashes_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "their_clash.py").write_text(RECIPE)
    points(monkeypatch, grpo="their_clash:Mine")
    (found,) = problems("recipe=grpo")
    assert "recipe is 'grpo', and several methods have that name: " in found
    assert "selfloop.workflows.recipes.reinforcement.grpo:GroupRelative (Selfloop's own)" in found
    assert (
        "their_clash:Mine (their-methods 1.2)" in found and "Write the one you mean as module:Class" in found
    )
    assert problems("recipe=selfloop.workflows.recipes.reinforcement.grpo:GroupRelative") == []
    assert find_method("selfloop.workflows.recipes.reinforcement.grpo:GroupRelative") is GroupRelative


def test_methods_are_listed_with_where_they_come_from(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "their_listed.py").write_text(RECIPE)
    points(monkeypatch, their_way="their_listed:Mine", grpo="their_listed:Mine", gone="no_such_module_x:Mine")
    lines = {line.split()[0]: line for line in methods_table(2000).splitlines()}
    assert lines["their-way"].endswith("from their-methods 1.2: their_listed:Mine")
    clash = next(
        line for line in methods_table(2000).splitlines() if "grpo " in line and "from their-methods" in line
    )
    assert "It cannot be used by this name: several methods have that name" in clash
    assert "No module named 'no_such_module_x'" in lines["gone"]


# Parts of one's own where a method's settings take them

PARTS = """
from selfloop import DPO, PromptJudge, Rule


class Loss(DPO):
    margin: float = 0.5


class Asks(PromptJudge):
    def messages(self, row):
        return [{"role": "user", "content": "Rate it."}]

    def parse(self, text):
        return 1.0


class Needs(PromptJudge):
    words: str


judge = Asks()


def rule(rows, rng):
    return [(rows[0], rows[-1])]


class Ranked(Rule):
    def __call__(self, rows, rng):
        return [(rows[0], rows[-1])]


number = 3
"""
PAIRS = ["prompts=pocket", "data={train: {source: pocket, options: {preferences: true}}}"]


def test_an_objective_of_ones_own(here: Path) -> None:
    (here / "parts_a.py").write_text(PARTS)
    draft = read_config(
        "quickstart",
        [
            "recipe=finetune",
            "settings={objective: 'parts_a:Loss', options: {margin: 0.7}, test: null}",
            *PAIRS,
        ],
    )
    assert draft.problems == [] and draft.config is not None
    training = Setup(draft.config).planner.graph(1).nodes["train"].training
    assert training is not None and type(training.objective).__name__ == "Loss"
    assert training.objective.model_dump()["margin"] == 0.7


@pytest.mark.parametrize("judge", ["parts_b:Asks", "parts_b:judge"])
@pytest.mark.parametrize("rule", ["parts_b:rule", "parts_b:Ranked"])
def test_a_judge_and_a_rule_of_ones_own(judge: str, rule: str, here: Path) -> None:
    (here / "parts_b.py").write_text(PARTS)
    draft = read_config(
        "quickstart", ["recipe=self-rewarding", f"settings={{judge: '{judge}', rule: '{rule}'}}"]
    )
    assert draft.problems == [] and draft.config is not None
    nodes = {node.name: node for node in Setup(draft.config).planner.graph(1)}
    op = nodes["judge"].op
    assert isinstance(op, JudgeBy) and type(op.judge).__name__ == "Asks"
    assert nodes["pair"].settings != {node.name: node for node in shipped()}["pair"].settings


def shipped() -> list[Any]:
    draft = read_config("quickstart", ["recipe=self-rewarding", "settings={}"])
    assert draft.config is not None
    return list(Setup(draft.config).planner.graph(1))


@pytest.mark.parametrize(
    ("recipe", "settings", "said"),
    [
        ("finetune", "objective: 'parts_c:Los'", "settings.objective=parts_c:Los: module parts_c has no 'Los'. Did you mean parts_c:Loss?"),
        ("finetune", "objective: 'parts_c:rule'", "settings.objective=parts_c:rule is a function, and no Objective. Did you mean parts_c:Loss?"),
        ("finetune", "objective: 'parts_c:Loss', options: {mrgin: 1}", "The options of parts_c:Loss are "),
        ("self-rewarding", "judge: rubrik", "settings.judge is 'rubrik', and must be rubric, pocket, or module:name for one of your own. Did you mean rubric?"),
        ("self-rewarding", "judge: 'parts_c:number'", "settings.judge=parts_c:number is an int, and no PromptJudge. Did you mean parts_c:Asks?"),
        ("self-rewarding", "judge: 'parts_c:Needs'", "settings.judge=parts_c:Needs is a class that cannot be made without settings"),
        ("self-rewarding", "rule: 'parts_c:number'", "settings.rule=parts_c:number is an int, and a rule is a function"),
        ("self-rewarding", "rule: 'parts_d:rule'", "settings.rule=parts_d:rule: module parts_d cannot be imported (No module named 'parts_d')"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_part_is_said(recipe: str, settings: str, said: str, here: Path) -> None:
    (here / "parts_c.py").write_text(PARTS)
    draft = read_config("quickstart", [f"recipe={recipe}", f"settings={{{settings}}}", *PAIRS])
    found = list(draft.problems)
    if not found and draft.config is not None:
        found = check(draft).problems
    assert any(said in text for text in found), found
