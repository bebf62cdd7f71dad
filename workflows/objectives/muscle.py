"""MUSCLE: a new model keeps its own skill and imitates the old model where it is itself wrong; and its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from selfloop.workflows.objectives.base import Batch, Loss, Objective, Term
from selfloop.workflows.objectives.maths import nll_term, weighed

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MUSCLE", "changed_errors", "score_changes", "teacher_columns"]


class MUSCLE(Objective):
    """Model update strategy for compatible evolution: token-masked distillation from two teachers.

    Formula: m_t = 1[argmax of C at t is not y_t], L = (1/n) sum_t m_t KL(p_old || p_C) + (1 - m_t) KL(p_new || p_C), +
    a NLL
    Source: Echterhoff et al. 2024, arXiv 2407.09435
    Tokens: mean over the target tokens of the global batch.
    Differs: 1) The three per-token columns come from the trainer, with gradient: `response.kl_first` (old teacher),
    `response.kl_second` (new teacher), `response.correct`. The teachers are `train(…, frozen={"first": old, "second": new})`;
    each rank holds them whole.
    """

    nll_coefficient: float = Field(
        default=0.0, ge=0, description="a; some large updates add the cross-entropy"
    )

    @property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """Two divergences and the mask per token; log-probs for the NLL."""
        return {"response": ("logprobs", "kl_first", "kl_second", "correct")}

    def compute(self, batch: Batch) -> Loss:
        import torch

        correct = batch["response.correct"].detach() > 0
        values = torch.where(correct, batch["response.kl_second"], batch["response.kl_first"])
        mask = batch["response.mask"]
        terms = {"distillation": Term(weighed(values, batch), mask, "tokens")}
        if self.nll_coefficient:
            terms["nll"] = nll_term(batch, "response", "tokens", self.nll_coefficient)
        return Loss(terms, logs={"correct": (correct * mask).sum(-1) / mask.sum(-1)})


def teacher_columns(
    logits: Tensor, old_logits: Tensor, new_logits: Tensor, targets: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """(kl_first, kl_second, correct) per position from the three models' logits (..., vocabulary) on one tokenizer."""
    from selfloop.workflows.objectives.maths import full_kl

    scaled = logits / temperature
    divergences = [full_kl(scaled, teacher / temperature) for teacher in (old_logits, new_logits)]
    return divergences[0], divergences[1], (logits.argmax(-1) == targets).to(divergences[0].dtype)


def changed_errors(answers: Sequence[object], old: Sequence[object], new: Sequence[object]) -> float:
    """NFR_mc: share of items on which the new model is wrong and says something else than the old one.

    Negative and positive flip rates are `evaluation.metrics.flips`.
    """
    wrong = [n not in (a, o) for a, o, n in zip(answers, old, new, strict=True)]
    return sum(wrong) / len(wrong)


def score_changes(differences: Sequence[float]) -> tuple[float, float]:
    """(m_g, m_r) of scores, new minus old: mean gain of the better items, mean regression of the worse ones."""
    up = [d for d in differences if d > 0]
    down = [-d for d in differences if d < 0]
    return (sum(up) / len(up) if up else 0.0), (sum(down) / len(down) if down else 0.0)
