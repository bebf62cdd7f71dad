"""Unpaired feedback, good or bad for each response: KTO and BCO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from selfloop.workflows.objectives.base import Batch, Loss, Objective, Term, by_settings
from selfloop.workflows.objectives.columns import Domain, scalar
from selfloop.workflows.objectives.maths import log_ratio, soft_logistic, weighed

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BCO", "KTO", "density_weights", "desirable_weight_range"]


class KTO(Objective):
    """Kahneman-Tversky optimization: a value function of the implicit reward, seen from a reference point.

    Formula: d(y) = sum_t (log pi_t - log pi_ref,t), z0 = max(0, mean of d over mismatched pairs), label 1: L = w_D
    (1 - s(beta (d - z0))), label 0: L = w_U (1 - s(beta (z0 - d)))
    Source: Ethayarajh et al. 2024, arXiv 2402.01306; official code ContextualAI/HALOs
    Tokens: sums over response tokens, mean over all rows of both labels.
    Differs: 1) z0 averages the mismatched rows of the whole global batch and is then held at 0 or above (HALOs; TRL
    averages the ranks' means). 2) The view `kl` (a prompt with another row's response) is the recipe's to build; it
    gets no gradient.
    """

    views: ClassVar[tuple[str, ...]] = ("response", "kl")
    columns: ClassVar[tuple[str, ...]] = ("label",)
    detached: ClassVar[tuple[str, ...]] = ("kl",)
    domains: ClassVar[Mapping[str, Domain]] = {"label": "binary"}
    statistic_names: ClassVar[tuple[str, ...]] = ("kl_sum", "kl_count")

    beta: float = Field(default=0.1, gt=0, description="temperature (config/loss/kto.yaml)")
    desirable_weight: float = Field(
        default=1.0, ge=0, description="w_D; keep w_D n_D / (w_U n_U) between 1 and 4/3"
    )
    undesirable_weight: float = Field(default=1.0, ge=0, description="w_U")

    @property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """Log-probs of policy and reference, of the rows and of the mismatched ones."""
        return dict.fromkeys(self.views, ("logprobs", "reference_logprobs"))

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        mismatched = log_ratio(batch, "kl").detach()
        return {"kl_sum": mismatched.sum(), "kl_count": mismatched.new_tensor(float(len(mismatched)))}

    def compute(self, batch: Batch) -> Loss:
        import torch

        count = scalar(batch["kl_count"]).clamp(min=1)
        point = (scalar(batch["kl_sum"]) / count).clamp(min=0).detach()
        ratio, good = log_ratio(batch, "response"), batch["label"] > 0
        gain = self.desirable_weight * (self.beta * (point - ratio)).sigmoid()
        loss = self.undesirable_weight * (self.beta * (ratio - point)).sigmoid()
        reward = (self.beta * ratio).detach()
        logs = {"reward": reward, "reference_point": point.expand(len(reward))}
        return Loss({"value": Term(weighed(torch.where(good, gain, loss), batch))}, logs=logs)


class BCO(Objective):
    """Binary classifier optimization: a classifier of good and bad whose logit is the implicit reward, shifted.

    Formula: r = beta sum_t (log pi_t - log pi_ref,t), label 1: L = -log s(r - delta), label 0: L = -w log s(delta -
    r). shift running: delta = mean of all rewards seen. balanced: (E_up[r] + E_down[r]) / 2, each an exponential
    moving average. w is the column `weight` (`density_weights`)
    Source: Jung et al. 2024, arXiv 2404.04656; running mean: TRL's BCO trainer, written with the authors
    Tokens: sums over response tokens, mean over all rows of both labels.
    Differs: 1) The coefficient of the paper's moving average is not known: ours is `decay`. 2) delta takes the whole
    global batch in before it is used. For evaluation hand back zeros as statistics: delta then stays where it is.
    """

    columns: ClassVar[tuple[str, ...]] = ("label",)
    domains: ClassVar[Mapping[str, Domain]] = {"label": "binary"}

    beta: float = Field(default=0.1, gt=0, description="temperature (TRL's default too)")
    shift: Literal["running", "balanced", "none"] = Field(default="running", description="how delta is found")
    decay: float = Field(default=0.9, ge=0, lt=1, description="moving average of the balanced shift (ours)")

    @property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """Log-probs of policy and reference."""
        return {"response": ("logprobs", "reference_logprobs")}

    @by_settings
    def statistic_names(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Sums of rewards and rows, by label."""
        return () if self.shift == "none" else ("up_sum", "up_count", "down_sum", "down_count")

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        reward, good = self._rewards(batch).detach(), batch["label"]
        parts = (reward * good, good, reward * (1 - good), 1 - good)
        return {name: part.sum() for name, part in zip(self.statistic_names, parts, strict=True)}

    def compute(self, batch: Batch) -> Loss:
        import torch

        reward, good = self._rewards(batch), batch["label"] > 0
        delta, state = self._shift(batch, reward)
        x = reward - delta
        values = weighed(soft_logistic(torch.where(good, x, -x)), batch)
        logs = {"reward": reward.detach(), "shift": delta.expand(len(reward))}
        return Loss({"classifier": Term(values)}, state=state, logs=logs)

    def _rewards(self, batch: Batch) -> Tensor:
        return self.beta * log_ratio(batch, "response")

    def _shift(self, batch: Batch, reward: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """delta after this step's rows, and the state to keep."""
        import torch

        zero = reward.new_zeros(())
        if self.shift == "none":
            return zero, {}
        sums = {name: scalar(batch[name]).detach() for name in self.statistic_names}
        state = {
            name.removeprefix("state_"): scalar(batch[name]) for name in batch if name.startswith("state_")
        }
        if self.shift == "running":
            seen = state.get("count", zero)
            count = seen + sums["up_count"] + sums["down_count"]
            total = state.get("shift", zero) * seen + sums["up_sum"] + sums["down_sum"]
            delta = (total / count.clamp(min=1)).to(reward.dtype)
            return delta, {"state_shift": delta, "state_count": count}
        kept: dict[str, Tensor] = {}
        for side in ("up", "down"):
            new, seen = sums[f"{side}_count"], state.get(f"{side}_count", zero)
            fresh = sums[f"{side}_sum"] / new.clamp(min=1)
            old = state.get(side, fresh)
            moved = torch.where(seen > 0, self.decay * old + (1 - self.decay) * fresh, fresh)
            kept[f"state_{side}"] = torch.where(
                new > 0, moved, torch.where(seen > 0, old, zero.to(old.dtype))
            )
            kept[f"state_{side}_count"] = seen + new
        sides = [(kept[f"state_{side}_count"] > 0).to(reward.dtype) for side in ("up", "down")]
        known = (sides[0] + sides[1]).clamp(min=1)
        return ((kept["state_up"] + kept["state_down"]) / known).to(reward.dtype), kept


def density_weights(probabilities: Sequence[float], low: float = 0.5, high: float = 10.0) -> list[float]:
    """BCO's weights of label-0 rows, p/(1-p) held between low and high; p = "this prompt is a thumbs-up one"."""
    return [min(max(p / (1 - p) if p < 1 else high, low), high) for p in probabilities]


def desirable_weight_range(
    desirable: int, undesirable: int, undesirable_weight: float = 1.0
) -> tuple[float, float]:
    """KTO's advice: the w_D for which w_D n_D / (w_U n_U) is 1 and 4/3."""
    low = undesirable_weight * undesirable / max(desirable, 1)
    return low, low * 4 / 3
