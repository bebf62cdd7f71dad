"""The user's own code is tried before a run starts: what it does wrong, in a sentence with its place."""

from __future__ import annotations

import importlib
import json
import random
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest

from selfloop.workflows.checks import problems
from selfloop.workflows.checks.trial import try_code, try_graph
from selfloop.workflows.config import Config, Prompts, read_config
from selfloop.workflows.config.file import config_names
from selfloop.workflows.errors import RecipeError, blamed
from selfloop.workflows.flow.recipe import Recipe
from selfloop.workflows.objectives.dpo import DPO
from selfloop.workflows.objectives.sft import SFT
from selfloop.workflows.recipes import RECIPES
from selfloop.workflows.rules.keep import BestOfN
from selfloop.workflows.rules.pairs import best_against_worst
from selfloop.workflows.run.setup import Setup


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Expert iteration with a judge in a module of the working folder: the problems that are found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = [{"prompt": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(20)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def found(code: str, **more: Any) -> list[str]:
        name = f"mine_{abs(hash(code))}"
        Path(f"{name}.py").write_text(textwrap.dedent(code))
        importlib.invalidate_caches()
        config = Config(recipe="expert-iteration", judge=f"{name}:check",
                        prompts=Prompts(source="rows.jsonl", heldout=4), **more)  # fmt: skip
        return [text.replace(name, "mine").replace(str(tmp_path), "") for text in problems(config)]

    return found


def test_a_good_judge_has_no_problem(judged: Any) -> None:
    assert judged("def check(row):\n    return row['response'] == row['answer']\n") == []


def test_a_judge_that_raises(judged: Any) -> None:
    found = judged("def check(row):\n\n    return {}['nope']\n")
    assert len(found) == 1, found  # said once, though held-out prompts are judged too
    assert "KeyError: 'nope'" in found[0]
    assert found[0].startswith("node 'judge': the judge failed on 128 of 128 responses")
    assert "/mine.py, line 3)" in found[0]


def test_a_judge_of_other_columns(judged: Any) -> None:
    found = judged("def check(row):\n    return float(row['completion_text'] == row['answer'])\n")
    assert "completion_text" in found[0]
    assert "line 2" in found[0]


def test_a_judge_of_wrong_arity(judged: Any) -> None:
    assert "takes 0 positional arguments" in judged("def check():\n    return 1.0\n")[0]


def test_a_judge_that_hangs_is_a_note_and_not_waited_for(judged: Any, tmp_path: Path) -> None:
    Path("slow.py").write_text("import time\ndef check(row):\n    time.sleep(60)\n")
    config = Config(
        recipe="expert-iteration", judge="slow:check", prompts=Prompts(source="rows.jsonl", heldout=4)
    )
    started = time.monotonic()
    tried = try_code(Setup(config), seconds=0.5)
    assert time.monotonic() - started < 30
    assert tried.problems == []
    assert "in node 'judge'" in tried.notes[0]


def test_a_judge_may_ask_not_to_be_tried(judged: Any) -> None:
    assert judged("def check(row):\n    raise KeyError('nope')\ncheck.trial = False\n") == []


def test_the_trial_leaves_no_trace_in_this_process(judged: Any) -> None:
    assert judged("CALLS = []\ndef check(row):\n    CALLS.append(1)\n    print('x')\n    return 1.0\n") == []
    module = next(
        module
        for name, module in sys.modules.items()
        if name.startswith("mine_") and hasattr(module, "CALLS")
    )
    assert module.CALLS == []


# Recipes


class Own(Recipe):
    """A recipe whose middle is given by its test."""

    what: str = ""

    def iteration(self, it: Any) -> Any:
        answers = it.prompts().sample(it.policy, n=4)
        return MIDDLES[self.what](self, it, answers)


def finish(it: Any, rows: Any) -> Any:
    return it.policy.train(rows, SFT(), reference=None, optimizer="fresh")


def keeps_unscored(self: Any, it: Any, answers: Any) -> Any:
    return finish(it, answers.keep(BestOfN()))


def pairs_unscored(self: Any, it: Any, answers: Any) -> Any:
    return it.policy.train(answers.pair(best_against_worst), DPO(), reference=it.policy, optimizer="fresh")


def typo_in_objective(self: Any, it: Any, answers: Any) -> Any:
    return it.policy.train(answers, DPO(bta=0.1), reference=it.policy, optimizer="fresh")  # type: ignore[call-arg]


def typo_in_verb(self: Any, it: Any, answers: Any) -> Any:
    return finish(it, it.prompts(name="again").sample(it.policy, tmperature=1.0))


def rule_of_one_argument(rows: Any) -> Any:
    return rows


def arity(self: Any, it: Any, answers: Any) -> Any:
    return finish(it, answers.keep(rule_of_one_argument))


def undeclared(row: Any, rng: random.Random) -> dict[str, Any]:
    return {"quality": 1.0}


def maps_undeclared(self: Any, it: Any, answers: Any) -> Any:
    return finish(it, answers.map(undeclared))


def reads_nothing_there(table: Any, rng: random.Random) -> Any:
    return table.filter(table["quality"])


def gathers(self: Any, it: Any, answers: Any) -> Any:
    return finish(it, answers.gather(reads_nothing_there))


def picky(rows: Any, rng: random.Random) -> Any:
    raise ValueError("these rows are too few for me")


def refuses_few(self: Any, it: Any, answers: Any) -> Any:
    return finish(it, answers.keep(picky))


async def broken_program(player: Any, rows: Any, rng: random.Random) -> Any:
    return player.polcy


def plays(self: Any, it: Any, answers: Any) -> Any:
    return finish(it, answers.play(broken_program, policy=it.policy))


MIDDLES: dict[str, Any] = {
    one.__name__: one
    for one in (keeps_unscored, pairs_unscored, typo_in_objective, typo_in_verb, arity, maps_undeclared, gathers,
                refuses_few, plays)
}  # fmt: skip


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("keeps_unscored", "node 'keep' reads score, and 'sample' before it has only"),
        ("pairs_unscored", "node 'pair' reads score, and 'sample' before it has only"),
        ("typo_in_objective", "Own.iteration raised ValidationError: DPO does not take bta=0.1"),
        ("typo_in_verb", "Own.iteration raised TypeError"),
        ("arity", "takes 1 positional argument but 2 were given"),
        ("maps_undeclared", "gave rows with the column 'quality', which nobody declared"),
        ("gathers", "KeyError"),
        ("plays", "this play has no model 'polcy'"),
    ],
)
def test_a_mistake_in_a_recipe_is_found(what: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "own", Own)
    found = problems(own(what))
    assert len(found) == 1, found
    assert said in found[0]
    if what not in ("keeps_unscored", "pairs_unscored", "maps_undeclared", "plays"):
        assert "test_checks_trial.py, line " in found[0] or what == "arity"


def own(what: str) -> Config:
    return Config(recipe="own", settings={"what": what}, prompts=Prompts(heldout=8, options={"size": 16}))


def test_what_may_come_of_invented_rows_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "own", Own)
    tried = try_code(Setup(own("refuses_few")))
    assert tried.problems == []
    assert "these rows are too few for me" in tried.notes[0]


def test_a_class_may_ask_not_to_be_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    class Costly(Own):
        trial: ClassVar[bool] = False

    monkeypatch.setitem(RECIPES, "own", Costly)
    assert try_code(Setup(own("arity"))).problems == []


@pytest.mark.parametrize("name", config_names())
def test_what_comes_with_selfloop_passes_the_trial(name: str) -> None:
    draft = read_config(name, ["model=pocket", "prompts=pocket", "prompts.heldout=8"])
    if draft.config is None or draft.config.data:
        pytest.skip("its rows are on a hub, or in a file that the user gives")
    tried = list(try_graph(Setup(draft.config)))[-1]
    assert (tried.problems, tried.notes) == ([], [])


def test_blame_goes_to_the_users_line() -> None:
    def broken() -> None:
        json.loads("{")  # the library raises, this line is to blame

    with pytest.raises(ValueError, match="Expecting property name") as caught:
        broken()
    text = blamed(caught.value)
    assert Path(__file__).name in text
    line = int(text.rsplit(" ", 1)[1].rstrip(")"))
    assert "json.loads" in Path(__file__).read_text().splitlines()[line - 1]
    assert blamed(RecipeError("never raised")) == ""
