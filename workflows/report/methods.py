"""The table of methods: `selfloop methods`."""

from __future__ import annotations

import re
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


def methods_table() -> str:
    """slug, kind, labels, paper, configs: one line a method, in columns."""
    from selfloop.workflows.recipes import RECIPES

    configs = configs_of()
    rows = [("method", "kind", "answers", "paper", "configs")]
    for slug, recipe in sorted(RECIPES.items()):
        answers = "not needed" if recipe.label_free else "needed"
        rows.append((slug, recipe.kind, answers, recipe.paper, ", ".join(configs.get(slug, ["-"]))))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join([*(f"{row[i]:<{widths[i]}}" for i in range(4)), row[4]]).rstrip() for row in rows
    )
