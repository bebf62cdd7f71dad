"""Supervised fine-tuning, weighted or not, and its mirror image: unlikelihood of bad tokens or responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from selfloop.workflows.objectives.base import Batch, Loss, Normalizer, Objective, Term, by_settings
from selfloop.workflows.objectives.columns import Domain
from selfloop.workflows.objectives.maths import length, log1mexp, mean, nll_term, total, weighed

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SFT", "repeat_mask", "unlikelihood"]

NORMALIZERS: dict[str, Normalizer] = {
    "token-mean": "tokens",
    "sequence-mean": "sequence-then-examples",
    "sequence-sum": "examples",
}


class SFT(Objective):
    """Supervised fine-tuning; with `unlikelihood`, rows of label 0 are made unlikely instead.

    Formula: L = -w sum_t log p_t / N; unlikelihood + alpha (-w sum_t c_t log(1 - p_t) / N)
    Source: standard; unlikelihood: Welleck et al. 2019, arXiv 1908.04319
    Tokens: token-mean divides by the tokens of the whole global batch, sequence-mean by each response's own tokens
    and then by the rows, sequence-sum by the rows alone. A row's weight is not in the divisor.
    Differs: 1) The candidate form (every earlier context token is a negative) needs the log-probs of tokens that are
    not in the response; only tokens of the response can be unlikely here. 2) Decoding the continuations of the
    sequence form is the recipe's work; `repeat_mask` then gives the column `response.unlikely` (c_t; absent = all
    tokens of a row of label 0).
    """

    domains: ClassVar[Mapping[str, Domain]] = {"label": "binary"}
    optional: ClassVar[tuple[str, ...]] = ("weight", "response.unlikely")

    normalizer: Literal["token-mean", "sequence-mean", "sequence-sum"] = Field(
        default="token-mean",
        description="what the sum over tokens is divided by (the default of the frameworks)",
    )
    unlikelihood: Literal["none", "token", "sequence", "mean"] = Field(
        default="none",
        description="rows of label 0: each token, the whole response by its sum, or by its mean log-prob",
    )
    alpha: float = Field(default=1.0, ge=0, description="weight of the unlikelihood term (Welleck et al.)")
    floor: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="1 - p is held at or above it; None: 1e-5 for token, 1e-20 for the whole response (official code)",
    )

    @by_settings
    def columns(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """`label` where some rows are to be made unlikely."""
        return () if self.unlikelihood == "none" else ("label",)

    def compute(self, batch: Batch) -> Loss:
        normalizer = NORMALIZERS[self.normalizer]
        if self.unlikelihood == "none":
            return Loss({"nll": nll_term(batch, "response", normalizer, 1.0)}, logs=_logs(batch))
        good, bad = batch["label"], 1 - batch["label"]
        mask = batch["response.mask"]
        nll = weighed(-batch["response.logprobs"] * good[:, None], batch)
        if self.unlikelihood == "token":
            marked = bad[:, None] * batch.get("response.unlikely", mask)
            floor = 1e-5 if self.floor is None else self.floor
            values = weighed(marked * unlikelihood(batch["response.logprobs"], floor), batch)
            bad_term = Term(values, mask, normalizer, self.alpha)
        else:
            event = (total if self.unlikelihood == "sequence" else mean)(batch, "response")
            floor = 1e-20 if self.floor is None else self.floor
            bad_term = Term(weighed(bad * unlikelihood(event, floor), batch), None, "examples", self.alpha)
        return Loss({"nll": Term(nll, mask, normalizer), "unlikelihood": bad_term}, logs=_logs(batch))


def unlikelihood(logprobs: Tensor, floor: float = 1e-5) -> Tensor:
    """-log(1 - p) of log-probs, with 1 - p held at `floor` or above; its slope in log p is p / (1 - p)."""
    import math

    return -log1mexp(logprobs, math.log1p(-floor))


def repeat_mask(tokens: Sequence[int], n: int = 4) -> list[bool]:
    """Which tokens lie in an n-gram that occurred before (the official code misses one that ends the text)."""
    seen: set[tuple[int, ...]] = set()
    marked = [False] * len(tokens)
    for start in range(len(tokens) - n + 1):
        gram = tuple(tokens[start : start + n])
        if gram in seen:
            marked[start : start + n] = [True] * n
        seen.add(gram)
    return marked


def _logs(batch: Batch) -> dict[str, Tensor]:
    return {"logprob": mean(batch, "response").detach(), "tokens": length(batch, "response")}
