"""Random batches that fit any objective, made from what it declares."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from selfloop.workflows.objectives import (
    AFT,
    ASFT,
    BCO,
    CPO,
    CUT,
    DNO,
    DPO,
    GRPO,
    IREPO,
    OBJECTIVES,
    ORPO,
    PPO,
    PRO,
    SAMI,
    SCIR,
    SFT,
    SPIN,
    BradleyTerry,
    BradleyTerryRanking,
    Loss,
    Objective,
    SimPO,
    ValueLoss,
)
from selfloop.workflows.objectives.columns import ROW_READS

CANDIDATES = 3
HIDDEN = 4

VARIANTS: dict[str, Objective] = {
    **{slug: cls() for slug, cls in OBJECTIVES.items()},
    "sft-sequence-mean": SFT(normalizer="sequence-mean"),
    "sft-sequence-sum": SFT(normalizer="sequence-sum"),
    "sft-unlikelihood-token": SFT(unlikelihood="token"),
    "sft-unlikelihood-sequence": SFT(unlikelihood="sequence"),
    "sft-unlikelihood-mean": SFT(unlikelihood="mean", normalizer="sequence-mean"),
    "dpo-cdpo": DPO(label_smoothing=0.1),
    "dpo-robust": DPO(loss="robust", label_smoothing=0.1),
    "dpo-hinge": DPO(loss="hinge"),
    "dpo-ipo-mean": DPO(loss="ipo"),
    "dpo-ipo-sum": DPO(loss="ipo", ipo_average=False, tau=0.3),
    "dpo-slic": DPO(loss="slic"),
    "dpo-bco-pair": DPO(loss="bco_pair"),
    "dpo-nll": DPO(nll_coefficient=0.5),
    "dpo-reference-free": DPO(reference_free=True),
    "dpo-length-normalized": DPO(length_normalized=True),
    "spin-hinge": SPIN(loss="hinge"),
    "dno-exact": DNO(form="exact"),
    "simpo-hinge": SimPO(loss="hinge"),
    "simpo-smoothed-nll": SimPO(label_smoothing=0.1, nll_coefficient=0.5),
    "cpo-hinge": CPO(loss="hinge"),
    "cpo-simpo": CPO(length_normalized=True, gamma=0.5),
    "orpo-tempered": ORPO(temperature=0.3, nll_normalizer="sequence-mean"),
    "asft-tempered": ASFT(temperature=0.3, nll_coefficient=0.0),
    "bco-balanced": BCO(shift="balanced"),
    "bco-none": BCO(shift="none"),
    "pro-ranks": PRO(use_scores=False),
    "pro-fixed-weight": PRO(sft_weight=0.3),
    "aft-boundary": AFT(constraint="boundary"),
    "aft-none": AFT(constraint="none"),
    "bradley-terry-centred": BradleyTerry(centering=0.01),
    "bradley-terry-ranking-centred": BradleyTerryRanking(centering=0.01),
    "irepo-logistic": IREPO(loss="logistic"),
    "cut-paper": CUT(form="paper", gamma=0.5),
    "scir-length-normalized": SCIR(length_normalized=True),
    "sami-3": SAMI(constitutions=3),
    "grpo-dapo": GRPO(loss="dapo", epsilon_high=0.28, delta=3.0),
    "grpo-dr": GRPO(loss="dr_grpo", max_length=7),
    "grpo-bnpo": GRPO(loss="bnpo"),
    "grpo-kl": GRPO(beta=0.04),
    "grpo-kl2": GRPO(beta=0.04, kl="k2"),
    "grpo-on-policy": GRPO(on_policy=True),
    "grpo-corrected": GRPO(importance_cap=2.0),
    "gspo-wide": GRPO(ratio="gspo", importance_cap=2.0, beta=0.04),
    "ppo-sequence-mean": PPO(normalizer="sequence-mean"),
    "ppo-rloo": PPO(ratio="sequence"),
    "ppo-whitened": PPO(whiten="population"),
    "ppo-shared-trunk": PPO(vf_coefficient=0.1),
    "ppo-value-unclipped": ValueLoss(value_clip=None),
}

BATCH = 5
LOG2 = math.log(2)
NAN = float("nan")


def random_batch(
    objective: Objective,
    seed: int = 0,
    rows: int = BATCH,
    tokens: int = 4,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """Finite log-probs below zero, ragged masks, and columns from their domains. Some of each label."""
    make = torch.Generator().manual_seed(seed)

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return (torch.rand(*shape, generator=make, dtype=torch.float64) * (high - low) + low).to(dtype)

    batch: dict[str, Tensor] = {}
    aligned = uniform(rows)
    for view, reads in objective.reads.items():
        shape = (rows, CANDIDATES) if view == "ranked" else (rows,)
        for read in reads:
            if read in ROW_READS:
                more = (HIDDEN,) if read == "hidden" else ()
                batch[f"{view}.{read}"] = uniform(*shape, *more, low=-1)
                continue
            lengths = aligned if isinstance(objective, CUT) else uniform(*shape)
            mask = torch.arange(tokens) < (1 + (lengths[..., None] * (tokens - 1)).round())
            batch.setdefault(f"{view}.mask", mask.to(dtype))
            if read == "logprobs" or read.endswith("_logprobs"):
                batch[f"{view}.{read}"] = uniform(*shape, tokens, low=-2.0, high=-0.1)
            elif read == "correct":
                batch[f"{view}.{read}"] = uniform(*shape, tokens).round()
            else:
                batch[f"{view}.{read}"] = uniform(*shape, tokens, low=0.05)
    for name in objective.columns:
        batch[name] = _column(name, objective, rows, tokens, uniform)
    return batch


def _column(name: str, objective: Objective, rows: int, tokens: int, uniform: object) -> Tensor:
    assert callable(uniform)
    if name in ("label", "group") and objective.domains.get(name) != "unit":
        return torch.arange(rows).remainder(2).to(uniform(1).dtype)
    if name in ("label", "weight"):
        return uniform(rows, low=0.1, high=0.9)
    if name == "rank":
        return uniform(rows, CANDIDATES).argsort(-1).to(uniform(1).dtype)
    if name == "scores":
        return uniform(rows, CANDIDATES, low=-1)
    if name in ("chosen_phrase", "rejected_phrase"):
        return uniform(rows, tokens, high=2.4).round()
    if name in ("returns", "old_values"):
        return uniform(rows, tokens, low=-1)
    return uniform(rows, low=-1)


def trained(objective: Objective, batch: Mapping[str, Tensor]) -> list[str]:
    """The columns that carry gradient."""
    inputs = ("logprobs", "rewards", "values", "token_kl", "kl_first", "kl_second", "divergence")
    reads = objective.reads.items()
    return [f"{v}.{r}" for v, names in reads if v not in objective.detached for r in names if r in inputs]


def one(*logprobs: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """One row of log-probs, (1, tokens)."""
    return torch.tensor([list(logprobs)], dtype=dtype)


def pair(
    chosen: Tensor,
    rejected: Tensor,
    chosen_reference: Tensor | None = None,
    rejected_reference: Tensor | None = None,
) -> dict[str, Tensor]:
    """A batch of pairs from log-probs; nan marks padding; references default to zeros."""
    batch: dict[str, Tensor] = {}
    sides = {"chosen": (chosen, chosen_reference), "rejected": (rejected, rejected_reference)}
    for view, (policy, reference) in sides.items():
        batch[f"{view}.logprobs"] = policy
        batch[f"{view}.mask"] = policy.detach().isfinite().to(policy.dtype)
        batch[f"{view}.reference_logprobs"] = torch.zeros_like(policy) if reference is None else reference
    return batch


def gradients(objective: Objective, batch: Mapping[str, Tensor], *names: str) -> list[Tensor]:
    """d total / d column, of copies of these columns."""
    leaves = {name: batch[name].detach().clone().requires_grad_() for name in names}
    total = objective({**batch, **leaves}).total()
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return [torch.zeros_like(batch[n]) if g is None else g for n, g in zip(names, found, strict=True)]


def summed(losses: list[Loss]) -> Tensor:
    """The loss of a whole step from its parts, as the trainer adds them up."""
    names = losses[0].terms
    sums = {name: sum(loss.terms[name].sum() for loss in losses) for name in names}
    counts = {name: sum(loss.terms[name].count() for loss in losses) for name in names}
    return sum((sums[name] / counts[name].clamp(min=1e-12) for name in names), start=torch.zeros(()))


def about(value: float, places: float = 1e-6) -> object:
    return pytest.approx(value, abs=places)


def total(objective: Objective, batch: dict[str, Tensor]) -> float:
    return float(objective(batch).total())


def sums(chosen: float, rejected: float) -> dict[str, Tensor]:
    """A pair whose log-ratios are these: one token each, references zero."""
    return pair(one(chosen), one(rejected))


def response(*rows: list[float], **columns: list[float]) -> dict[str, Tensor]:
    """Rows of log-probs, padded with nan."""
    width = max(map(len, rows))
    logprobs = torch.tensor([[*row, *[NAN] * (width - len(row))] for row in rows], dtype=torch.float64)
    batch = {"response.logprobs": logprobs, "response.mask": logprobs.isfinite().double()}
    return batch | {name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()}


def repeated(batch: dict[str, Tensor], times: int = 2) -> dict[str, Tensor]:
    """Every token twice, with the same log-probs."""
    return {n: c.repeat_interleave(times, -1) if "." in n else c for n, c in batch.items()}
