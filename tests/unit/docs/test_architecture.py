"""docs/architecture.md and cluster/ say what is there: every folder, every name of code, the layers of the import rule."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```\n(.*?)```", PAGE, re.DOTALL)
NAMED = re.findall(r"`((?:workflows|actors|door|tests|configs|cluster)/[\w/.]*)(?:: ([\w.]+))?`", PAGE)


def folders(top: str) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / top).rglob("*")
        if path.is_dir() and list(path.glob("*.py")) and "__pycache__" not in path.parts
    } | {top}


def drawn() -> set[str]:
    """The folders of the tree, by their indents."""
    found, above = set[str](), dict[int, str]()
    for line in BLOCKS[0].splitlines():
        indent = len(line) - len(line.lstrip())
        above[indent] = line.split()[0].rstrip("/")
        found.add("/".join(above[step] for step in range(0, indent + 1, 2)))
    return found


@pytest.mark.parametrize("top", ["workflows", "actors"])
def test_the_tree_has_every_folder_and_no_other(top: str) -> None:
    assert {path for path in drawn() if path.split("/")[0] == top} == folders(top)


def defined(path: Path) -> set[str]:
    """Functions, classes and methods of a file, as `name` and `Class.name`."""
    found = set[str]()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef))
            found |= {f"{node.name}.{method.name}" for method in methods}
    return found


def test_every_place_named_is_there() -> None:
    places = [(ROOT / path, name) for path, name in NAMED if not re.search("[A-Z]{3}", path)]
    assert len(places) > 40
    assert [str(path) for path, _ in places if not path.exists()] == []
    assert [(str(path), name) for path, name in places if name and name not in defined(path)] == []


def test_the_layers_are_those_that_are_checked() -> None:
    rule = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    layers = [
        layer.replace("selfloop.workflows.", "")
        .replace("selfloop.actors.", "actors/")
        .replace("selfloop.names", "door")
        for layer in rule["layers"]
    ]
    assert BLOCKS[1].splitlines() == layers


def test_rays_own_schema_takes_the_cluster_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "cluster" / "ray" / "cluster.yaml").read_text(encoding="utf-8"))
    validate_config(prepare_config(config))
    config["head_start_commands"] = []  # a misspelt key is seen
    with pytest.raises(Exception, match="head_start_commands"):
        validate_config(config)


def test_the_submission_says_how_it_is_used() -> None:
    script = ROOT / "cluster" / "ray" / "submit.sh"
    done = subprocess.run([script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "RUN_FOLDER" in done.stderr and "#" not in done.stderr
