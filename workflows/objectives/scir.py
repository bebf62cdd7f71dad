"""SCIR: a model's judge and its implicit reward are pulled together; DPO only where they agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from selfloop.workflows.objectives.base import Batch, Loss, Objective, Term
from selfloop.workflows.objectives.dpo import pair_logs
from selfloop.workflows.objectives.maths import log_ratio, soft_logistic, total, weighed

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SCIR", "entropy", "symmetric_kl"]


class SCIR(Objective):
    """Self-consistent internal rewards.

    Formula: p = judge's probability that y1 is better (mean of both orders), q = s(beta (r(y1) - r(y2))), r = log-ratio
    to the reference, L = w_C [KL(p||q) + KL(q||p) + w_H (H(p) + H(q))] + 1[p, q on one side of 1/2] (-log s(beta (d+ -
    d-)))
    Source: Zhou et al. 2025, arXiv 2502.08922 (abstract, figure and summaries; weights and form of r are ours)
    Tokens: the DPO part sums over response tokens; r averages (length_normalized) or sums; mean over all pairs.
    Differs: 1) y1 is `chosen`, y2 `rejected`, unordered: the agreement says which one wins. 2) The judge's letters are
    four views of one trained token: `first_a`, `first_b` under the prompt that shows (y1, y2), `second_a`, `second_b`
    under (y2, y1); p is normalised over the two letters, and has gradient. 3) With theta = reference q is 1/2 and
    nothing agrees: give an earlier model as reference. 4) w_C 1 and w_H 0.1 are ours,
    and of the two corrections for length the mean over tokens.
    """

    views: ClassVar[tuple[str, ...]] = ("chosen", "rejected", "first_a", "first_b", "second_a", "second_b")

    beta: float = Field(default=0.1, gt=0, description="temperature of the implicit reward (ours)")
    consistency_coefficient: float = Field(default=1.0, ge=0, description="w_C (ours)")
    entropy_coefficient: float = Field(default=0.1, ge=0, description="w_H (ours)")
    dpo_coefficient: float = Field(
        default=1.0, ge=0, description="weight of the DPO part (1 in the paper's sum)"
    )
    length_normalized: bool = Field(
        default=True, description="q from means over tokens, against length bias; False: from sums"
    )

    @property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """Log-probs of policy and reference of both answers, of the policy alone for the letters."""
        both = dict.fromkeys(self.views[:2], ("logprobs", "reference_logprobs"))
        return {**both, **dict.fromkeys(self.views[2:], ("logprobs",))}

    def compute(self, batch: Batch) -> Loss:
        import torch

        judge, implicit = self._logits(batch)
        spread = entropy(judge) + entropy(implicit)
        penalty = symmetric_kl(judge, implicit) + self.entropy_coefficient * spread
        chosen, rejected = (self.beta * log_ratio(batch, view) for view in ("chosen", "rejected"))
        p, q = judge.detach().sigmoid(), implicit.detach()
        first, second = (p > 0.5) & (q > 0), (p < 0.5) & (q < 0)
        x = torch.where(first, chosen - rejected, rejected - chosen)
        gated = torch.where(first | second, soft_logistic(x), torch.zeros_like(x))
        terms = {
            "consistency": Term(weighed(penalty, batch), weight=self.consistency_coefficient),
            "preference": Term(weighed(gated, batch), weight=self.dpo_coefficient),
        }
        logs = pair_logs(batch, chosen, rejected)
        logs |= {"agreement": (first | second).to(x.dtype), "disagreement": (p - q.sigmoid()).abs()}
        return Loss(terms, logs=logs)

    def _logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits of p and q."""
        from torch.nn.functional import logsigmoid

        first = total(batch, "first_a") - total(batch, "first_b")
        second = total(batch, "second_b") - total(batch, "second_a")
        # log of the sum over both orders of P(y1), less the same of P(y2): the logit of their mean.
        judge = logsigmoid(first).logaddexp(logsigmoid(second)) - logsigmoid(-first).logaddexp(
            logsigmoid(-second)
        )
        rewards = [log_ratio(batch, view, average=self.length_normalized) for view in ("chosen", "rejected")]
        return judge, self.beta * (rewards[0] - rewards[1])


def symmetric_kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(p||q) + KL(q||p) of two Bernoulli distributions given as logits: (p - q)(logit p - logit q)."""
    return (a.sigmoid() - b.sigmoid()) * (a - b)


def entropy(logit: Tensor) -> Tensor:
    """Entropy of a Bernoulli distribution given as a logit, nats."""
    from torch.nn.functional import softplus

    p = logit.sigmoid()
    return p * softplus(-logit) + (1 - p) * softplus(logit)
