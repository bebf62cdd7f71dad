"""Training objectives: pure functions from columns of log-probs to a Loss, one explicit dict of them."""

from __future__ import annotations

from selfloop.workflows.objectives.base import Batch, Loss, Normalizer, Objective, Term
from selfloop.workflows.objectives.dpo import CREAM, DNO, DPO, IRPO, LNDPO, SPIN, RewardAugmentedDPO, ScPO
from selfloop.workflows.objectives.policy_gradient import GRPO, PPO, SAR, ValueLoss
from selfloop.workflows.objectives.sft import SFT

__all__ = [
    "CREAM",
    "DNO",
    "DPO",
    "GRPO",
    "IRPO",
    "LNDPO",
    "OBJECTIVES",
    "PPO",
    "SAR",
    "SFT",
    "SPIN",
    "Batch",
    "Loss",
    "Normalizer",
    "Objective",
    "RewardAugmentedDPO",
    "ScPO",
    "Term",
    "ValueLoss",
]

OBJECTIVES: dict[str, type[Objective]] = {
    "sft": SFT,
    "dpo": DPO,
    "ln-dpo": LNDPO,
    "spin": SPIN,
    "irpo": IRPO,
    "self-consistency-reward": ScPO,
    "reward-augmented-dpo": RewardAugmentedDPO,
    "cream": CREAM,
    "dno": DNO,
    "grpo": GRPO,
    "sar": SAR,
    "ppo": PPO,
    "ppo-value": ValueLoss,
}
