"""Short texts."""

from __future__ import annotations

from selfloop.workflows.recipes import RECIPES, Recipe
from selfloop.workflows.report.text import title_of


class Titled(Recipe):
    title = "Mine"


def test_a_method_is_called_by_title_and_paper_else_as_the_config_does() -> None:
    assert title_of(RECIPES["spin"], "spin") == "Self-Play Fine-Tuning (SPIN) (arXiv 2401.01335)"
    assert title_of(Titled(), "mine:Titled") == "Mine"
    assert title_of(Recipe, "mine:Bare") == "mine:Bare"
    assert title_of(None, "gone") == "gone"
