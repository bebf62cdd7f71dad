"""The methods: one file each, listed here by slug. A new method is one file, one line here, one config."""

from __future__ import annotations

from selfloop.workflows.flow.recipe import Recipe
from selfloop.workflows.recipes.imitation.expert_iteration import ExpertIteration
from selfloop.workflows.recipes.imitation.finetune import Finetune
from selfloop.workflows.recipes.preference.self_consistency import SelfConsistency
from selfloop.workflows.recipes.preference.self_rewarding import SelfRewarding
from selfloop.workflows.recipes.preference.spin import SelfPlay
from selfloop.workflows.recipes.reinforcement.grpo import GroupRelative

__all__ = ["RECIPES", "Recipe"]

RECIPES: dict[str, type[Recipe]] = {
    "expert-iteration": ExpertIteration,
    "finetune": Finetune,
    "grpo": GroupRelative,
    "self-consistency-reward": SelfConsistency,
    "self-rewarding": SelfRewarding,
    "spin": SelfPlay,
}
