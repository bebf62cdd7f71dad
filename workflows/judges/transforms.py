"""Reward transforms: what becomes of a raw reward before a policy is trained on it. Pure, on numbers.

Both transforms are called with rewards and the base policy's rewards on the same prompt:
`transform(rewards, base)`; numbers give a number, sequences a list, tensors a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "TRANSFORMS",
    "InfAlign",
    "LogSigmoidCentred",
    "beta_at_kl",
    "calibrate",
    "conjunction",
    "inference_win_rate",
    "optimal_transform",
    "self_aligned_reward",
    "tilt_kl",
]

Floats = NDArray[np.float64]
Phi = Callable[[Floats], Floats]
NODES = 2000  # of the quadrature on [0, 1]


class LogSigmoidCentred(BaseModel):
    """Log-sigmoid-centred reward: the log-probability that the response is "good", better than a reference.

    Formula: u = log s(r - r_ref), r_ref = the 0.85 quantile of the base policy's rewards on the prompt (one base value
    is the reference itself, such as a canned refusal's reward)
    Source: Wang, Nagpal, Berant et al. 2024, arXiv 2402.00742
    Only rewards on the Bradley-Terry logit scale can be transformed, and added, like this (`conjunction`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    quantile: float = Field(
        default=0.85, gt=0, lt=1, description="of the base policy's rewards (helpfulness)"
    )
    fit: Literal["samples", "normal"] = Field(
        default="samples", description="quantile of the samples, or of a normal fit"
    )

    def reference(self, base: ArrayLike) -> float:
        """r_ref from the base policy's rewards on one prompt: store it once per prompt and base policy."""
        from statistics import NormalDist

        values = np.atleast_1d(np.asarray(base, dtype=np.float64))
        if self.fit == "normal" and len(values) > 1:
            return float(values.mean() + NormalDist().inv_cdf(self.quantile) * values.std(ddof=1))
        return float(np.quantile(values, self.quantile))

    def __call__(self, rewards: Any, base: ArrayLike) -> Any:
        """u of each reward."""
        gap = np.asarray(rewards, dtype=np.float64) - self.reference(base)
        return _like(-np.logaddexp(0.0, -gap), rewards)


class InfAlign(BaseModel):
    """InfAlign's calibrate-and-transform reward: the percentile under the base policy, bent for a decoding procedure.

    Formula: C = share of base rewards below r + half the share of equal ones, Phi(C) = sign(t) e^{tC}; unit: (e^{tC} -
    1) / (e^t - 1), which is the same up to the scale of beta; identity: C; log: log C
    Source: Balashankar, Sun et al. 2024, arXiv 2412.19792 (abstract and summaries; t from memory)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: Literal["unit", "exponential", "identity", "log"] = Field(default="unit", description="Phi")
    t: float = Field(default=10.0, description="best-of-4: 10; worst-of-4 (jailbreaks): -10")

    def __call__(self, rewards: Any, base: ArrayLike) -> Any:
        """Phi(C) of each reward."""
        return _like(self.phi(np.asarray(calibrate(rewards, base), dtype=np.float64)), rewards)

    def phi(self, u: Floats) -> Floats:
        """The transform of a percentile."""
        if self.form == "log":
            return np.log(np.maximum(u, 1e-12))
        if self.form == "identity" or self.t == 0:
            return u
        if self.form == "exponential":
            return math.copysign(1.0, self.t) * np.exp(self.t * u)
        return np.expm1(self.t * u) / np.expm1(self.t)


TRANSFORMS: dict[str, type[LogSigmoidCentred | InfAlign]] = {
    "reward-transform": LogSigmoidCentred,
    "infalign": InfAlign,
}


def conjunction(*utilities: Any) -> Any:
    """log P(all properties hold) of independent judgements: the sum of log-sigmoid-centred rewards."""
    return _like(np.sum([np.asarray(u, dtype=np.float64) for u in utilities], axis=0), utilities[0])


def calibrate(rewards: Any, base: ArrayLike) -> Any:
    """C(x, y): share of the base policy's rewards on the prompt below each reward, equal ones counted half."""
    values = np.asarray(rewards, dtype=np.float64)
    stored = np.sort(np.atleast_1d(np.asarray(base, dtype=np.float64)))
    below, upto = np.searchsorted(stored, values, "left"), np.searchsorted(stored, values, "right")
    return _like((below + upto) / (2 * len(stored)), rewards)


def self_aligned_reward(
    correct: float, conditional: Sequence[float], unconditional: Sequence[float], *, alpha: float = 0.2
) -> float:
    """SAR's reward c + alpha max(-1, 1 - ppl(a|q) / ppl(a)) from a response's log-probs with and without the question.

    Both lists score the same response tokens, end token included, under the rollout policy. Perplexities are of
    token means, taken in logs. No tokens: SAR 0 (ours). Source: Han et al. 2025, arXiv 2509.05489
    """
    if len(conditional) != len(unconditional):
        raise ValueError(
            f"SAR got {len(conditional)} log-probs with the question and {len(unconditional)} without it: both must "
            "score the same response tokens. Measure the same response ids under both prompts."
        )
    if not conditional:
        return correct
    gap = (math.fsum(unconditional) - math.fsum(conditional)) / len(conditional)
    return correct + alpha * max(-1.0, -math.expm1(min(gap, 1.0)))


def tilt_kl(phi: Phi, beta: float) -> float:
    """KL(pi || base) of the optimum of E[Phi(C)] - beta KL: the density of percentiles is f = e^{Phi/beta} / Z."""
    u, w = _nodes()
    log_f = _log_density(phi, beta)(u)
    return float((w * np.exp(log_f) * log_f).sum())


def inference_win_rate(phi: Phi, beta: float, n: int = 1, *, worst: bool = False) -> float:
    """Win rate of best-of-n (or worst-of-n) of that optimum against the same procedure on the base policy."""
    u, w = _nodes()
    F = _cumulative(phi, beta)(u)
    if worst:
        return float(n * (w * (1 - F) ** n * (1 - u) ** (n - 1)).sum())
    return float(1 - n * (w * F**n * u ** (n - 1)).sum())


def beta_at_kl(phi: Phi, kl: float) -> float:
    """The beta at which the optimum is this far from the base policy, so that transforms compare at equal KL."""
    from scipy.optimize import brentq

    return math.exp(float(brentq(lambda b: tilt_kl(phi, math.exp(b)) - kl, -8.0, 14.0)))  # type: ignore[arg-type]


def optimal_transform(n: int, beta: float, *, worst: bool = False, rounds: int = 200) -> Phi:
    """The transform whose own optimum satisfies the stationarity of best-of-n (worst-of-n) win rate; derived, ours.

    Phi' is proportional to F^{n-1} u^{n-1} (worst: (1-F)^{n-1} (1-u)^{n-1}), scaled to [0, 1]. n = 1: identity.
    """
    grid = np.linspace(0.0, 1.0, NODES + 1)
    values = grid.copy()
    for _ in range(rounds):
        F = _cumulative(lambda u, v=values: np.interp(u, grid, v), beta)(grid)
        slope = ((1 - F) * (1 - grid)) ** (n - 1) if worst else (F * grid) ** (n - 1)
        new = np.concatenate([[0.0], np.cumsum((slope[1:] + slope[:-1]) / 2)])
        new /= new[-1]
        if np.abs(new - values).max() < 1e-10:
            break
        values = (values + new) / 2
    return lambda u: np.interp(u, grid, values)


def _nodes() -> tuple[Floats, Floats]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(200)
    return (x + 1) / 2, w / 2


def _log_density(phi: Phi, beta: float) -> Phi:
    u, w = _nodes()
    top = float(np.max(phi(np.array([0.0, 1.0])))) / beta
    log_z = top + math.log(float((w * np.exp(phi(u) / beta - top)).sum()))
    return lambda x: phi(x) / beta - log_z


def _cumulative(phi: Phi, beta: float) -> Phi:
    """F, the distribution of percentiles under the optimum."""
    u, w = _nodes()
    density = _log_density(phi, beta)

    def cumulative(x: Floats) -> Floats:
        inner = np.exp(density(x[:, None] * u[None, :])) @ w
        return np.clip(x * inner, 0.0, 1.0)

    return cumulative


def _like(values: Any, given: Any) -> Any:
    """The values in the kind of container the caller gave."""
    if hasattr(given, "new_tensor"):
        return given.new_tensor(np.asarray(values))
    if isinstance(given, np.ndarray):
        return values
    return values.tolist() if isinstance(values, np.ndarray) else float(values)
