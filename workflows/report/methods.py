"""The table of methods: `selfloop methods`."""

from __future__ import annotations

import re
import textwrap
from importlib import resources

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
    """slug, kind, labels, paper, configs: a line a method, in columns; configs on lines of their own where it is narrow."""
    from selfloop.workflows.recipes import RECIPES

    configs = configs_of()
    rows = [("method", "kind", "answers", "paper", "configs")]
    for slug, recipe in sorted(RECIPES.items()):
        answers = "not needed" if recipe.label_free else "needed"
        rows.append((slug, recipe.kind, answers, recipe.paper, ", ".join(configs.get(slug, ["-"]))))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    heads = ["  ".join(f"{row[i]:<{widths[i]}}" for i in range(4)) for row in rows]
    lines = [f"{head}  {row[4]}" for head, row in zip(heads, rows, strict=True)]
    if max(map(len, lines)) <= width:
        return "\n".join(lines)
    below = [
        textwrap.wrap(f"configs: {row[4]}", width, initial_indent="  ", subsequent_indent="  ")
        for row in rows
    ]
    return "\n".join(
        [
            heads[0].rstrip(),
            *("\n".join([head.rstrip(), *more]) for head, more in zip(heads[1:], below[1:], strict=True)),
        ]
    )
