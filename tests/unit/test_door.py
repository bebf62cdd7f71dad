"""The door: `from selfloop import …` has what methods are made of, documented, used, and lazy."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import selfloop
from selfloop import names
from selfloop.workflows import objectives
from selfloop.workflows.cli.new import PAGE

ROOT = Path(__file__).parents[2]
# What methods may import beside the door: judges and the pocket world, which are many; figures of objectives; and
# what a family of methods shares.
BESIDE = ("judges", "objectives", "pocket", "recipes", "synthesis", "decoding")
PAGES = sorted(
    path
    for pages in (
        "workflows/recipes/*/*.py",
        "workflows/synthesis/*.py",
        "workflows/decoding/*.py",
        "tests/recipes/sketches/*.py",
    )
    for path in ROOT.glob(pages)
)
GUIDES = sorted((ROOT / "docs").glob("*.md"))


def imports(text: str) -> list[tuple[str, str]]:
    """(module, name) of each name of Selfloop that a text imports; the name is empty for a whole module."""
    found: list[tuple[str, str]] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [(node.module, one.name) for one in node.names]
        elif isinstance(node, ast.Import):
            found += [(one.name, "") for one in node.names]
    return [(module, name) for module, name in found if module.partition(".")[0] == "selfloop"]


def documented(name: str) -> bool:
    """Whether a name of the door says what it is: by its docstring, or by the string after the alias that it is."""
    thing = getattr(names, name)
    if inspect.isclass(thing) or inspect.isfunction(thing):
        return (
            bool((thing.__doc__ or "").strip())
            and thing.__doc__ != getattr(thing, "__base__", object).__doc__
        )
    sources = [
        ROOT / module.removeprefix("selfloop.").replace(".", "/") for module, of in door() if of == name
    ]
    texts = [
        (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text() for path in sources
    ]
    texts += [path.read_text(encoding="utf-8") for path in (ROOT / "workflows" / "objectives").glob("*.py")]
    said = rf'^{name}\b[^\n]* = (?:[^\n]*|\{{\n(?: [^\n]*\n)*\}})\n"""\S'
    return any(re.search(said, text, re.MULTILINE) for text in texts)


def door() -> list[tuple[str, str]]:
    return imports((ROOT / "door" / "names.py").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", names.__all__)
def test_every_name_says_what_it_is(name: str) -> None:
    assert documented(name)


def test_the_docstring_names_them_all_but_the_objectives() -> None:
    told = set(re.findall(r"`(\w+)`", selfloop.__doc__ or ""))
    assert set(names.__all__) - set(objectives.__all__) <= told <= set(names.__all__)
    assert {"Objective", "Batch", "Term", "Loss", "OBJECTIVES"} <= told


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_methods_import_from_the_door(path: Path) -> None:
    for module, name in imports(path.read_text(encoding="utf-8")):
        room = module.split(".")[2] if module.startswith("selfloop.workflows.") else module
        assert module == "selfloop" or room in BESIDE, f"{module} is no part of the door"
        assert module == "selfloop" or name not in names.__all__, f"{name} is in the door"


def test_every_name_has_a_user() -> None:
    texts = [path.read_text(encoding="utf-8") for path in PAGES]
    texts.append(PAGE)
    for guide in GUIDES:
        texts += re.findall(
            r"^```python\n(.*?)^```", guide.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        )
    used = {name for text in texts for module, name in imports(text) if module == "selfloop"}
    assert set(names.__all__) - set(objectives.__all__) - used == set()


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    program = """
import sys
before = set(sys.modules)
import selfloop
new = set(sys.modules) - before
print(sorted(name for name in new if name.partition(".")[0] not in sys.stdlib_module_names))
from selfloop import Recipe
print([name for name in ("torch", "ray", "vllm", "deepspeed", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['selfloop']", "[]"]


def test_the_command_does_not_open_the_door() -> None:
    program = """
import sys
from selfloop.workflows.cli import app
try:
    app(["--help"])
except SystemExit:
    print([name for name in ("selfloop.names", "pyarrow", "torch") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(AttributeError, match="module 'selfloop' has no attribute 'Recipes'"):
        _ = selfloop.Recipes
    assert {"Recipe", "SFT"} <= set(dir(selfloop))
    assert not {"objectives", "annotations"} & set(dir(selfloop))
