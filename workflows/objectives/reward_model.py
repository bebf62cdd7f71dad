"""Objectives of scalar reward models: Bradley-Terry on pairs and rankings, MORE and DMoERM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from selfloop.workflows.objectives.base import Batch, Loss, Objective, Term
from selfloop.workflows.objectives.columns import Domain
from selfloop.workflows.objectives.maths import soft_logistic, weighed
from selfloop.workflows.objectives.ranking import better_worse, rank_of, share_of_pairs

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BradleyTerry", "BradleyTerryRanking", "DMoERM"]


class BradleyTerry(Objective):
    """Bradley-Terry reward model on pairs of rewards read from a scalar head at the last response token.

    Formula: x = r_w - r_l - margin, L = -p log s(x) - (1-p) log s(-x) + c (r_w + r_l)^2; p is `label` (1 without it),
    margin the column `margin` (0 without it)
    Source: Ouyang et al. 2022, arXiv 2203.02155; margins: Llama 2, arXiv 2307.09288; centering:
    Eisenstein et al. 2023, arXiv 2312.09244
    Tokens: none; mean over pairs.
    Differs: 1) A tie of rewards counts half in the accuracy.
    """

    views: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    optional: ClassVar[tuple[str, ...]] = ("weight", "margin", "label")
    domains: ClassVar[Mapping[str, Domain]] = {"label": "unit"}

    centering: float = Field(
        default=0.0, ge=0, description="c; 0.01 pins the free constant at 0 (TRL's coefficient)"
    )

    @property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """The scalar head's reward of each side (`chosen_rewards`, `rejected_rewards`)."""
        return dict.fromkeys(self.views, ("rewards",))

    def compute(self, batch: Batch) -> Loss:
        chosen, rejected = batch["chosen.rewards"], batch["rejected.rewards"]
        x = chosen - rejected
        if "margin" in batch:
            x = x - batch["margin"]
        terms = {"pair": Term(weighed(soft_logistic(x, batch.get("label", 1.0)), batch))}
        if self.centering:
            terms["centering"] = Term(weighed((chosen + rejected) ** 2, batch), weight=self.centering)
        gap = (chosen - rejected).detach()
        logs = {"accuracy": (gap.sign() + 1) / 2, "reward_margin": gap, "chosen_reward": chosen.detach()}
        return Loss(terms, logs=logs)


class BradleyTerryRanking(Objective):
    """Bradley-Terry reward model on rankings: all pairs of one prompt in one row, so each answer is encoded once.

    Formula: L = mean over pairs with different rank of -log s(r_better - r_worse), then mean over prompts
    Source: Ouyang et al. 2022, arXiv 2203.02155
    Tokens: none. Ties are in no pair; a row without a pair costs 0 and still counts as a prompt.
    """

    views: ClassVar[tuple[str, ...]] = ("ranked",)
    columns: ClassVar[tuple[str, ...]] = ("rank",)
    alternatives: ClassVar[Mapping[str, str]] = {"rank": "scores"}

    centering: float = Field(
        default=0.0, ge=0, description="weight of the mean square of (r_better + r_worse)"
    )

    @property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """The scalar head's reward of each candidate (`ranked_rewards`, (rows, k))."""
        return {"ranked": ("rewards",)}

    def compute(self, batch: Batch) -> Loss:
        rewards, pairs = batch["ranked.rewards"], better_worse(rank_of(batch))
        gaps = rewards[:, :, None] - rewards[:, None, :]
        terms = {"pair": Term(weighed(_pair_mean(soft_logistic(gaps), pairs), batch))}
        if self.centering:
            squares = (rewards[:, :, None] + rewards[:, None, :]) ** 2
            terms["centering"] = Term(weighed(_pair_mean(squares, pairs), batch), weight=self.centering)
        logs = {"accuracy": share_of_pairs((gaps.sign() + 1) / 2, pairs)}
        return Loss(terms, logs=logs)


class DMoERM(BradleyTerryRanking):
    """Double-layer mixture-of-experts reward model: each phase trains on the ranking loss, one prompt a row.

    Formula: L = mean over pairs with different rank of -log s(R_better - R_worse)
    Source: Quan 2024, arXiv 2403.01197
    Tokens: none; mean over pairs of a prompt, then over prompts.
    Differs: 1) Router, adapters and fusion are models, not losses: see `experts`. They need the `adapt` hook (several
    LoRA adapters on one base, a head on their joined hidden states).
    """


def _pair_mean(values: Tensor, pairs: Tensor) -> Tensor:
    """Mean over each row's pairs, (rows,); 0 for a row without one."""
    import torch

    kept = torch.where(pairs, values, torch.zeros_like(values))
    return kept.sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)
