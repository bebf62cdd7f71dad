"""PoFT: supervised fine-tuning that must beat aligned models' likelihood of each answer."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from selfloop.workflows.objectives.base import Batch, Loss, Objective, Term
from selfloop.workflows.objectives.maths import mean, soft_logistic, weighed

__all__ = ["POFT"]


class POFT(Objective):
    """Preference-oriented supervised fine-tuning.

    Formula: r = (1/|y|) sum_t log p(y_t), rbar = mean over the aligned models of their own mean log-prob of y, L = -log
    s(beta (r - rbar) + gamma). rbar is the column `score`
    Source: Fan et al. 2024, arXiv 2412.12865; official code Savannah120/alignment-handbook-PoFT
    Tokens: mean over response tokens, then mean over samples.
    Differs: 1) r covers the response alone; the released trainer's covers the whole chat text.
    """

    columns: ClassVar[tuple[str, ...]] = ("score",)

    beta: float = Field(default=1.0, gt=0, description="temperature (code)")
    gamma: float = Field(default=0.0, description="offset (code)")

    def compute(self, batch: Batch) -> Loss:
        x = self.beta * (mean(batch, "response") - batch["score"]) + self.gamma
        logs = {"logprob": mean(batch, "response").detach(), "share_of_sft": (-x).sigmoid().detach()}
        return Loss({"preference": Term(weighed(soft_logistic(x), batch))}, logs=logs)
