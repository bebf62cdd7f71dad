"""The methods: one file each, listed here by slug. A new method is one file, one line here, one config."""

from __future__ import annotations

from selfloop.workflows.recipes.base import Recipe
from selfloop.workflows.recipes.expert_iteration import ExpertIteration
from selfloop.workflows.recipes.finetune import Finetune
from selfloop.workflows.recipes.grpo import GroupRelative
from selfloop.workflows.recipes.self_consistency import SelfConsistency
from selfloop.workflows.recipes.self_rewarding import SelfRewarding
from selfloop.workflows.recipes.spin import SelfPlay

__all__ = ["RECIPES", "Recipe"]

RECIPES: dict[str, type[Recipe]] = {
    "expert-iteration": ExpertIteration,
    "finetune": Finetune,
    "grpo": GroupRelative,
    "self-consistency-reward": SelfConsistency,
    "self-rewarding": SelfRewarding,
    "spin": SelfPlay,
}
