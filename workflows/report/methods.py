"""The table of methods: `selfloop methods`."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from importlib import resources
from typing import TYPE_CHECKING

from selfloop.workflows.errors import InputError

if TYPE_CHECKING:
    from selfloop.workflows.flow.recipe import Recipe

__all__ = ["configs_of", "methods_table"]


def configs_of() -> dict[str, list[str]]:
    """Shipped configs by the recipe they name."""
    found: dict[str, list[str]] = {}
    files = (file for file in resources.files("selfloop.configs").iterdir() if file.name.endswith(".yaml"))
    for file in sorted(files, key=lambda file: file.name):
        match = re.search(r"^recipe:\s*([\w-]+)", file.read_text("utf-8"), re.MULTILINE)
        if match:
            found.setdefault(match[1], []).append(file.name.removesuffix(".yaml"))
    return found


def methods_table(width: int = 80) -> str:
    """slug, kind, labels, paper, configs: a line a method, in columns; configs on lines of their own where it is narrow. Of a
    method that an installed package gives, where it comes from takes the place of configs."""
    from selfloop.workflows.recipes import RECIPES

    configs = {slug: f"configs: {', '.join(names)}" for slug, names in configs_of().items()}
    rows = [("method", "kind", "answers", "paper", "configs")]
    for slug, recipe in sorted(RECIPES.items()):
        rows.append((*about(slug, recipe), configs.get(slug, "configs: -")))
    rows += installed_rows()
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    heads = ["  ".join(f"{row[i]:<{widths[i]}}" for i in range(4)) for row in rows]
    lines = [f"{head}  {row[4].removeprefix('configs: ')}" for head, row in zip(heads, rows, strict=True)]
    if max(map(len, lines)) <= width:
        return "\n".join(lines)
    below = [textwrap.wrap(row[4], width, initial_indent="  ", subsequent_indent="  ") for row in rows]
    return "\n".join(
        [
            heads[0].rstrip(),
            *("\n".join([head.rstrip(), *more]) for head, more in zip(heads[1:], below[1:], strict=True)),
        ]
    )


def about(slug: str, recipe: type[Recipe]) -> tuple[str, str, str, str]:
    return slug, recipe.kind, "not needed" if recipe.label_free else "needed", recipe.paper


def installed_rows() -> Iterator[tuple[str, str, str, str, str]]:
    """The methods that installed packages give (entry points `selfloop.recipes`), with where they come from."""
    from selfloop.workflows.recipes import RECIPES
    from selfloop.workflows.recipes.outside import clashes, installed_methods, load_method, origin_of

    for slug, points in installed_methods().items():
        wrong = clashes(RECIPES, slug, points)
        for point in points:
            origin = f"from {origin_of(point)}: {point.value}"
            try:
                told = about(slug, load_method(point.value))
            except InputError as error:
                told, wrong = (slug, "-", "-", "-"), str(error)
            yield (*told, f"{origin}. It cannot be used by this name: {wrong}" if wrong else origin)
