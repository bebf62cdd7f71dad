"""Clipped policy gradients on given advantages: GRPO and its relatives, PPO, RLOO, and the critic's loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from selfloop.workflows.objectives.advantages import kl_estimate
from selfloop.workflows.objectives.base import Batch, Loss, Normalizer, Objective, Term, by_settings
from selfloop.workflows.objectives.columns import scalar
from selfloop.workflows.objectives.maths import length, weighed

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["GRPO", "GSPO", "PPO", "SAR", "ClippedPolicy", "ValueLoss"]


class ClippedPolicy(Objective):
    """The loss that all clipped policy gradients share; subclasses say how tokens are averaged.

    `advantages` is one number a response (rows,) or a token (rows, tokens), and is never differentiated. Where rows
    have the sampler's log-probs, its mean gap to the old policy, nats a token, is logged as `sampler_gap`.
    """

    columns: ClassVar[tuple[str, ...]] = ("advantages",)
    optional: ClassVar[tuple[str, ...]] = ("weight", "response.sampling_logprobs")

    epsilon: float = Field(default=0.2, ge=0, description="lower clip of the ratio")
    epsilon_high: float | None = Field(
        default=None, ge=0, description="upper clip (DAPO: 0.28); None: epsilon"
    )
    delta: float | None = Field(
        default=None, gt=1, description="dual clip c for negative advantages (verl 3, DAPO script 10)"
    )
    beta: float = Field(default=0.0, ge=0, description="weight of the KL loss; 0 reads no reference")
    kl: Literal["k2", "k3"] = Field(default="k3", description="estimator of the KL loss")
    ratio: Literal["token", "sequence", "gspo"] = Field(
        default="token",
        description="one a token; one a response: sequence exp(sum of its tokens' log-ratios), gspo exp(their mean)",
    )
    on_policy: bool = Field(
        default=False, description="one update on fresh samples: the ratio is 1 and no old one is read"
    )
    importance_cap: float | None = Field(
        default=None,
        gt=0,
        description="each token times min(pi_old / pi_sampler, cap); reads response.sampling_logprobs",
    )

    @property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """Log-probs, and those of the old policy, the reference and the sampler where they are used."""
        old = () if self.on_policy and self.importance_cap is None else ("old_logprobs",)
        reference = ("reference_logprobs",) if self.beta else ()
        sampler = () if self.importance_cap is None else ("sampling_logprobs",)
        return {"response": ("logprobs", *old, *reference, *sampler)}

    @property
    def factors(self) -> tuple[str, ...]:
        """Without a KL term the advantages multiply all there is."""
        return super().factors if self.beta else ("advantages", *super().factors)

    def surrogate(self, batch: Batch, advantages: Tensor, normalizer: Normalizer) -> Loss:
        """The clipped term and the KL term, both with this normaliser."""
        mask, logprobs = batch["response.mask"], batch["response.logprobs"]
        old = logprobs.detach() if self.on_policy else batch["response.old_logprobs"]
        of_sequence = self.ratio != "token"
        if of_sequence and advantages.dim() == 2:
            advantages = (advantages * mask).sum(-1) / length(batch, "response")
        elif not of_sequence and advantages.dim() == 1:
            advantages = advantages[:, None].expand_as(logprobs)
        ratio = self._joined(logprobs - old, batch).exp()
        values, clipped = self._clip(ratio, advantages)
        values = self._correct(values, batch)
        policy = Term(weighed(values, batch), *((None, "examples") if of_sequence else (mask, normalizer)))
        logs = {"ratio": _per_row(ratio, mask), "clipped": _per_row(clipped, mask)}
        if "response.sampling_logprobs" in batch:
            logs["sampler_gap"] = _per_row((old - batch["response.sampling_logprobs"]).abs(), mask)
        terms = {"policy": policy}
        if self.beta:
            kl = kl_estimate(logprobs, batch["response.reference_logprobs"], self.kl)
            terms["kl"] = Term(weighed(kl, batch), mask, normalizer, self.beta)
            logs["reference_kl"] = _per_row(kl, mask)
        return Loss(terms, logs=logs)

    def _joined(self, gap: Tensor, batch: Batch) -> Tensor:
        """Log-ratios (rows, tokens) as this kind of ratio takes them: a token each, or joined to (rows,)."""
        if self.ratio == "token":
            return gap
        whole = (gap * batch["response.mask"]).sum(-1)
        return whole / length(batch, "response") if self.ratio == "gspo" else whole

    def _clip(self, ratio: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """-min(r A, clip(r) A) with the dual clip, and where clipping took the gradient away."""
        import torch

        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        bounded = ratio.clamp(1 - self.epsilon, 1 + high)
        objective = torch.minimum(ratio * advantages, bounded * advantages)
        beyond = (advantages > 0) & (ratio > 1 + high) | (advantages < 0) & (ratio < 1 - self.epsilon)
        if self.delta is not None:
            floor = self.delta * advantages
            beyond = beyond | (advantages < 0) & (objective < floor)
            objective = torch.where(advantages < 0, torch.maximum(objective, floor), objective)
        return -objective, beyond.to(ratio.dtype)

    def _correct(self, values: Tensor, batch: Batch) -> Tensor:
        if self.importance_cap is None:
            return values
        gap = batch["response.old_logprobs"] - batch["response.sampling_logprobs"]
        return values * self._joined(gap, batch).detach().exp().clamp(max=self.importance_cap)


class GRPO(ClippedPolicy):
    """Group relative policy optimisation: PPO's clip on group-normalised advantages, without a critic.

    Formula: r_t = pi_t / pi_old,t, l_t = -min(r_t A, clip(r_t, 1-e_low, 1+e_high) A), for A < 0 at most -c A; + beta
    k3_t, k3 = e^d - d - 1, d = log pi_ref,t - log pi_t. grpo: mean over responses of (1/|o|) sum_t. dapo, bnpo: sum of
    all / number of all response tokens. dr_grpo: sum_t / max_length, then mean over responses. ratio="gspo": one
    r = exp((1/|o|) sum_t (log pi_t - log pi_old,t)) a response, clipped to [1 - 3e-4, 1 + 4e-4], mean over responses
    Source: Shao et al. 2024, arXiv 2402.03300; Dr. GRPO: Liu et al. 2025, arXiv 2503.20783; DAPO: Yu et
    al. 2025, arXiv 2503.14476
    Tokens: see the formula; counts are over the whole global batch.
    Differs: 1) Advantages come as a column (`advantages.group_normalized`). 2) No KL by default, as in DAPO, Dr. GRPO
    and TRL; DeepSeekMath's weight is 0.04. 3) bnpo divides by the global batch's tokens, so it equals dapo here (TRL
    divides by each device's own).
    """

    loss: Literal["grpo", "dapo", "dr_grpo", "bnpo"] = Field(
        default="grpo", description="how tokens are averaged"
    )
    max_length: int = Field(default=3000, gt=0, description="constant of dr_grpo: longest response generated")

    def compute(self, batch: Batch) -> Loss:
        normalizers: dict[str, Normalizer] = {
            "grpo": "sequence-then-examples",
            "dr_grpo": float(self.max_length),
        }
        return self.surrogate(batch, batch["advantages"].detach(), normalizers.get(self.loss, "tokens"))


class SAR(GRPO):
    """Self-aligned reward in RLVR: Dr. GRPO on R = correct + alpha * SAR (`transforms.self_aligned_reward`).

    Formula: dr_grpo with A = R - mean over the prompt group, + 0.001 k3
    Source: Han et al. 2025, arXiv 2509.05489; official scripts
    Tokens: sum over response tokens / max_length, then mean over responses.
    """

    loss: Literal["grpo", "dapo", "dr_grpo", "bnpo"] = Field(
        default="dr_grpo", description="how tokens are averaged"
    )
    beta: float = Field(
        default=0.001, ge=0, description="weight of the KL loss (GRPO scripts; PPO scripts: 0)"
    )
    max_length: int = Field(default=4096, gt=0, description="constant of dr_grpo: longest response (scripts)")


class GSPO(GRPO):
    """Group sequence policy optimisation: GRPO with one ratio a response, its likelihood's by the number of its tokens.

    Formula: r = exp((1/|o|) sum_t (log pi_t - log pi_old,t)), l = -min(r A, clip(r, 1-3e-4, 1+4e-4) A)
    Source: Zheng et al. 2025, arXiv 2507.18071, equations 5 to 7; clips of section 5.1
    Tokens: one ratio a response, then mean over responses; a KL term as in GRPO's `loss`.
    """

    ratio: Literal["token", "sequence", "gspo"] = Field(
        default="gspo", description="exp of the mean of a response's log-ratios"
    )
    epsilon: float = Field(default=3e-4, ge=0, description="lower clip of the ratio (section 5.1)")
    epsilon_high: float | None = Field(default=4e-4, ge=0, description="upper clip (section 5.1)")


class PPO(ClippedPolicy):
    """Proximal policy optimisation on given advantages (GAE, REINFORCE++ or RLOO make them).

    Formula: rho_t = pi_t / pi_old,t, L = mean of -min(rho A, clip(rho, 1-e, 1+e_high) A) + vf 0.5 max((V-R)^2,
    (clip(V, V_old -/+ eps_v) - R)^2) + beta k3. ratio="sequence" (TRL's RLOO): one rho = exp(sum_t ...) a response
    Source: Schulman et al. 2017, arXiv 1707.06347; RLOO: Ahmadian et al. 2024, arXiv 2402.14740; REINFORCE++:
    Hu 2025, arXiv 2501.03262
    Tokens: mean over all response tokens of the global batch (token-mean), or mean of each response's mean.
    Differs: 1) Critic and policy are separate networks trained by separate steps (ValueLoss), so vf is 0; with a
    shared trunk set it. 2) Whitening inside the loss is over one optimizer step; over all rows of an iteration use
    `advantages.whiten` and leave it off.
    """

    normalizer: Literal["token-mean", "sequence-mean"] = Field(
        default="token-mean", description="how tokens are averaged"
    )
    vf_coefficient: float = Field(
        default=0.0, ge=0, description="weight of the value term of a shared trunk (TRL 0.1)"
    )
    value_clip: float | None = Field(
        default=0.2, gt=0, description="eps_v (TRL 0.2, OpenRLHF 0.5); None: no clip"
    )
    whiten: Literal["none", "population", "unbiased"] = Field(
        default="none", description="whiten advantages over the step"
    )

    @property
    def factors(self) -> tuple[str, ...]:
        """As ClippedPolicy, but where the advantages are whitened or a value term stands beside them."""
        alone = not self.vf_coefficient and self.whiten == "none"
        return super().factors if alone else super(ClippedPolicy, self).factors

    @property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """As ClippedPolicy, and the values where they are trained."""
        names = super().reads["response"]
        return {"response": (*names, "values") if self.vf_coefficient else names}

    @by_settings
    def columns(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """`advantages`, and what the value term regresses on."""
        old = ("old_values",) if self.value_clip is not None else ()
        return ("advantages", "returns", *old) if self.vf_coefficient else ("advantages",)

    @by_settings
    def statistic_names(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Sums for whitening."""
        return () if self.whiten == "none" else ("advantage_sum", "advantage_square_sum", "advantage_count")

    def compute(self, batch: Batch) -> Loss:
        normalizer: Normalizer = "tokens" if self.normalizer == "token-mean" else "sequence-then-examples"
        loss = self.surrogate(batch, self._advantages(batch), normalizer)
        if self.vf_coefficient:
            values = weighed(value_error(batch, self.value_clip), batch)
            loss.terms["value"] = Term(values, batch["response.mask"], normalizer, self.vf_coefficient)
        return loss

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        mask, advantages = batch["response.mask"], batch["advantages"].double()
        advantages = (advantages if advantages.dim() == 2 else advantages[:, None]) * mask
        sums = {"advantage_sum": advantages, "advantage_square_sum": advantages**2, "advantage_count": mask}
        return {name: value.double().sum() for name, value in sums.items()}

    def _advantages(self, batch: Batch) -> Tensor:
        advantages = batch["advantages"].detach()
        if self.whiten == "none":
            return advantages
        first, second, count = (scalar(batch[name]).double() for name in self.statistic_names)
        divisor = (count - 1).clamp(min=1) if self.whiten == "unbiased" else count
        variance = (second - first**2 / count) / divisor
        return ((advantages - first / count) * variance.clamp(min=1e-8).rsqrt()).to(advantages.dtype)


class ValueLoss(Objective):
    """The critic's regression on returns, clipped around the values it had when the samples were scored.

    Formula: 0.5 max((V - R)^2, (clip(V, V_old - eps_v, V_old + eps_v) - R)^2)
    Source: Schulman et al. 2017, arXiv 1707.06347; TRL's and OpenRLHF's value loss
    Tokens: mean over all response tokens of the global batch.
    """

    optional: ClassVar[tuple[str, ...]] = ("weight",)

    value_clip: float | None = Field(
        default=0.2, gt=0, description="eps_v (TRL 0.2, OpenRLHF 0.5); None: no clip"
    )

    @property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """The scalar head's value at each response token (column `values`)."""
        return {"response": ("values",)}

    @by_settings
    def columns(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """`returns`, and `old_values` where values are clipped."""
        return ("returns",) if self.value_clip is None else ("returns", "old_values")

    def compute(self, batch: Batch) -> Loss:
        values = weighed(value_error(batch, self.value_clip), batch)
        mask = batch["response.mask"]
        return Loss(
            {"value": Term(values, mask, "tokens")}, logs={"value": _per_row(batch["response.values"], mask)}
        )


def value_error(batch: Batch, clip: float | None) -> Tensor:
    """Half the squared error of the values, the larger of the plain and the clipped one, (rows, tokens)."""
    import torch

    values, returns = batch["response.values"], batch["returns"].detach()
    returns = returns if returns.dim() == 2 else returns[:, None]
    error = (values - returns) ** 2
    if clip is not None:
        old = batch["old_values"].detach()
        held = torch.maximum(torch.minimum(values, old + clip), old - clip)
        error = torch.maximum(error, (held - returns) ** 2)
    return 0.5 * error


def _per_row(values: Tensor, mask: Tensor) -> Tensor:
    values = values.detach()
    return values if values.dim() == 1 else (values * mask).sum(-1) / mask.sum(-1).clamp(min=1)
