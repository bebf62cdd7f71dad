"""Training objectives: pure functions from columns of log-probs to a Loss, one explicit dict of them."""

from __future__ import annotations

from selfloop.workflows.objectives.base import Batch, Loss, Normalizer, Objective, Term
from selfloop.workflows.objectives.dpo import CREAM, DNO, DPO, IRPO, LNDPO, SPIN, RewardAugmentedDPO, ScPO
from selfloop.workflows.objectives.sft import SFT

__all__ = [
    "CREAM",
    "DNO",
    "DPO",
    "IRPO",
    "LNDPO",
    "OBJECTIVES",
    "SFT",
    "SPIN",
    "Batch",
    "Loss",
    "Normalizer",
    "Objective",
    "RewardAugmentedDPO",
    "ScPO",
    "Term",
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
}
