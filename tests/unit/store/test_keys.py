"""Content keys know the values behind the code: other prompts, checkers and settings are other nodes, equal ones are not."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import textwrap
import threading
from dataclasses import dataclass, field
from enum import Enum
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
from pydantic import BaseModel

from selfloop.workflows.flow.plan import HeldoutSummary
from selfloop.workflows.judges import answers
from selfloop.workflows.judges.math import expressions
from selfloop.workflows.judges.math import worker as math_worker
from selfloop.workflows.judges.prompts import frames, mtbench, rubric
from selfloop.workflows.judges.reading import numbers
from selfloop.workflows.judges.verifiers import FunctionVerifier, Math, Number, resolve, verifier
from selfloop.workflows.pocket import roles
from selfloop.workflows.recipes import RECIPES
from selfloop.workflows.store import canonical, keys
from selfloop.workflows.store.keys import content_key, identity

JUDGE = """
import re
from dataclasses import dataclass
from typing import ClassVar
from selfloop.workflows.judges.base import PromptJudge

TEXT = "Rate it: "
LABEL = "a" + "b"
LIMITS = {"low": [0, 1], "high": (5,)}
SCORE = re.compile("a")
SEEN = {}

@dataclass(frozen=True)
class Settings:
    level: int = 1

USED = Settings(1)

def asked(row):
    return helper(row)

def helper(row, end="!"):
    SEEN[row["response"]] = SEEN.setdefault("calls", 0)
    return TEXT + row["response"] + end + str(USED.level)

class J(PromptJudge):
    marks: ClassVar = ("x", LABEL)

    def messages(self, row):
        return [{"role": "user", "content": asked(row)}]

    def parse(self, text):
        return float(SCORE.findall(text)[0]) if LIMITS else None
"""


def module_of(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module `mine` with this text, as a process that finds it in a folder of its own imports it."""
    folder.mkdir()
    (folder / "mine.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    resolve.cache_clear()
    return importlib.import_module("mine")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"Rate it: "', '"Is it harmful? "'),
        ('"a" + "b"', '"a" + "c"'),
        ("(5,)", "(6,)"),
        ('re.compile("a")', 're.compile("a", re.IGNORECASE)'),
        ("USED = Settings(1)", "USED = Settings(2)"),
        ('end="!"', 'end="?"'),
    ],
)
def test_a_judge_is_another_when_a_constant_of_its_file_is_edited(
    old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert old in JUDGE
    texts = (JUDGE, JUDGE.replace(old, new), JUDGE.replace("SEEN = {}", "SEEN = {'filled': 1}"))
    first, edited, filled = (identity(module_of(text, tmp_path / str(place), monkeypatch).J())
                             for place, text in enumerate(texts))  # fmt: skip
    assert first != edited and first == filled  # what the code itself fills is no setting


@pytest.mark.parametrize(
    ("module", "name", "judge"),
    [
        (rubric, "TASK", rubric.AdditiveRubric()),
        (rubric, "_SCORE", rubric.AdditiveRubric()),
        (rubric, "BARE", rubric.ScoreOnly()),
        (mtbench, "POINT", mtbench.Pointwise()),
        (frames, "GUARD", mtbench.Pointwise()),  # three functions away
        (frames, "GUARD", rubric.ScoreOnly()),
        (frames, "DIGITS", rubric.AdditiveRubric()),
        (roles, "LONGEST", roles.PocketPointJudge()),
        (roles, "LONGEST", roles.PocketComparison()),  # through shown
        (answers, "LONGEST", FunctionVerifier(path="selfloop.workflows.judges.answers:equivalent")),
        (numbers, "LONGEST", Number()),
        (expressions, "SHORT", Math.model_construct()),
        (math_worker, "CONSTANTS", Math.model_construct()),  # named in another process only
    ],
)
def test_selfloop_judges_know_their_prompts(
    module: Any, name: str, judge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = identity(judge)
    other = 7 if isinstance(vars(module)[name], int) else re.compile("other") if name == "_SCORE" else "other"
    monkeypatch.setattr(module, name, other)
    keys.hash_of.cache_clear()
    after = identity(judge)
    keys.hash_of.cache_clear()
    assert before != after


def test_a_class_knows_the_constants_of_its_body_and_of_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(text: str) -> Any:
        class Judge(BaseModel):
            prompt: ClassVar[str] = text
            shown: str = text

        return Judge

    assert identity(made("a")) == identity(made("a")) != identity(made("b"))

    def rule(rows: Any) -> Any:
        return rows[: constants.LEVEL]  # type: ignore[name-defined]  # noqa: F821

    module = type(sys)("tests.unit.constants")
    monkeypatch.setitem(globals(), "constants", module)
    found: list[Any] = []
    for level in (1, 2):
        vars(module).update(LEVEL=level)
        keys.hash_of.cache_clear()
        found.append(identity(rule))
    assert found[0] != found[1]


def test_a_verifier_of_ones_own_counts_by_the_functions_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ("def check(row): return 1.0\n", "def check(row): return 0.0\n",
             "from functools import partial\ndef one(row, k): return k\ncheck = partial(one, k=1)\n",
             "from functools import partial\ndef one(row, k): return k\ncheck = partial(one, k=2)\n",
             "RIGHT = 1.0\ndef check(row): return RIGHT\n", "RIGHT = 0.5\ndef check(row): return RIGHT\n")  # fmt: skip
    found: list[str] = []
    for place, text in enumerate((*texts, texts[0])):
        module_of(text, tmp_path / str(place), monkeypatch)
        found.append(json.dumps(identity(verifier("mine:check"))))
    assert len(set(found)) == len(texts) and found[-1] == found[0]


def rule(rows: Any, rng: Any, k: int = 0) -> Any:
    return rows[:k]


def other_rule(rows: Any, rng: Any, k: int = 0) -> Any:
    return rows[-k:]


def test_a_partial_counts_by_function_and_arguments() -> None:
    made = [partial(rule, k=1), partial(rule, k=8), partial(rule, 1), partial(rule, 8), partial(other_rule, k=1),
            partial(partial(rule, 1), k=2), partial(helped, rule), partial(helped, other_rule)]  # fmt: skip
    found = [json.dumps(identity(one)) for one in made]
    assert len(set(found)) == len(found)
    assert identity(partial(rule, k=1)) == identity(partial(rule, k=1))


def helped(function: Any, rows: Any) -> Any:
    return function(rows)


def with_k(k: Any) -> Any:
    def cut(rows: Any, rng: Any) -> Any:
        return rows[:k]

    return cut


def with_default(k: Any) -> Any:
    def cut(rows: Any, rng: Any, most: Any = k, *, least: Any = 0) -> Any:
        return rows[least:most]

    return cut


def with_keyword_default(k: Any) -> Any:
    def cut(rows: Any, *, most: Any = k) -> Any:
        return rows[:most]

    return cut


def again(k: int) -> Any:
    def down(n: int) -> int:
        return down(n - k) if n else 0

    return down


@cache
def cached(value: int) -> int:
    return rule([value], None)


@pytest.mark.parametrize("make", [with_k, with_default, with_keyword_default, again])
def test_functions_count_by_what_they_carry(make: Any) -> None:
    assert identity(make(1)) == identity(make(1)) != identity(make(8))


def test_a_closure_over_functions_counts_by_theirs() -> None:
    assert identity(with_k(with_k(1))) == identity(with_k(with_k(1))) != identity(with_k(with_k(8)))
    assert identity(with_k(rule)) != identity(with_k(other_rule))
    assert identity(with_k([with_k(1), with_k(2)])) != identity(with_k([with_k(2), with_k(1)]))
    assert identity(lambda rows: rows[:1]) != identity(lambda rows: rows[:2])
    assert identity(cached)[0] == "cached" and identity(cached) != identity(rule)


@dataclass(frozen=True)
class Cut:
    k: int
    only: frozenset[str] = frozenset("abc")
    rule: Any = rule

    def __call__(self, rows: Any, rng: Any) -> Any:
        return rows[: self.k]


class Plain:
    def __init__(self, k: Any) -> None:
        self.k = k

    def __call__(self, rows: Any) -> Any:
        return rows


class Slots(Plain):
    __slots__ = ("more",)


class Colour(Enum):
    RED = 1
    BLUE = 2


@dataclass
class Holder:
    inside: Any = None
    seen: list[Any] = field(default_factory=list)


def test_objects_count_by_their_fields() -> None:
    assert identity(HeldoutSummary(100)) == identity(HeldoutSummary(100)) != identity(HeldoutSummary(5000))
    different: list[Any] = [
        *(Cut(1), Cut(8), Cut(1, frozenset("ab")), Cut(1, rule=other_rule), Cut(1).__call__, Cut(8).__call__),
        *(
            Plain(1),
            Plain(8),
            Plain(Plain(1)),
            Plain([Cut(1)]),
            Slots(1),
            Slots(8),
            Holder(Plain(1)),
            Holder(Plain(2)),
        ),
        *(
            Colour.RED,
            Colour.BLUE,
            re.compile("a"),
            re.compile("a", re.IGNORECASE),
            re.compile("b" * 300 + "a"),
        ),
        *(re.compile("b" * 300 + "b"), re.compile("a").search, re.compile("b").search, np.arange(2000)),
        *(
            np.arange(2000) + (np.arange(2000) == 1000),
            np.arange(3.0),
            pa.int64(),
            pa.float64(),
            Path("a"),
            b"a",
        ),
        *({1: 2}, {"1": 3}, {(1, 2): "x"}, Holder(with_k(1)), Holder(with_k(2)), len, sum),
    ]
    found = [json.dumps(identity(one), sort_keys=True) for one in different]
    assert len(set(found)) == len(found)


def test_what_has_no_stable_words_counts_by_its_type() -> None:
    for make in (threading.Lock, object, lambda: Plain(threading.Lock()), lambda: iter([1])):
        assert identity(make()) == identity(make())
    assert " at 0x" not in json.dumps(identity([threading.Lock(), Plain(object()), Holder(object()), print]))


def test_circles_end() -> None:
    def circle(k: int) -> Any:
        holder = Holder(k)
        holder.seen += [holder, [holder.seen], with_k(holder), again(k)]
        return holder

    assert identity(circle(1)) == identity(circle(1)) != identity(circle(2))


def keys_of_recipes() -> str:
    """The key of every node of every recipe, and the identities of things with sets and closures in them."""
    from selfloop.workflows.run.setup import Setup
    from tests.recipes.runs import pocket_config

    found: dict[str, Any] = {}
    for slug in sorted(RECIPES):
        planner = Setup(pocket_config(slug, iterations=3)).planner
        for index in range(3):
            for node in planner.graph(index):
                models = {model.name: "model" for model in node.models}
                name = f"{slug}/{index}/{node.name}"
                found[name] = [
                    content_key(node, dict.fromkeys(node.inputs, "rows"), models, {}), node.settings
                ]  # fmt: skip
    more = [{"a", "b", ("c", 1)}, Cut(2), with_k({"x", "y"}), Plain(frozenset("abc")), partial(rule, {1, "z"}),
            {("a", 1): {"q", "r"}}, rubric.AdditiveRubric(), mtbench.Pairwise(), identity, FunctionVerifier,
            Colour.RED, again(1), threading.Lock(), Plain, re.compile("a"), lambda: {"a", "b"} & {"c", "d"}]  # fmt: skip
    return json.dumps([found, list(map(identity, more))], sort_keys=True)


def test_every_node_of_every_recipe_has_the_same_key_in_every_process() -> None:
    code = "from tests.unit.store.test_keys import keys_of_recipes; print(keys_of_recipes())"
    one, two = (
        subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PATH": ""}, text=True,
                       capture_output=True, check=True).stdout
        for seed in ("1", "2")
    )  # fmt: skip
    assert one == two and len(json.loads(one)[0]) > 50
    assert " at 0x" not in one


def test_the_example_of_the_docstring_is_what_the_key_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, entries = keys.__doc__.partition("beside it,")[2].partition("the key knows this JSON")[::2]
    known = json.loads("[[" + entries.partition("[[")[2].rpartition("]]]")[0] + "]]]")
    texts = known[0][1]
    made = modules_of({"mine": textwrap.dedent(code), "texts": texts}, tmp_path / "mine", monkeypatch)
    assert sorted(json.loads(json.dumps(keys.entries(made.rule_of("a"))))) == known


class Judge(BaseModel):
    level: int = 0

    def parse(self, text: str) -> None: ...


def test_the_examples_of_values_are_what_is_said_of_them() -> None:
    lines = re.findall(r"^    (\S.*?) {2,}(\S.*)$", canonical.__doc__ or "", re.MULTILINE)
    said = canonical.Canonical(lambda *_: "CODE")
    for value, words in lines:
        assert said.of(eval(value)) == json.loads(words.replace("CODE", '"CODE"')), value
    assert len(lines) == 8


# Where code lives does not count; what it reaches does


def modules_of(texts: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The first of these modules, imported from a folder of its own."""
    folder.mkdir()
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(folder)
    resolve.cache_clear()
    return importlib.import_module(next(iter(texts)))


RULE = "from aid import clean\n\ndef rule(rows, rng):\n    return [clean(row) for row in rows]\n"
CLEAN = "def clean(row):\n    return row\n"


@pytest.mark.parametrize(
    ("texts", "same"),
    [
        ({"mine": RULE, "aid": CLEAN}, True),
        ({"theirs": RULE, "aid": CLEAN}, True),  # a moved file
        ({"mine": RULE.replace("aid", "other"), "other": CLEAN}, True),  # a moved helper
        ({"mine": RULE.replace("from aid import clean", "import os\nfrom aid import clean"), "aid": CLEAN}, True),
        ({"mine": CLEAN + RULE.replace("from aid import clean\n", "")}, True),  # everything in one file
        ({"mine": RULE.replace("from aid import clean\n", "").replace("    return", "    from aid import clean\n    return"),
          "aid": CLEAN}, True),  # imported inside the function
        ({"mine": RULE, "aid": CLEAN.replace("return row", "return None")}, False),
        ({"mine": RULE, "aid": "from more import clean\n", "more": CLEAN}, True),
        ({"mine": RULE, "aid": "from more import clean\n", "more": CLEAN.replace("return row", "return None")}, False),
        ({"mine": RULE.replace("from aid import clean\n", "").replace("    return", "    from aid import clean\n    return"),
          "aid": CLEAN.replace("return row", "return None")}, False),
    ],
)  # fmt: skip
def test_code_may_move_and_its_helpers_count(
    texts: dict[str, str], same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = identity(modules_of({"mine": RULE, "aid": CLEAN}, tmp_path / "first", monkeypatch).rule)
    other = identity(modules_of(texts, tmp_path / "other", monkeypatch).rule)
    assert (first == other) is same


def test_a_helper_named_through_its_module_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = "import aid\ndef rule(rows, rng):\n    return aid.clean(rows)\n"
    found = [
        identity(modules_of({"mine": rule, "aid": text}, tmp_path / str(place), monkeypatch).rule)
        for place, text in enumerate((CLEAN, CLEAN, CLEAN.replace("return row", "return None")))
    ]
    assert found[0] == found[1] != found[2]


def test_code_of_selfloop_that_ones_own_names_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from selfloop.workflows.judges.answers import equivalent\n\ndef rule(rows, rng):\n    return equivalent(rows, rows)\n"
    made = modules_of({"mine": text}, tmp_path / "mine", monkeypatch)
    before = identity(made.rule)
    monkeypatch.setattr(answers, "LONGEST", 7)
    keys.hash_of.cache_clear()
    after = identity(made.rule)
    keys.hash_of.cache_clear()
    assert before != after


def test_equal_names_in_two_modules_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = "from a import f as one\nfrom b import f as two\ndef rule(rows, rng):\n    return one(rows), two(rows)\n"
    x, y = "def f(rows):\n    return 1\n", "def f(rows):\n    return 2\n"
    found = [
        identity(modules_of({"mine": rule, "a": a, "b": b}, tmp_path / str(place), monkeypatch).rule)
        for place, (a, b) in enumerate(((x, y), (y, x), (x, y)))
    ]
    assert found[0] == found[2] != found[1]


def test_functions_that_call_each_other_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "def even(n):\n    return n == 0 or odd(n - 1)\n\ndef odd(n):\n    return n != 0 and even(n - 1)\n"
    first = modules_of({"mine": text}, tmp_path / "a", monkeypatch)
    known = identity(first.even), identity(first.odd)
    other = modules_of({"mine": text.replace("n != 0", "n != 1")}, tmp_path / "b", monkeypatch)
    assert known[0] != known[1]
    assert identity(other.even) != known[0] and identity(other.odd) != known[1]


RECIPE = """
from selfloop.workflows.flow.recipe import Recipe

LIMIT = 3

class Mine(Recipe):
    most: int = 2

    def iteration(self, it):
        return it.policy.train(it.prompts().keep(self.rule), "loss")

    def rule(self, rows, rng):
        return self.first(rows)

    def first(self, rows):
        return rows[: self.most][:LIMIT]

    def unused(self, rows):
        return rows
"""


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ('"loss"', '"another loss"', True),  # the page changed, not this node
        ("        return rows\n", "        return None\n", True),
        ("rows[: self.most]", "rows[self.most :]", False),
        ("LIMIT = 3", "LIMIT = 4", False),
        ("most: int = 2", "most: int = 5", False),
    ],
)
def test_a_recipes_own_rule_counts_by_what_it_reaches(
    old: str, new: str, same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert old in RECIPE
    found = [
        identity(modules_of({"mine": text}, tmp_path / str(place), monkeypatch).Mine().rule)
        for place, text in enumerate((RECIPE, RECIPE.replace(old, new)))
    ]
    assert (found[0] == found[1]) is same


def test_a_verifier_by_path_may_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules_of({"mine": CLEAN}, tmp_path / "a", monkeypatch)
    first = identity(verifier("mine:clean"))
    modules_of({"theirs": CLEAN}, tmp_path / "b", monkeypatch)
    assert identity(verifier("theirs:clean")) == first


def test_no_module_path_is_in_a_key() -> None:
    told = json.dumps(keys.entries(type(rubric.AdditiveRubric())))
    assert "AdditiveRubric#0" in told
    assert "selfloop." not in re.sub(
        r'"(?:[^"\\]|\\.)*?\\n(?:[^"\\]|\\.)*"', "", told
    )  # beside what sources say themselves


def test_a_key_does_not_know_what_was_imported_before() -> None:
    """torch is named by objectives and imported late: its classes are not one's own code, seen before or after."""
    code = "from selfloop.workflows.store.canonical import installed\nprint(installed('torch'), installed('torch.nn'))"
    for before in ("", "import torch\n"):
        ran = subprocess.run(
            [sys.executable, "-c", before + code], capture_output=True, text=True, check=True
        )
        assert ran.stdout.split() == ["True", "True"]
