"""Short texts: of models and users, made safe for a terminal, and what a method is called."""

from __future__ import annotations

import re

from selfloop.workflows.flow.recipe import Recipe

__all__ = ["clean", "title_of"]

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def clean(text: str) -> str:
    """Model output for a terminal: one line, no control characters."""
    return CONTROL.sub(" ", text).strip()


def title_of(recipe: Recipe | type[Recipe] | None, slug: str) -> str:
    """What a method is called: its title, with the paper where it has one, else how the config names it."""
    if recipe is None or not recipe.title:
        return slug
    return f"{recipe.title} ({recipe.paper})" if recipe.paper else recipe.title
