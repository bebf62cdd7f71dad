"""Methods that act inside training, as far as they are pure: MORE, DGA and Control LLM.

What they need of a trainer is said in each docstring; nothing here touches a model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from selfloop.workflows.errors import ObjectiveError
from selfloop.workflows.objectives.base import Batch, Loss, Term
from selfloop.workflows.objectives.columns import Domain
from selfloop.workflows.objectives.maths import soft_logistic, weighed
from selfloop.workflows.objectives.reward_model import BradleyTerry
from selfloop.workflows.objectives.sft import SFT

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DGA", "MORE", "ControlLLM", "both_orders", "divergence", "interpolate", "min_norm"]


class MORE(BradleyTerry):
    """Multi-objective reward learning: Bradley-Terry per task, weighted so that the reward head's gradients agree.

    Formula: L_i = mean over task i's pairs of -log s(r_w - r_l), g_i = dL_i/d(head) = mean of -s(r_l - r_w) (h_w -
    h_l), lambda = argmin over the simplex of |sum_i lambda_i g_i / |g_i||^2, L = sum_i lambda_i L_i
    Source: Zeng et al. 2023, arXiv 2312.07401; official code dunzeng/MORE
    Tokens: none; mean over each task's pairs.
    Differs: 1) The head is linear without bias, so its gradient is read off the pooled hidden states (columns
    `chosen_hidden`, `rejected_hidden`, detached, made by the trainer): no hook into backward is needed. 2) The
    momentum starts at zero instead of the head's weights. 3) Tasks without a pair in the step keep their momentum. 4) With `unit`
    the weights come from gradients of unit length and weigh the losses as they are, as the paper's steps do: their mix
    descends every task only where the raw gradients are of like length; unit=False always does.
    """

    columns: ClassVar[tuple[str, ...]] = ("group",)
    optional: ClassVar[tuple[str, ...]] = ("weight",)
    domains: ClassVar[Mapping[str, Domain]] = {"group": "whole"}
    statistic_names: ClassVar[tuple[str, ...]] = ("gradient_sum", "gradient_count")

    tasks: int = Field(default=2, ge=1, description="number of preference sets; `group` is 0 to tasks - 1")
    momentum: float = Field(default=0.99, ge=0, le=1, description="a: g <- (1 - a) g + a g_new (code)")
    unit: bool = Field(default=True, description="gradients scaled to unit length first (code)")

    @property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """Reward and pooled hidden state of each side."""
        return dict.fromkeys(self.views, ("rewards", "hidden"))

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        gap = (batch["chosen.rewards"] - batch["rejected.rewards"]).detach()
        slope = (
            weighed(-(-gap).sigmoid(), batch)[:, None]
            * (batch["chosen.hidden"] - batch["rejected.hidden"]).detach()
        )
        tasks = self._tasks(batch)
        return {"gradient_sum": tasks.T @ slope, "gradient_count": tasks.sum(0)}

    def compute(self, batch: Batch) -> Loss:
        import torch

        gap = batch["chosen.rewards"] - batch["rejected.rewards"]
        count = batch["gradient_count"]
        fresh = batch["gradient_sum"] / count.clamp(min=1)[:, None]
        old = batch.get("state_gradient", torch.zeros_like(fresh))
        gradient = torch.where(count[:, None] > 0, (1 - self.momentum) * old + self.momentum * fresh, old)
        weights = min_norm(gradient, unit=self.unit).to(gap.dtype)
        values, tasks = weighed(soft_logistic(gap), batch), self._tasks(batch)
        terms = {f"task_{i}": Term(weights[i] * values, tasks[:, i], "tokens") for i in range(self.tasks)}
        logs = {f"weight_{i}": weights[i].expand(len(gap)) for i in range(self.tasks)}
        return Loss(terms, state={"state_gradient": gradient}, logs=logs)

    def _tasks(self, batch: Batch) -> Tensor:
        import torch

        numbers = torch.arange(self.tasks, device=batch["group"].device, dtype=batch["group"].dtype)
        members = batch["group"][:, None] == numbers
        if not bool(members.any(-1).all()):
            row = int((~members.any(-1)).nonzero()[0])
            raise ObjectiveError(
                f"MORE: column 'group', row {row} holds {float(batch['group'][row]):g}, but tasks={self.tasks}: groups "
                f"are 0 to {self.tasks - 1}. Set tasks to the number of preference sets."
            )
        return members.to(batch["chosen.rewards"].dtype)


def min_norm(gradients: Tensor, *, unit: bool = True) -> Tensor:
    """Weights on the simplex whose mix of the gradients (tasks, dimensions) has the smallest norm; exact.

    A zero gradient is left out (it says nothing of its task yet); all zero: equal weights.
    """
    import numpy as np
    import torch
    from scipy.optimize import nnls

    g = gradients.detach().double().cpu()
    lengths = g.norm(dim=-1)
    known = lengths > 0
    weights = torch.zeros(len(g), dtype=torch.float64)
    if not bool(known.any()):
        return torch.full_like(weights, 1 / len(g)).to(gradients.device)
    kept = g[known] / lengths[known, None] if unit else g[known]
    scale = float(kept.norm(dim=-1).max())
    rows = np.concatenate([(kept.T / scale).numpy(), np.ones((1, len(kept)))])
    target = np.zeros(len(rows))
    target[-1] = 1.0  # non-negative least squares: its solution is a multiple of the one on the simplex
    solution, _ = nnls(rows, target)
    weights[known] = torch.from_numpy(solution / solution.sum())
    return weights.to(gradients.device)


def both_orders(probabilities: Sequence[float]) -> tuple[list[int], list[float]]:
    """(truths, probabilities) of pairs given winner first, each counted in both orders, for calibration errors.

    Winner first alone would make every truth 1. Feed it to `evaluation.metrics.expected_calibration_error`.
    """
    n = len(probabilities)
    return [1] * n + [0] * n, [*probabilities, *(1 - p for p in probabilities)]


class DGA(BaseModel):
    """Dynamic gradient alignment: weights of training domains that follow a small target set's gradient.

    Formula: a_i = <g_i, g_target>, alpha_i <- alpha_i exp(eta a_i) / Z, w <- (1 - beta) w + beta alpha
    Source: Fan, Grangier, Ablin 2024, arXiv 2410.02498 (constants unverified)
    Works with any objective. No run can use it yet: it needs two hooks of a trainer, gradients of extra batches without a
    step (only the k + 1 dot products leave the ranks), and a sampler of named sub-streams whose weights may change
    between steps (docs/decisions.md).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    eta: float = Field(
        default=0.1, ge=0, description="step of the weights (ours; eta max|a| about 0.1 to 1 at first)"
    )
    beta: float = Field(
        default=0.1, gt=0, le=1, description="moving average of the sampling weights; 1: none"
    )
    floor: float = Field(
        default=0.0, ge=0, lt=1, description="least share of a domain, so that none is lost (1e-4)"
    )
    every: int = Field(default=100, gt=0, description="optimizer steps between updates, T_r (ours)")

    def update(
        self, alpha: Sequence[float], weights: Sequence[float], alignment: Sequence[float]
    ) -> tuple[list[float], list[float]]:
        """Next (alpha, sampling weights) from the dot products of the domains' gradients with the target's."""
        top = max(alignment)
        raw = [a * math.exp(self.eta * (value - top)) for a, value in zip(alpha, alignment, strict=True)]
        new = self._floored([value / math.fsum(raw) for value in raw])
        return new, [(1 - self.beta) * w + self.beta * a for w, a in zip(weights, new, strict=True)]

    def _floored(self, alpha: list[float]) -> list[float]:
        held = [max(a, self.floor) for a in alpha]
        return [a / math.fsum(held) for a in held] if self.floor else alpha


class ControlLLM(SFT):
    """Control LLM: fine-tuning of expanded layers, held near the frozen ones they were copied from.

    Formula: L = L_task + alpha (1/M) sum over the M merged layers of divergence(h_G, h_F)
    Source: Wei et al. 2025, arXiv 2501.10979; official code linkedin/ControlLLM
    Tokens: the task loss as SFT; the divergence averages over all response tokens of the global batch.
    Differs: 1) The column `response.divergence` (mean over the merged layers, with gradient) comes from the model. No
    run can make it yet (docs/decisions.md): it needs the hook `model.adapt(surgery)`, merged layers of a frozen original
    and a trained copy (`interpolate`), their divergence collected in the forward (`divergence`), selective freezing, and
    an export that engines can serve. 2) The divergence counts response tokens; the official code averages over all.
    """

    divergence_coefficient: float = Field(default=1.0, ge=0, description="alpha (code's default)")

    @property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """Log-probs, and the divergence of the hidden states at each token."""
        return {"response": ("logprobs", "divergence") if self.divergence_coefficient else ("logprobs",)}

    def compute(self, batch: Batch) -> Loss:
        loss = super().compute(batch)
        if self.divergence_coefficient:
            values, mask = weighed(batch["response.divergence"], batch), batch["response.mask"]
            loss.terms["divergence"] = Term(values, mask, "tokens", self.divergence_coefficient)
        return loss


def interpolate(
    frozen: Tensor, trained: Tensor, a: Tensor | float, rule: Literal["lerp", "slerp"] = "lerp"
) -> Tensor:
    """h_out of a merged layer from both hidden states; `a` is a number, or (..., 1) per token (dlerp)."""
    import torch

    line = (1 - a) * frozen + a * trained
    if rule == "lerp":
        return line
    cosine = torch.cosine_similarity(frozen, trained, dim=-1).clamp(-1, 1)[..., None]
    angle = torch.acos(cosine.clamp(max=1 - 1e-7))
    arc = (torch.sin((1 - a) * angle) * frozen + torch.sin(a * angle) * trained) / torch.sin(angle)
    return torch.where(cosine > 1 - 1e-6, line, arc)


def divergence(
    frozen: Tensor, trained: Tensor, kind: Literal["mse", "cosine"] = "mse", margin: float = 0.0
) -> Tensor:
    """How far the trained state is from the frozen one, per token: (..., d) -> (...)."""
    import torch

    if kind == "mse":
        return ((trained - frozen) ** 2).mean(-1)
    gap = torch.relu(1 - margin - torch.cosine_similarity(frozen, trained, dim=-1))
    return torch.nn.functional.smooth_l1_loss(gap, torch.zeros_like(gap), reduction="none")
