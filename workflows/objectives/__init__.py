"""Training objectives: pure functions from columns of log-probs to a Loss, one explicit dict of them."""

from __future__ import annotations

from selfloop.workflows.objectives.base import Batch, Loss, Normalizer, Objective, Term
from selfloop.workflows.objectives.binary import BCO, KTO
from selfloop.workflows.objectives.control import DGA, MORE, ControlLLM
from selfloop.workflows.objectives.cut import CUT
from selfloop.workflows.objectives.dpo import CREAM, DNO, DPO, IRPO, LNDPO, SPIN, RewardAugmentedDPO, ScPO
from selfloop.workflows.objectives.irepo import IREPO
from selfloop.workflows.objectives.muscle import MUSCLE
from selfloop.workflows.objectives.odds import ASFT, ORPO
from selfloop.workflows.objectives.poft import POFT
from selfloop.workflows.objectives.policy_gradient import GRPO, GSPO, PPO, SAR, ValueLoss
from selfloop.workflows.objectives.ranking import AFT, D2O, PRO
from selfloop.workflows.objectives.reference_free import CPO, SimPO
from selfloop.workflows.objectives.reward_model import BradleyTerry, BradleyTerryRanking, DMoERM
from selfloop.workflows.objectives.rrpo import RRPO
from selfloop.workflows.objectives.sami import SAMI
from selfloop.workflows.objectives.scir import SCIR
from selfloop.workflows.objectives.sft import SFT

__all__ = [
    "AFT",
    "ASFT",
    "BCO",
    "CPO",
    "CREAM",
    "CUT",
    "D2O",
    "DGA",
    "DNO",
    "DPO",
    "GRPO",
    "GSPO",
    "IREPO",
    "IRPO",
    "KTO",
    "LNDPO",
    "MORE",
    "MUSCLE",
    "OBJECTIVES",
    "ORPO",
    "POFT",
    "PPO",
    "PRO",
    "RRPO",
    "SAMI",
    "SAR",
    "SCIR",
    "SFT",
    "SPIN",
    "Batch",
    "BradleyTerry",
    "BradleyTerryRanking",
    "ControlLLM",
    "DMoERM",
    "Loss",
    "Normalizer",
    "Objective",
    "RewardAugmentedDPO",
    "ScPO",
    "SimPO",
    "Term",
    "ValueLoss",
]

OBJECTIVES: dict[str, type[Objective]] = {
    "sft": SFT,
    "dpo": DPO,
    "simpo": SimPO,
    "ln-dpo": LNDPO,
    "kto": KTO,
    "bco": BCO,
    "cpo": CPO,
    "orpo": ORPO,
    "asft": ASFT,
    "pro": PRO,
    "poft": POFT,
    "rrpo": RRPO,
    "d2o": D2O,
    "bradley-terry": BradleyTerry,
    "bradley-terry-ranking": BradleyTerryRanking,
    "reward-augmented-dpo": RewardAugmentedDPO,
    "grpo": GRPO,
    "gspo": GSPO,
    "ppo": PPO,
    "ppo-value": ValueLoss,
    "spin": SPIN,
    "irpo": IRPO,
    "self-consistency-reward": ScPO,
    "dno": DNO,
    "irepo": IREPO,
    "cut": CUT,
    "aft": AFT,
    "cream": CREAM,
    "scir": SCIR,
    "sar": SAR,
    "sami": SAMI,
    "muscle": MUSCLE,
    "control-llm": ControlLLM,
    "more": MORE,
    "dmoerm": DMoERM,
}
"""Every objective by its slug."""
