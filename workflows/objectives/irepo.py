"""iREPO: regression of the implicit reward difference on the logit of an empirical win probability."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from selfloop.workflows.objectives.base import Batch, Loss, Objective, Term
from selfloop.workflows.objectives.columns import Domain
from selfloop.workflows.objectives.dpo import pair_logs
from selfloop.workflows.objectives.maths import log_ratio, soft_logistic, weighed

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["IREPO", "zermelo"]


class IREPO(Objective):
    """Implicit reward pairwise difference empirical preference optimization.

    Formula: d = beta (d(y1) - d(y2)), P = share of votes for y1 held in [epsilon, 1 - epsilon], L = (log(P/(1-P)) -
    d)^2; logistic: -P log s(d) - (1-P) log s(-d). y1 is `chosen`, y2 `rejected` (unordered), P the column `label`
    Source: Le et al. 2024, arXiv 2405.15230 (abstract and summaries)
    Tokens: sums over response tokens, mean over pairs.
    Differs: 1) beta and epsilon are ours. 2) P may come from votes or from `zermelo` strengths, s(r1 - r2).
    """

    views: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    columns: ClassVar[tuple[str, ...]] = ("label",)
    domains: ClassVar[Mapping[str, Domain]] = {"label": "unit"}

    beta: float = Field(default=0.1, gt=0, description="temperature of the implicit reward (ours)")
    epsilon: float = Field(default=0.05, gt=0, lt=0.5, description="P is held this far from 0 and 1 (ours)")
    loss: Literal["squared", "logistic"] = Field(
        default="squared", description="regression, or soft-label DPO"
    )

    @property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """Log-probs of policy and reference."""
        return dict.fromkeys(self.views, ("logprobs", "reference_logprobs"))

    def compute(self, batch: Batch) -> Loss:
        first, second = (self.beta * log_ratio(batch, view) for view in self.views)
        probability = batch["label"].clamp(self.epsilon, 1 - self.epsilon)
        target: Tensor = probability.logit()
        if self.loss == "squared":
            values = (target - (first - second)) ** 2
        else:
            values = soft_logistic(first - second, probability)
        logs = {**pair_logs(batch, first, second), "target": target}
        return Loss({"preference": Term(weighed(values, batch))}, logs=logs)


def zermelo(wins: Sequence[Sequence[float]], *, pseudo_wins: float = 0.5) -> list[float]:
    """Strengths r (sum 0) of candidates from wins[i][j], how often i beat j: P(i beats j) = s(r_i - r_j).

    The Bradley-Terry optimum (Zermelo's). `pseudo_wins` are added both ways to every pair that met: with 0, a
    candidate that always won has no finite strength.
    """
    from selfloop.workflows.evaluation.ratings import bradley_terry

    n = range(len(wins))
    met = [(i, j) for i in n for j in n if i != j and wins[i][j] + wins[j][i] > 0]
    fit = bradley_terry(
        [(str(i), str(j), 1.0) for i, j in met], weights=[wins[i][j] + pseudo_wins for i, j in met]
    )
    strengths = [(fit.ratings[str(i)] - 1000.0) * math.log(10) / 400.0 for i in n]
    centre = math.fsum(strengths) / len(strengths)
    return [r - centre for r in strengths]
