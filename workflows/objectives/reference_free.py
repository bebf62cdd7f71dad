"""Preference losses without a reference: CPO on sums, SimPO on means with a target margin."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from selfloop.workflows.objectives.base import Batch, Loss, Objective, Term
from selfloop.workflows.objectives.dpo import pair_logs
from selfloop.workflows.objectives.maths import log_ratio, nll_term, soft_logistic, weighed

__all__ = ["CPO", "SimPO"]


class CPO(Objective):
    """Contrastive preference optimization: DPO with a uniform reference, plus the NLL of the chosen response.

    Formula: S(y) = sum_t log pi_t, x = beta (S_w - S_l) - gamma, L = -log s(x) + a NLL(y_w). hinge: max(0, 1 - x).
    Label smoothing e: -(1-e) log s(x) - e log s(-x). length_normalized (CPO-SimPO): S is a mean
    Source: Xu et al. 2024, arXiv 2401.08417; official code fe1ixxu/ALMA (January 2024)
    Tokens: the preference sums over response tokens and averages over pairs; the NLL is divided by ALL chosen tokens
    of the global batch (official code; the paper's text has a mean of sums).
    Differs: 1) The adaptive factor of the repository's later method (ARPO) is not in it.
    """

    views: ClassVar[tuple[str, ...]] = ("chosen", "rejected")

    beta: float = Field(default=0.1, gt=0, description="temperature (runs/cpo_ft.sh)")
    loss: Literal["sigmoid", "hinge"] = Field(default="sigmoid", description="variant")
    gamma: float = Field(default=0.0, ge=0, description="target margin of x, beta already in it")
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5, description="e (sigmoid only)")
    nll_coefficient: float = Field(default=1.0, ge=0, description="a")
    length_normalized: bool = Field(default=False, description="S is a mean over tokens")

    def compute(self, batch: Batch) -> Loss:
        chosen, rejected = (
            log_ratio(batch, view, reference=False, average=self.length_normalized) for view in self.views
        )
        x = self.beta * (chosen - rejected) - self.gamma
        values = (1 - x).clamp(min=0) if self.loss == "hinge" else soft_logistic(x, 1 - self.label_smoothing)
        terms = {"preference": Term(weighed(values, batch))}
        if self.nll_coefficient:
            terms["nll"] = nll_term(batch, "chosen", "tokens", self.nll_coefficient)
        return Loss(terms, logs=pair_logs(batch, self.beta * chosen, self.beta * rejected))


class SimPO(CPO):
    """Simple preference optimization: the mean log-prob is the reward, and chosen must lead by a margin.

    Formula: m(y) = (1/|y|) sum_t log pi_t, x = beta (m_w - m_l) - gamma, L = -log s(x). hinge: max(0, 1 - x). The
    code's gamma_beta_ratio g is gamma / beta
    Source: Meng, Xia, Chen 2024, arXiv 2405.14734; official code princeton-nlp/SimPO
    Tokens: means over response tokens, then mean over pairs; the optional NLL is divided by all chosen tokens of the
    global batch.
    """

    beta: float = Field(default=2.0, gt=0, description="temperature (Llama3-Base and Mistral-Base runs)")
    gamma: float = Field(
        default=1.0, ge=0, description="target margin = beta g (g 0.5: Llama3-Base run, start of tuning)"
    )
    nll_coefficient: float = Field(default=0.0, ge=0, description="the code's sft_weight")
    length_normalized: bool = Field(default=True, description="mean over tokens")
