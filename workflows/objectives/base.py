"""What an objective is: a frozen, pure function from columns of log-probs to a Loss.

An objective declares the views it needs and what it reads of each. The trainer makes one forward a view and calls
the objective with a batch of columns. It never sees a model, a tokenizer or a device.

One optimizer step over several micro-batches or ranks, in full:

    sums = total of objective.statistics(part) over the parts        # only if objective.statistic_names
    losses = [objective({**part, **sums, **state}) for part in parts]
    loss = for each term: total of term.sum() / total of term.count(), added up
    state = losses[0].state                                          # the same from every part
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from selfloop.workflows.objectives.columns import Domain, prepare

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Batch", "Loss", "Normalizer", "Objective", "Term", "by_settings"]

Batch = Mapping[str, "Tensor"]
"""Columns by name: `VIEW.logprobs` (rows, tokens), nats, `VIEW.mask` beside it, and columns a row, (rows,)."""

Normalizer = Literal["examples", "tokens", "sequence-then-examples"] | float
"""What a term is divided by, counted over the whole global batch (one optimizer step).

examples: number of rows. tokens: sum of the mask. sequence-then-examples: each row by its own token count, then by
the number of rows. A number: that constant, times the number of rows.
"""


@dataclass(frozen=True)
class Term:
    """One part of a loss.

    values: (rows,) per example or (rows, tokens) per token. mask: same shape as values (None = all ones).
    """

    values: Tensor
    mask: Tensor | None = None
    normalizer: Normalizer = "examples"
    weight: float = 1.0

    def sum(self) -> Tensor:
        """Sum of the masked values (each row's token mean first for sequence-then-examples), times the weight."""
        import torch

        values = self.values
        if self.mask is not None:
            values = torch.where(self.mask.bool(), values * self.mask, torch.zeros_like(values))
        if values.dim() == 2:
            if self.normalizer == "sequence-then-examples":
                ones = torch.ones_like(values) if self.mask is None else self.mask
                values = values / ones.sum(-1, keepdim=True).clamp(min=1)
            values = values.sum(-1)
        return self.weight * values.sum()

    def count(self) -> Tensor:
        """This batch's share of the divisor: add it over micro-batches and ranks, then divide `sum` by it."""
        import torch

        if self.normalizer == "tokens":
            return torch.ones_like(self.values).sum() if self.mask is None else self.mask.sum()
        rows = self.values.new_tensor(float(self.values.shape[0]))
        return rows if isinstance(self.normalizer, str) else rows * self.normalizer


@dataclass(frozen=True)
class Loss:
    """Named terms, running state to keep, and figures to log (each (rows,), averaged over rows)."""

    terms: dict[str, Term]
    state: dict[str, Tensor] = field(default_factory=dict)
    logs: dict[str, Tensor] = field(default_factory=dict)

    def total(self) -> Tensor:
        """The scalar loss if this batch is the whole global batch."""
        parts = [term.sum() / term.count().clamp(min=1e-12) for term in self.terms.values()]
        return sum(parts[1:], start=parts[0])


class by_settings:
    """A `columns` that depends on the fields; read on the class it is that of the default fields."""

    def __init__(self, function: Callable[[Any], tuple[str, ...]]) -> None:
        self.function = function

    def __get__(self, instance: Any, owner: type[Any]) -> tuple[str, ...]:
        return self.function(owner() if instance is None else instance)


class Objective(BaseModel):
    """Base of all objectives; fields are hyperparameters with the paper's defaults.

    views: the views it needs. reads: for each view what it needs beside `VIEW.mask`, such as `logprobs`,
    `reference_logprobs`, `old_logprobs`. columns: columns without a view that rows must have; optional: those used
    where rows have them; alternatives: column -> the one that is read where a batch lacks it. detached: views whose
    log-probs need no gradient. domains: what a column may hold. statistic_names: keys of `statistics`; where the
    batch lacks them it is taken as the whole.

    A subclass writes `compute(batch)` and, if it has statistics, `sums(batch)`. Both get a checked batch: keys spelled
    `VIEW.name`, float32 or float64 throughout, zeros behind the masks.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(by_settings,))

    views: ClassVar[tuple[str, ...]] = ("response",)
    columns: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[tuple[str, ...]] = ("weight",)
    alternatives: ClassVar[Mapping[str, str]] = {}
    detached: ClassVar[tuple[str, ...]] = ()
    domains: ClassVar[Mapping[str, Domain]] = {}
    statistic_names: ClassVar[tuple[str, ...]] = ()

    @property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """What is read of each view."""
        return dict.fromkeys(self.views, ("logprobs",))

    @property
    def needs_reference(self) -> bool:
        """Whether any view's reference log-probs are read."""
        return any("reference_logprobs" in names for names in self.reads.values())

    @property
    def factors(self) -> tuple[str, ...]:
        """Columns that multiply every term: a row in which one of them is 0 adds exactly nothing to loss and gradient,
        whatever the weights. Where all rows are such, training is not run. A row's `weight` is one if it is used at all."""
        return ("weight",) if "weight" in (*self.columns, *self.optional) else ()

    def __call__(self, batch: Batch) -> Loss:
        """The loss of a batch of columns. Raises ObjectiveError naming the column and the row of bad input."""
        import torch

        checked = prepare(self, batch)
        if any(name not in checked for name in self.statistic_names):
            with torch.no_grad():
                checked = {**self.sums(checked), **checked}
        return self.compute(checked)

    def statistics(self, batch: Batch) -> dict[str, Tensor]:
        """Sums over this part of the batch; the engine adds them over the step and hands them back as columns."""
        import torch

        if not self.statistic_names:
            return {}
        with torch.no_grad():
            return self.sums(prepare(self, batch))

    def compute(self, batch: Batch) -> Loss:
        """The loss of a checked batch."""
        raise NotImplementedError

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        """The statistics of a checked batch."""
        return {}
