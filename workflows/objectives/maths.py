"""The few formulas that the objectives share. All take checked columns: zero behind the mask, float32 or float64."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from selfloop.workflows.objectives.base import Batch, Normalizer, Term

__all__ = [
    "full_kl",
    "length",
    "log1mexp",
    "log_ratio",
    "mean",
    "nll_term",
    "soft_logistic",
    "total",
    "weighed",
]


def length(batch: Batch, view: str) -> Tensor:
    """Number of response tokens, (rows,); at least 1, so that absent candidates do not divide by zero."""
    return batch[f"{view}.mask"].sum(-1).clamp(min=1)


def total(batch: Batch, view: str, read: str = "logprobs") -> Tensor:
    """Sum over the response tokens, (rows,); (rows, k) for `ranked`."""
    return (batch[f"{view}.{read}"] * batch[f"{view}.mask"]).sum(-1)


def mean(batch: Batch, view: str, read: str = "logprobs") -> Tensor:
    """Mean over the response tokens, (rows,); (rows, k) for `ranked`."""
    return total(batch, view, read) / length(batch, view)


def log_ratio(batch: Batch, view: str, *, reference: bool = True, average: bool = False) -> Tensor:
    """d(y): sum (or mean) over response tokens of log pi - log pi_ref; without the reference just of log pi."""
    reduce = mean if average else total
    ratio = reduce(batch, view)
    return ratio - reduce(batch, view, "reference_logprobs") if reference else ratio


def soft_logistic(x: Tensor, target: Tensor | float = 1.0) -> Tensor:
    """-p log s(x) - (1-p) log s(-x), p the probability that the pair is right way round."""
    from torch.nn.functional import softplus

    return target * softplus(-x) + (1 - target) * softplus(x)


def log1mexp(x: Tensor, ceiling: float = -1e-6) -> Tensor:
    """log(1 - e^x) for x < 0, accurate at both ends; x is held at `ceiling` (gradient 0 above) to stay finite."""
    import torch

    x = x.clamp(max=ceiling)
    near = x > -math.log(2)
    # Each branch gets arguments of its own domain, so that the one not taken has a finite gradient.
    small = torch.log(-torch.expm1(torch.where(near, x, torch.full_like(x, -1.0))))
    large = torch.log1p(-torch.exp(torch.where(near, torch.full_like(x, -1.0), x)))
    return torch.where(near, small, large)


def weighed(values: Tensor, batch: Batch) -> Tensor:
    """Values times the row's `weight`, where rows have one."""
    weight = batch.get("weight")
    if weight is None:
        return values
    return values * weight.reshape(-1, *[1] * (values.dim() - 1))


def nll_term(batch: Batch, view: str, normalizer: Normalizer, weight: float) -> Term:
    """Negative log-likelihood of a view's tokens."""
    from selfloop.workflows.objectives.base import Term

    return Term(weighed(-batch[f"{view}.logprobs"], batch), batch[f"{view}.mask"], normalizer, weight)


def full_kl(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """KL(pi_ref || pi) over the last axis (the vocabulary), in float32 or better; no gradient into the reference."""
    import torch

    dtype = torch.promote_types(logits.dtype, torch.float32)
    policy = logits.to(dtype).log_softmax(-1)
    reference = reference_logits.detach().to(dtype).log_softmax(-1)
    return (reference.exp() * (reference - policy)).sum(-1)
