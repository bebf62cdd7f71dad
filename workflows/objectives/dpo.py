"""Direct Preference Optimization, its variants, and the methods whose loss is DPO under other names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from selfloop.workflows.objectives.base import Batch, Loss, Objective, Term, by_settings
from selfloop.workflows.objectives.columns import Domain
from selfloop.workflows.objectives.maths import log_ratio, nll_term, soft_logistic, total, weighed

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CREAM", "DNO", "DPO", "IRPO", "LNDPO", "SPIN", "RewardAugmentedDPO", "ScPO"]


class DPO(Objective):
    """Direct Preference Optimization: logistic regression on the difference of implicit rewards.

    Formula: d(y) = sum_t (log pi_t - log pi_ref,t), x = beta (d_w - d_l), L = -log s(x) + a NLL(y_w). Label
    smoothing e (cDPO): -(1-e) log s(x) - e log s(-x). robust: [-(1-e) log s(x) + e log s(-x)] / (1-2e). hinge:
    max(0, 1 - x). ipo: (h - 1/(2 tau))^2, h = d_w - d_l. slic: max(0, delta - log pi(y_w) + log pi(y_l)) - lambda
    log pi(y_w). bco_pair: -log s(beta d_w) - log s(-beta d_l)
    Source: Rafailov et al. 2023, arXiv 2305.18290; cDPO: Mitchell 2023; robust: Chowdhury et al. 2024, arXiv
    2403.00409; hinge and SLiC-HF: Zhao et al. 2023, arXiv 2305.10425; IPO: Azar et al. 2023, arXiv 2310.12036
    Tokens: sums over response tokens (means for ipo by default, and with length_normalized), mean over pairs. The NLL
    term is the mean over each chosen response's tokens, then over pairs. A row's `weight` multiplies both.
    Differs: 1) IPO averages over tokens by default, as the implementations that match its authors' results do; the
    paper's text sums (ipo_average=False). 2) SLiC's regulariser is on the chosen response, summed over its tokens.
    3) bco_pair has no reward shift; BCO has.
    """

    views: ClassVar[tuple[str, ...]] = ("chosen", "rejected")

    beta: float = Field(
        default=0.1, gt=0, description="temperature of the implicit reward (official code; 0.5 for summaries)"
    )
    loss: Literal["sigmoid", "robust", "hinge", "ipo", "slic", "bco_pair"] = Field(
        default="sigmoid", description="variant"
    )
    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=0.5,
        description="e, share of pairs believed to be the wrong way round (HALOs: 0.2)",
    )
    nll_coefficient: float = Field(
        default=0.0, ge=0, description="a, weight of the NLL of the chosen response"
    )
    reference_free: bool = Field(default=False, description="d(y) = log pi: no reference is read")
    length_normalized: bool = Field(default=False, description="d(y) is a mean over tokens (LN-DPO)")
    tau: float | None = Field(default=None, gt=0, description="strength of ipo; None: beta")
    ipo_average: bool = Field(
        default=True, description="ipo on token means (HALOs, TRL) instead of sums (paper)"
    )
    delta: float = Field(default=1.0, ge=0, description="margin of slic (HALOs)")
    slic_lambda: float = Field(default=0.1, ge=0, description="regulariser of slic (HALOs)")

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if self.label_smoothing and self.loss not in ("sigmoid", "robust"):
            raise ValueError(
                f"label_smoothing={self.label_smoothing} has no meaning for loss={self.loss!r}: only 'sigmoid' (cDPO) "
                "and 'robust' have a smoothed form. Leave it 0 or choose one of these."
            )
        if self.label_smoothing and self.columns and type(self).target is not DPO.target:
            raise ValueError(
                f"label_smoothing={self.label_smoothing} has no meaning for {type(self).__name__}: its labels are soft "
                f"already, by the column {self.columns[0]!r}. Leave it 0."
            )
        if self.loss != "sigmoid" and type(self).target is not DPO.target:
            raise ValueError(f"{type(self).__name__} is defined for loss='sigmoid' only, not {self.loss!r}.")
        return self

    @property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """Log-probs of policy and reference; the policy's alone for slic and reference_free."""
        free = self.reference_free or self.loss == "slic"
        return dict.fromkeys(self.views, ("logprobs",) if free else ("logprobs", "reference_logprobs"))

    def compute(self, batch: Batch) -> Loss:
        average = self.length_normalized or (self.loss == "ipo" and self.ipo_average)
        reference = "reference_logprobs" in self.reads["chosen"]
        chosen, rejected = (log_ratio(batch, v, reference=reference, average=average) for v in self.views)
        terms = {"preference": Term(weighed(self._preference(chosen, rejected, batch), batch))}
        if self.loss == "slic":
            terms["regulariser"] = nll_term(batch, "chosen", "examples", self.slic_lambda)
        if self.nll_coefficient:
            terms["nll"] = nll_term(batch, "chosen", "sequence-then-examples", self.nll_coefficient)
        return Loss(terms, logs=pair_logs(batch, self.beta * chosen, self.beta * rejected))

    def target(self, batch: Batch) -> Tensor | float:
        """The probability that chosen is the better one."""
        return 1 - self.label_smoothing

    def _preference(self, chosen: Tensor, rejected: Tensor, batch: Batch) -> Tensor:
        x = self.beta * (chosen - rejected)
        if self.loss == "sigmoid":
            return soft_logistic(x, self.target(batch))
        if self.loss == "robust":
            e = self.label_smoothing
            return ((1 - e) * soft_logistic(x) - e * soft_logistic(-x)) / (1 - 2 * e)
        if self.loss == "hinge":
            return (1 - x).clamp(min=0)
        if self.loss == "ipo":
            return (chosen - rejected - 1 / (2 * (self.tau or self.beta))) ** 2
        if self.loss == "slic":
            return (self.delta - chosen + rejected).clamp(min=0)
        return soft_logistic(self.beta * chosen) + soft_logistic(-self.beta * rejected)


class LNDPO(DPO):
    """Length-normalised DPO: the implicit reward is divided by the response's length.

    Formula: a(y) = (1/|y|) sum_t (log pi_t - log pi_ref,t), L = -log s(beta (a_w - a_l))
    Source: Ahrabian et al. 2024, arXiv 2407.15229
    Tokens: means over response tokens, then mean over pairs.
    Differs: 1) The default beta is ours, of the order the study uses; it quotes no single value.
    """

    beta: float = Field(
        default=2.0,
        gt=0,
        description="temperature; ours: of SimPO's order, a DPO beta times a typical length",
    )
    length_normalized: bool = Field(default=True, description="d(y) is a mean over tokens")


class SPIN(DPO):
    """SPIN: DPO with chosen = the human answer, rejected = the opponent's sample, reference = the opponent.

    Formula: z = lambda (d(y) - d(y')), L = log(1 + e^-z); hinge: max(0, 1 - z). lambda is `beta`
    Source: Chen et al. 2024, arXiv 2401.01335
    Tokens: sums over response tokens, mean over pairs.
    """

    beta: float = Field(
        default=0.1, gt=0, description="lambda (0.1 for iterations 0 to 2, 5.0 for iteration 3)"
    )


class IRPO(DPO):
    """Iterative reasoning preference optimization: DPO plus the length-normalised NLL of the winner.

    Formula: L = -log s(beta (d_w - d_l)) - alpha log pi(y_w) / |y_w|. alpha is `nll_coefficient`
    Source: Pang et al. 2024, arXiv 2404.19733
    Tokens: the preference sums over response tokens, the NLL averages over the winner's; mean over pairs.
    """

    nll_coefficient: float = Field(default=1.0, ge=0, description="alpha (tuned over .25, .5, 1, 2)")


class ScPO(DPO):
    """Self-consistency preference optimization: IRPO weighted by the vote margin of each pair.

    Formula: w = (V(y+) - V(y-)) / k, L = -w log s(beta d) - alpha (w/|y+|) log pi(y+). w is the column `weight`
    Source: Prasad et al. 2024, arXiv 2411.04109
    Tokens: the preference sums over response tokens, the NLL averages over the winner's; mean over pairs (not
    divided by the weights).
    """

    columns: ClassVar[tuple[str, ...]] = ("weight",)

    beta: float = Field(default=0.5, gt=0, description="temperature")
    nll_coefficient: float = Field(default=1.0, ge=0, description="alpha")


class RewardAugmentedDPO(DPO):
    """DPO on relabelled rows whose prompt states the reward to reach (`relabel.goal_pairs` makes the rows).

    Formula: L = -(1-e) log s(x) - e log s(-x), x = beta (d_w - d_l), both answers given (goal, prompt)
    Source: Zhang et al. 2024, arXiv 2410.08067
    Tokens: sums over response tokens, mean over pairs.
    """

    beta: float = Field(default=0.01, gt=0, description="temperature (official recipes)")
    label_smoothing: float = Field(
        default=0.3, ge=0, lt=0.5, description="e (official recipes; 0 in the SPPO one)"
    )


class CREAM(DPO):
    """Consistency-regularised DPO: two rankings' agreement C is the probability that the pair is the right way round.

    Formula: L = -C log s(z) - (1-C) log s(-z), z = beta (d_w - d_l), C = (tau + 1)/2. C is the column `label`
    Source: Wang et al. 2024, arXiv 2410.12735
    Tokens: sums over response tokens, mean over pairs.
    Differs: 1) Whether C is one number an iteration (the paper's default) or one a prompt is the recipe's choice of
    column values; this loss is the same.
    """

    columns: ClassVar[tuple[str, ...]] = ("label",)
    domains: ClassVar[Mapping[str, Domain]] = {"label": "unit"}

    def target(self, batch: Batch) -> Tensor | float:
        """C."""
        return batch["label"]


class DNO(DPO):
    """Direct Nash Optimization: practical (DPO against the current iterate) or exact (soft labels).

    Formula: z = eta (d(y1) - d(y2)). practical: L = -log s(z). exact: L = -p log s(z) - (1-p) log s(-z), p =
    s(r1 - r2), r = expected win rate against the current policy. eta is `beta`, r1 - r2 the column `margin`
    Source: Rosset et al. 2024, arXiv 2404.03715, algorithms 1 and 2
    Tokens: sums over response tokens, mean over pairs.
    """

    beta: float = Field(default=0.1, gt=0, description="eta (0.05 also used)")
    form: Literal["practical", "exact"] = Field(
        default="practical", description="hard labels, or targets s(margin)"
    )

    @by_settings
    def columns(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """`margin` for the exact form."""
        return ("margin",) if self.form == "exact" else ()

    def target(self, batch: Batch) -> Tensor | float:
        """s(r1 - r2), or 1 less label smoothing."""
        return batch["margin"].sigmoid() if self.form == "exact" else super().target(batch)


def pair_logs(batch: Batch, chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """Implicit rewards of both sides, their gap, how often the right side leads (a tie counts half), and both log-probs; no
    gradient."""
    chosen, rejected = chosen.detach(), rejected.detach()
    return {
        "chosen_reward": chosen,
        "rejected_reward": rejected,
        "reward_margin": chosen - rejected,
        "accuracy": ((chosen - rejected).sign() + 1) / 2,
        "chosen_logprob": total(batch, "chosen").detach(),
        "rejected_logprob": total(batch, "rejected").detach(),
    }
