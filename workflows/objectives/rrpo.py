"""RRPO: preference on marked phrases only, and a token-wise KL on the whole chosen answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from selfloop.workflows.objectives.base import Batch, Loss, Objective, Term
from selfloop.workflows.objectives.dpo import pair_logs
from selfloop.workflows.objectives.maths import soft_logistic, weighed

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["RRPO"]


class RRPO(Objective):
    """Refined regularized preference optimization.

    Formula: l_t = log pi_t - log pi_ref,t, u = beta (sum of l_t over chosen tokens in phrases - the same of rejected),
    K = sum over ALL chosen tokens of KL(pi_ref || pi) over the whole vocabulary, L = -log s(u) + alpha K
    Source: Sarkar and Etemad 2025, arXiv 2504.12083; official code pritamqu/RRPO
    Tokens: both parts sum over response tokens, mean over pairs.
    Differs: 1) `chosen_phrase` and `rejected_phrase` hold 0 outside phrases; any other number is inside one (the sum
    over phrases makes their numbering irrelevant). 2) `token_kl`, with its gradient, comes from the trainer,
    which holds the reference beside the policy for it (`full_kl` on the logits of both, by chunks of positions).
    """

    views: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    columns: ClassVar[tuple[str, ...]] = ("chosen_phrase", "rejected_phrase")

    beta: float = Field(
        default=0.1, gt=0, description="temperature (LLaVA-Video-7B; LongVU-7B 0.5, VideoChat2-7B 0.9)"
    )
    alpha: float = Field(
        default=0.01, ge=0, description="weight of the KL (LLaVA-Video-7B; LongVU-7B 0.05); 0: none is read"
    )

    @property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """Log-probs of policy and reference; of chosen also the full KL of each token."""
        names = ("logprobs", "reference_logprobs")
        return {"chosen": (*names, "token_kl") if self.alpha else names, "rejected": names}

    def compute(self, batch: Batch) -> Loss:
        chosen, rejected = (self.beta * _phrase_ratio(batch, view) for view in self.views)
        terms = {"preference": Term(weighed(soft_logistic(chosen - rejected), batch))}
        if self.alpha:
            terms["kl"] = Term(
                weighed(batch["chosen.token_kl"], batch), batch["chosen.mask"], "examples", self.alpha
            )
        return Loss(terms, logs=pair_logs(batch, chosen, rejected))


def _phrase_ratio(batch: Batch, view: str) -> Tensor:
    inside = (batch[f"{view}.phrase"] != 0) & (batch[f"{view}.mask"] > 0)
    return ((batch[f"{view}.logprobs"] - batch[f"{view}.reference_logprobs"]) * inside).sum(-1)
