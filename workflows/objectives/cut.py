"""CUT: tokens that a negative judgment explains are made unlikely, all others are learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from selfloop.workflows.errors import ObjectiveError
from selfloop.workflows.objectives.base import Batch, Loss, Objective, Term
from selfloop.workflows.objectives.columns import Domain, scalar
from selfloop.workflows.objectives.maths import log1mexp, weighed

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CUT"]


class CUT(Objective):
    """Contrastive unlikelihood training with judgments in words.

    Formula: p0_t = p(y_t | x), p-_t = p(y_t | x, judgment), U = {t: p-_t / p0_t > threshold}. Label 0: L1 = -[sum over
    t not in U of log p0_t + sum over t in U of alpha (p-_t)^gamma log(1 - p0_t)] / N; L2 = -log p-_t (label 0) or -log
    p0_t (label 1), mean over tokens. paper: L = L1 + L2. code: (L1 + L2)/2 if the batch has a negative, else L2
    Source: Xu et al. 2023, arXiv 2312.14591; official code wwxu21/CUT
    Tokens: each part is a mean over its own answer tokens in the whole global batch, punished or not.
    Differs: 1) gamma 0 is the code's constant weight; the ratio and (p-)^gamma carry no gradient. 2) The view `judged`
    holds the same answer tokens under the prompt with the judgment; rows of label 1 repeat their plain view there,
    and it is not used. 3) "The batch has a negative" is decided for the whole global batch.
    """

    views: ClassVar[tuple[str, ...]] = ("response", "judged")
    columns: ClassVar[tuple[str, ...]] = ("label",)
    domains: ClassVar[Mapping[str, Domain]] = {"label": "binary"}
    statistic_names: ClassVar[tuple[str, ...]] = ("negatives",)

    threshold: float = Field(default=1.1, ge=0, description="lambda (online 1.1; Shepherd judgments 1.2)")
    alpha: float = Field(
        default=1.0, ge=0, description="weight of the unlikelihood (scripts: online 1.0, offline 0.5)"
    )
    gamma: float = Field(
        default=0.0, ge=0, description="exponent of p- (paper searches .25 to 2; the code has no factor: 0)"
    )
    form: Literal["code", "paper"] = Field(default="code", description="how L1 and L2 are added")
    floor: float = Field(default=1e-5, gt=0, lt=1, description="1 - p is held at or above it (official code)")

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        return {"negatives": (1 - batch["label"]).sum()}

    def compute(self, batch: Batch) -> Loss:
        import torch

        self._refuse_unaligned(batch)
        mask, bad = batch["response.mask"], (1 - batch["label"])[:, None]
        plain, judged = batch["response.logprobs"], batch["judged.logprobs"]
        hint = judged.detach()
        punished = ((hint - plain.detach()).exp() > self.threshold) & (bad > 0)
        unlikely = -self.alpha * (self.gamma * hint).exp() * log1mexp(plain, _ceiling(self.floor))
        contrast = torch.where(punished, unlikely, -plain)
        likely = torch.where(bad > 0, -judged, -plain)
        share = 1.0
        if self.form == "code":
            share = torch.where(scalar(batch["negatives"]) > 0, 0.5, 1.0).to(plain.dtype)
        terms = {
            "likelihood": Term(weighed(share * likely, batch), mask, "tokens"),
            "contrast": Term(weighed(share * contrast, batch), mask * bad, "tokens"),
        }
        marked = (punished * mask).sum(-1) / mask.sum(-1)
        return Loss(terms, logs={"punished": marked})

    def _refuse_unaligned(self, batch: Batch) -> None:
        if batch["response.mask"].shape != batch["judged.mask"].shape:
            raise ObjectiveError(
                f"CUT: column 'judged.mask' has shape {tuple(batch['judged.mask'].shape)}, 'response.mask' "
                f"{tuple(batch['response.mask'].shape)}: both views must hold the same answer tokens."
            )
        apart = ((batch["response.mask"] > 0) != (batch["judged.mask"] > 0)).any(-1) & (batch["label"] < 1)
        if bool(apart.any()):
            raise ObjectiveError(
                f"CUT: column 'judged.mask', row {int(apart.nonzero()[0])} marks other tokens than 'response.mask': "
                "both views must hold the same answer tokens, only their prompts differ."
            )


def _ceiling(floor: float) -> float:
    import math

    return math.log1p(-floor)
