"""Advantage estimators: per prompt group on plain numbers, per token on padded tensors. All results are constants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from selfloop.workflows.errors import ObjectiveError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "adaptive_kl",
    "gae",
    "group_baseline",
    "group_normalized",
    "informative",
    "kl_estimate",
    "leave_one_out",
    "length_penalty",
    "rewards_to_go",
    "token_rewards",
    "whiten",
]


def group_normalized(
    rewards: Sequence[float], *, scale: bool = True, unbiased: bool = True, epsilon: float = 1e-6
) -> list[float]:
    """GRPO's advantage of one prompt group: (R - mean) / (std + epsilon); Dr. GRPO's with scale=False.

    A group of one keeps its reward (mean 0, std 1, as verl does): leave such groups out where that is not wanted.
    Source: DeepSeekMath, arXiv 2402.03300; Dr. GRPO, arXiv 2503.20783. The std is the one over n - 1
    in verl, TRL and understand-r1-zero.
    """
    if len(rewards) == 1:
        return [float(rewards[0])]
    centred = group_baseline(rewards)
    if not scale:
        return centred
    spread = math.sqrt(math.fsum(c * c for c in centred) / (len(rewards) - (1 if unbiased else 0)))
    return [c / (spread + epsilon) for c in centred]


def group_baseline(scores: Sequence[float]) -> list[float]:
    """Score minus the prompt group's mean: Dr. GRPO, and the first step of REINFORCE++-baseline."""
    if min(scores) == max(scores):
        return [0.0] * len(scores)
    average = math.fsum(scores) / len(scores)
    return [score - average for score in scores]


def leave_one_out(rewards: Sequence[float]) -> list[float]:
    """RLOO: each reward minus the mean of the other rewards of its prompt (arXiv 2402.14740)."""
    n = len(rewards)
    if n < 2:
        raise ObjectiveError(
            f"RLOO needs at least 2 samples a prompt and got {n}: the baseline of a sample is the mean of the others. "
            "Raise n in `sample`."
        )
    return [n / (n - 1) * centred for centred in group_baseline(rewards)]


def length_penalty(length: int, *, limit: int = 20480, cache: int = 4096) -> float:
    """DAPO's soft punishment of long answers, added to the reward (arXiv 2503.14476)."""
    if length <= limit - cache:
        return 0.0
    return (limit - cache - length) / cache if length <= limit else -1.0


def informative(correct: Sequence[bool | float]) -> bool:
    """DAPO's dynamic sampling keeps a prompt if some but not all of its answers are right (accuracy, not reward)."""
    return 0 < sum(bool(c) for c in correct) < len(correct)


def kl_estimate(logprobs: Tensor, reference: Tensor, kind: Literal["k1", "k2", "k3"] = "k3") -> Tensor:
    """Estimate of KL(policy || reference) per sampled token, d = log pi - log pi_ref.

    k1 = d (unbiased, may be negative), k2 = d^2/2, k3 = e^-d - 1 + d (unbiased, never negative). A reward penalty
    uses k1; a loss term uses k2 or k3.
    """
    import torch

    d = logprobs - reference
    if kind == "k1":
        return d
    return d * d / 2 if kind == "k2" else torch.expm1(-d) + d


def token_rewards(score: Tensor, kl: Tensor, mask: Tensor, coefficient: float) -> Tensor:
    """-coefficient * kl_t, plus the score (rows,) at the last response token. (rows, tokens)."""
    import torch

    later = mask.flip(-1).cumsum(-1).flip(-1)
    last = (mask > 0) & (later == 1)
    return torch.where(mask > 0, -coefficient * kl, torch.zeros_like(kl)) + last * score[:, None]


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over the response tokens: (advantages, returns), both (rows, tokens).

    delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lam A_{t+1}, returns = A + V, with V = 0 after the last
    response token; tokens outside the mask are stepped over. lam = 1: return minus value; lam = 0: one step.
    """
    import torch

    advantages = torch.zeros_like(values)
    next_advantage, next_value = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        inside = mask[:, t] > 0
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(inside, delta + gamma * lam * next_advantage, next_advantage)
        next_value = torch.where(inside, values[:, t], next_value)
        advantages[:, t] = torch.where(inside, next_advantage, torch.zeros_like(next_advantage))
    return advantages, torch.where(mask > 0, advantages + values, torch.zeros_like(values))


def rewards_to_go(rewards: Tensor, mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """REINFORCE++'s advantage before whitening: the sum of rewards from each token on. GAE without a critic."""
    import torch

    return gae(rewards, torch.zeros_like(rewards), mask, gamma=gamma, lam=1.0)[0]


def whiten(values: Tensor, mask: Tensor, *, unbiased: bool = False, floor: float = 1e-8) -> Tensor:
    """(A - mean) / std over all response tokens of the batch; zeros outside the mask.

    OpenRLHF's variance is over n, TRL's over n - 1 (unbiased). Give it the whole batch, never one rank's part.
    """
    import torch

    kept = values[mask > 0].double()
    variance = kept.var(unbiased=unbiased and kept.numel() > 1).clamp(min=floor)
    white = (values - kept.mean().to(values.dtype)) * variance.rsqrt().to(values.dtype)
    return torch.where(mask > 0, white, torch.zeros_like(white))


def adaptive_kl(
    coefficient: float, kl: float, *, target: float, samples: int, horizon: float = 10000
) -> float:
    """Next coefficient of the KL penalty (Ziegler et al. 2019, arXiv 1909.08593)."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * samples / horizon)
