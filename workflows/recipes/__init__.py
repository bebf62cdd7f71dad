"""The methods: one file each, listed here by slug. A new method is one file, one line here, one config.

One of a user's own is `module:Class` in a config, or an entry point of an installed package: `find_method` knows all of them.
"""

from __future__ import annotations

from selfloop import Recipe
from selfloop.workflows.recipes.imitation.expert_iteration import ExpertIteration
from selfloop.workflows.recipes.imitation.finetune import Finetune
from selfloop.workflows.recipes.outside import find_in
from selfloop.workflows.recipes.preference.self_consistency import SelfConsistency
from selfloop.workflows.recipes.preference.self_rewarding import SelfRewarding
from selfloop.workflows.recipes.preference.spin import SelfPlay
from selfloop.workflows.recipes.reinforcement.grpo import GroupRelative

__all__ = ["RECIPES", "Recipe", "find_method"]

RECIPES: dict[str, type[Recipe]] = {
    "expert-iteration": ExpertIteration,
    "finetune": Finetune,
    "grpo": GroupRelative,
    "self-consistency-reward": SelfConsistency,
    "self-rewarding": SelfRewarding,
    "spin": SelfPlay,
}


def find_method(name: str) -> type[Recipe] | None:
    """The method that a config calls so: a slug, or `module:Class`; None for an unknown slug. Raises InputError."""
    return find_in(RECIPES, name)
