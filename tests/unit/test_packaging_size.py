"""The size budget of our own code: small functions, small files, recipes of one page."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path for folder in ("actors", "workflows", "configs", "door") for path in (ROOT / folder).rglob("*.py")
)
FUNCTION_P90 = 40
FUNCTION_MAX = 60
FILE_P90 = 350
FILE_MAX = 600
RECIPE_MAX = 120
RECIPE_MEDIAN = 80
HELPERS = ("__init__.py", "outside.py")


def percentile(values: list[int], share: float) -> int:
    """The value that this share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def functions() -> dict[str, int]:
    """Lines of every function, decorators and docstring included."""
    found: dict[str, int] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                found[f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"] = (
                    node.end_lineno - node.lineno + 1
                )
    return found


def largest(sizes: dict[str, int], over: int) -> str:
    """The offenders, for the message of a failing test."""
    return "\n".join(
        f"{size} {name}" for name, size in sorted(sizes.items(), key=lambda item: -item[1]) if size > over
    )


def test_functions_are_short() -> None:
    sizes = functions()
    assert percentile(list(sizes.values()), 0.9) <= FUNCTION_P90, largest(sizes, FUNCTION_P90)
    assert max(sizes.values()) <= FUNCTION_MAX, largest(sizes, FUNCTION_MAX)


def test_files_are_short() -> None:
    sizes = {str(path.relative_to(ROOT)): lines_of(path) for path in FILES}
    assert percentile([size for size in sizes.values() if size], 0.9) <= FILE_P90, largest(sizes, FILE_P90)
    assert max(sizes.values()) <= FILE_MAX, largest(sizes, FILE_MAX)


def test_a_recipe_is_a_page() -> None:
    paths = [path for path in (ROOT / "workflows" / "recipes").rglob("*.py") if path.name not in HELPERS]
    sizes = {path.name: lines_of(path) for path in paths}
    assert sizes
    assert max(sizes.values()) <= RECIPE_MAX, largest(sizes, RECIPE_MAX)
    assert percentile(list(sizes.values()), 0.45) <= RECIPE_MEDIAN, largest(sizes, RECIPE_MEDIAN)
