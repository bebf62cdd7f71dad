"""Losses on several responses of one prompt: PRO, AFT and D2O. `ranked` columns are (rows, k, tokens).

A row may have fewer than k candidates: rank -1 marks an absent one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from selfloop.workflows.objectives.base import Batch, Loss, Objective, Term, by_settings
from selfloop.workflows.objectives.maths import log_ratio, mean, soft_logistic, total, weighed

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AFT", "D2O", "PRO", "better_worse", "rank_of", "share_of_pairs"]


class PRO(Objective):
    """Preference ranking optimization: the best against all others, then the second against the rest, and so on.

    Formula: s_k = (1/|y_k|) sum_t log pi(y_k,t), best first. With scores r: m_ki = r_k - r_i, m_kk = max_i>k m_ki,
    L_rank = sum_k<n [logsumexp_i>=k (m_ki s_i) - m_kk s_k]; without: all m = 1. L = L_rank - b sum_t log pi(y_1,t), b =
    0.05 (n - 1)^2
    Source: Song et al. 2023, arXiv 2306.17492; official code AlibabaResearch/DAMO-ConvAI, PRO
    Tokens: the ranking uses means over response tokens, the SFT part sums over the best response's; mean over prompts.
    Differs: 1) Candidates are sorted here: by `scores`, else by `rank`, so their order in the batch does not matter.
    2) A batch with `rank` alone takes the form without scores, in which candidates of equal rank are not compared.
    3) No 1e-10 inside the log.
    """

    views: ClassVar[tuple[str, ...]] = ("ranked",)
    optional: ClassVar[tuple[str, ...]] = ("weight", "rank")
    alternatives: ClassVar[Mapping[str, str]] = {"scores": "rank"}

    use_scores: bool = Field(default=True, description="gaps of scores as temperatures; False: only `rank`")
    sft_weight: float | None = Field(
        default=None, ge=0, description="b; None: 0.05 (n - 1)^2 (official code)"
    )

    @by_settings
    def columns(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """`scores` for the temperatures, else `rank`."""
        return ("scores",) if self.use_scores else ("rank",)

    def compute(self, batch: Batch) -> Loss:
        import torch

        scored = self.use_scores and "scores" in batch
        # A small key is a good candidate; absent ones come last.
        key = -batch["scores"] if scored else batch["rank"]
        present = batch["rank"] >= 0 if "rank" in batch else torch.ones_like(key, dtype=torch.bool)
        order = torch.where(present, key, torch.full_like(key, float("inf"))).argsort(dim=-1, stable=True)
        s, key, present = (t.gather(-1, order) for t in (mean(batch, "ranked"), key, present))
        values = _plackett_luce(s, key, present, temperatures=scored)
        n = present.sum(-1).to(s.dtype)
        best = total(batch, "ranked").gather(-1, order)[:, 0]
        b = 0.05 * (n - 1) ** 2 if self.sft_weight is None else torch.full_like(n, self.sft_weight)
        logs = {"best_logprob": s[:, 0].detach(), "candidates": n}
        return Loss({"rank": Term(weighed(values, batch)), "sft": Term(weighed(-b * best, batch))}, logs=logs)


def _plackett_luce(s: Tensor, key: Tensor, present: Tensor, *, temperatures: bool) -> Tensor:
    """L_rank of sorted candidates (rows, k), best first."""
    import torch

    k = s.shape[-1]
    gaps = key[:, None, :] - key[:, :, None]  # (rows, k, i): how much worse i is than k
    after = torch.ones(k, k, dtype=torch.bool, device=s.device).triu(1)
    rivals = after & present[:, None, :] & present[:, :, None]
    if not temperatures:
        rivals = rivals & (gaps > 0)
    multiplier = torch.where(rivals, gaps if temperatures else torch.ones_like(gaps), torch.zeros_like(gaps))
    own = multiplier.amax(-1)  # the largest gap
    minus_infinity = torch.full_like(gaps, float("-inf"))
    against = torch.where(rivals, multiplier * s[:, None, :], minus_infinity)
    against = torch.diagonal_scatter(against, own * s, dim1=-2, dim2=-1)
    terms = against.logsumexp(-1) - own * s
    return torch.where(rivals.any(-1), terms, torch.zeros_like(terms)).sum(-1)


class AFT(Objective):
    """Alignment fine-tuning: right solutions above wrong ones, without pushing the wrong ones to minus infinity.

    Formula: s(c) = (1/|c|) sum_t log pi(c_t), L_A = log(1 + sum over (better p, worse n) of exp(s_n - s_p)). detached:
    s_n has no gradient. boundary: + exp(T - s_n) in each pair, T = 2B - s_p, B = min over better s - delta, detached.
    L = L_A + NLL of the first best candidate (the reference solution)
    Source: Wang, Peiyi et al. 2023, arXiv 2309.02144; the boundary's exact form is from memory
    Tokens: scores are means over response tokens; L_A averages over questions; the NLL is divided by all tokens of the
    global batch's reference solutions.
    Differs: 1) Pairs are all (better, worse) by `rank`: right 0, wrong 1, or a full ranking. 2) delta is ours. 3) A row
    with no candidate of rank 0 has no reference solution and no NLL; `scores` alone say only which is best.
    """

    views: ClassVar[tuple[str, ...]] = ("ranked",)
    columns: ClassVar[tuple[str, ...]] = ("rank",)
    alternatives: ClassVar[Mapping[str, str]] = {"rank": "scores"}

    constraint: Literal["detached", "boundary", "none"] = Field(
        default="detached", description="what bounds the negatives"
    )
    delta: float = Field(
        default=0.3, gt=0, description="depth of the boundary below the worst right one (ours; tuned per set)"
    )
    nll_coefficient: float = Field(
        default=1.0, ge=0, description="weight of the NLL of the reference solution"
    )

    def compute(self, batch: Batch) -> Loss:
        import torch

        s, rank = mean(batch, "ranked"), rank_of(batch)
        pairs = better_worse(rank)
        worse = s.detach() if self.constraint == "detached" else s
        exponents = [worse[:, None, :] - s[:, :, None]]  # (rows, better, worse)
        if self.constraint == "boundary":
            better = torch.where(pairs.any(-1), s.detach(), torch.full_like(s, float("inf"))).amin(-1)
            bound = torch.where(better.isfinite(), better - self.delta, torch.zeros_like(better))
            exponents.append(2 * bound[:, None, None] - s[:, :, None] - s[:, None, :])
        minus_infinity = torch.full_like(exponents[0], float("-inf"))
        kept = [torch.where(pairs, e, minus_infinity).flatten(1) for e in exponents]
        values = torch.cat([s.new_zeros(len(s), 1), *kept], dim=1).logsumexp(-1)
        right = (s[:, :, None] > s[:, None, :]) & pairs
        logs = {"assessment_accuracy": share_of_pairs(right, pairs)}
        return Loss({"alignment": Term(weighed(values, batch)), "nll": self._nll(batch, rank)}, logs=logs)

    def _nll(self, batch: Batch, rank: Tensor) -> Term:
        """NLL of each row's first candidate of rank 0; a row without one has none."""
        right = (rank == 0).to(rank.dtype)
        first = right.argmax(-1)
        logprobs, mask = (
            batch[name].gather(1, first[:, None, None].expand(-1, 1, batch[name].shape[-1]))[:, 0]
            for name in ("ranked.logprobs", "ranked.mask")
        )
        return Term(weighed(-logprobs, batch), mask * right.amax(-1)[:, None], "tokens", self.nll_coefficient)


class D2O(Objective):
    """Distributional dispreference optimization: away from one bad answer, anchored on the model's own K answers.

    Formula: d(y) = sum_t (log pi_t - log pi_ref,t), L = -log s((beta/K) sum_i d(y_i) - alpha d(y_neg)). y_i are
    `ranked`, y_neg is `rejected`; each view has its own reference column
    Source: Duan et al. 2024, arXiv 2403.03419
    Tokens: sums over response tokens, mean over prompts.
    """

    views: ClassVar[tuple[str, ...]] = ("ranked", "rejected")
    optional: ClassVar[tuple[str, ...]] = ("weight", "rank")

    beta: float = Field(default=0.1, ge=0, description="weight of the self-samples, inside s")
    alpha: float = Field(default=0.1, ge=0, description="weight of the negative, inside s")

    @property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """Log-probs of policy and reference."""
        return dict.fromkeys(self.views, ("logprobs", "reference_logprobs"))

    def compute(self, batch: Batch) -> Loss:
        samples, negative = log_ratio(batch, "ranked"), log_ratio(batch, "rejected")
        present = (batch["ranked.mask"].sum(-1) > 0).to(samples.dtype)
        anchor = (samples * present).sum(-1) / present.sum(-1).clamp(min=1)
        values = soft_logistic(self.beta * anchor - self.alpha * negative)
        logs = {
            "self_reward": (self.beta * anchor).detach(),
            "negative_reward": (self.alpha * negative).detach(),
        }
        return Loss({"preference": Term(weighed(values, batch))}, logs=logs)


def rank_of(batch: Batch) -> Tensor:
    """(rows, k): the column `rank`; without it, how many candidates have a higher score."""
    if "rank" in batch:
        return batch["rank"]
    scores = batch["scores"]
    return (scores[:, None, :] > scores[:, :, None]).sum(-1).to(scores.dtype)


def share_of_pairs(values: Tensor, pairs: Tensor) -> Tensor:
    """(rows,) whose mean over rows is the mean of `values` over all pairs of the batch."""
    import torch

    kept = torch.where(pairs, values, torch.zeros_like(values)).sum((1, 2)).detach()
    return kept * len(pairs) / pairs.sum().clamp(min=1)


def better_worse(rank: Tensor) -> Tensor:
    """(rows, k, k): whether candidate i is better than candidate j. Ties and absent ones are in no pair."""
    here = rank >= 0
    return (rank[:, :, None] < rank[:, None, :]) & here[:, :, None] & here[:, None, :]
