"""Losses on odds of the length-normalised likelihood P = exp(mean log-prob): ORPO and ASFT."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from selfloop.workflows.objectives.base import Batch, Loss, Normalizer, Objective, Term
from selfloop.workflows.objectives.dpo import pair_logs
from selfloop.workflows.objectives.maths import log1mexp, mean, nll_term, soft_logistic, weighed

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ASFT", "ORPO", "log_odds"]


class ORPO(Objective):
    """Odds ratio preference optimization: SFT on the chosen response plus a small odds-ratio penalty.

    Formula: m(y) = (1/|y|) sum_t log pi_t, odds(y) = m - log(1 - e^m), r = odds_w - odds_l, L = NLL(y_w) + lambda
    (-log s(b r)). lambda is `beta`, as in TRL; b is `temperature`
    Source: Hong, Lee, Thorne 2024, arXiv 2403.07691; b: Gorbatovski et al. 2025, arXiv 2502.01237
    Tokens: the odds use means over response tokens, then the mean over pairs; the NLL is divided by all chosen tokens
    of the global batch (as the official code does), or per response with nll_normalizer="sequence-mean".
    Differs: 1) Prompt tokens are never in the NLL (the official code's disable_prompt_loss). 2) m is held at -1e-6
    or below, so that a certain response stays finite.
    """

    views: ClassVar[tuple[str, ...]] = ("chosen", "rejected")

    beta: float = Field(
        default=0.1, ge=0, description="lambda, weight of the odds part (Mistral-ORPO; 0.25 for Llama-2)"
    )
    temperature: float = Field(
        default=1.0, gt=0, description="b; 0.2 to 0.7 worked better after a separate SFT stage"
    )
    nll_coefficient: float = Field(
        default=1.0, ge=0, description="weight of the NLL; 0 after a separate SFT stage"
    )
    nll_normalizer: Literal["token-mean", "sequence-mean"] = Field(
        default="token-mean", description="divisor of the NLL"
    )

    def compute(self, batch: Batch) -> Loss:
        chosen, rejected = (log_odds(mean(batch, view)) for view in self.views)
        values = soft_logistic(self.temperature * (chosen - rejected))
        normalizer: Normalizer = "tokens" if self.nll_normalizer == "token-mean" else "sequence-then-examples"
        terms = {
            "nll": nll_term(batch, "chosen", normalizer, self.nll_coefficient),
            "odds": Term(weighed(values, batch), weight=self.beta),
        }
        return Loss(terms, logs=pair_logs(batch, chosen, rejected))


class ASFT(Objective):
    """Aligned SFT: raise the chosen and lower the rejected response, each by its own odds.

    Formula: L = -m(y_w) + lambda [-log s(b odds_w) - log s(-b odds_l)]; with b = 1 this is -(1 + lambda) m_w - lambda
    log(1 - e^{m_l}). lambda is `beta`, as in the paper; b is `temperature`
    Source: Wang et al. 2024, arXiv 2409.10571; Gorbatovski et al. 2025, arXiv 2502.01237, sections 2.4, 3.1
    Tokens: means over response tokens, then mean over pairs, also for the SFT term.
    Differs: 1) The default lambda is the smallest of the study's sweep (0.1 to 1).
    """

    views: ClassVar[tuple[str, ...]] = ("chosen", "rejected")

    beta: float = Field(
        default=0.1, ge=0, description="lambda, weight of the alignment part (study: 0.1 to 1)"
    )
    temperature: float = Field(default=1.0, gt=0, description="b; 0.001 to 0.3 in the two-stage study")
    nll_coefficient: float = Field(
        default=1.0, ge=0, description="weight of the SFT term; 0 after a separate SFT stage"
    )

    def compute(self, batch: Batch) -> Loss:
        chosen, rejected = (mean(batch, view) for view in self.views)
        good = -chosen if self.temperature == 1 else soft_logistic(self.temperature * log_odds(chosen))
        bad = (
            -log1mexp(rejected)
            if self.temperature == 1
            else soft_logistic(-self.temperature * log_odds(rejected))
        )
        terms = {
            "nll": nll_term(batch, "chosen", "sequence-then-examples", self.nll_coefficient),
            "chosen": Term(weighed(good, batch), weight=self.beta),
            "rejected": Term(weighed(bad, batch), weight=self.beta),
        }
        return Loss(terms, logs=pair_logs(batch, log_odds(chosen), log_odds(rejected)))


def log_odds(logprob: Tensor) -> Tensor:
    """log(P / (1 - P)) of a log-probability."""
    return logprob - log1mexp(logprob)
