"""One train node: the reference pass, and optimizer steps that know no method.

A step is the same whatever the micro-batches and ranks: each term of the loss is divided by its count over the whole
step. Counts do not depend on log-probs, so every rank gets them from a dry call of the objective on zeros.

A rank never leaves a step alone: an error is kept until all ranks have run the same forwards and backwards, then all
of them raise it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from selfloop.actors.train.collectives import Collectives
from selfloop.actors.train.figures import StepFigures
from selfloop.actors.train.model.heads import Pooled
from selfloop.actors.train.model.teachers import Teaching
from selfloop.actors.train.model.zero import Sharded
from selfloop.actors.train.rows.examples import Examples, computed
from selfloop.actors.train.rows.micro import Micro, columns_of, micro_of
from selfloop.actors.train.rows.plan import Plan, Shapes
from selfloop.actors.train.scores import TokenScores, gives_of, micros_of, nothing
from selfloop.actors.train.start import StartScores
from selfloop.workflows.data.seeds import derive_seed
from selfloop.workflows.errors import ObjectiveError, SelfloopError, TrainerError
from selfloop.workflows.objectives.base import Loss, Objective

__all__ = ["StepError", "Training", "schedule"]


class StepError(TrainerError):
    """A step whose loss or gradient is not finite."""


def schedule(kind: str, lr: float, warmup: float, step: int, steps: int, floor: float = 0.0) -> float:
    """The learning rate of optimizer step `step` (from 0) of `steps`: a linear warm-up over a share of the steps, then
    constant, or down to the share `floor` of it linearly or along a cosine."""
    warm = int(np.ceil(warmup * steps))
    if step < warm:
        return lr * (step + 1) / warm
    done = (step - warm) / max(steps - warm, 1)
    if kind == "linear":
        return lr * (floor + (1 - floor) * (1 - done))
    if kind == "cosine":
        return float(lr * (floor + (1 - floor) * 0.5 * (1 + np.cos(np.pi * done))))
    return lr


@dataclass
class Training:
    """Examples, their objective and the model: all that a step needs.

    extra: what a forward gives beside log-probs or scalars. state: the objective's running state. start: log-probs of the
    start that the first step gives. doing: hears what is done beside the steps.
    """

    model: Sharded
    collectives: Collectives
    examples: Examples
    objective: Objective
    plan: Plan
    budget: int
    extra: Teaching | Pooled | None = None
    state: dict[str, Tensor] = field(default_factory=dict)
    doing: Callable[[str], None] = lambda what: None

    def __post_init__(self) -> None:
        self.gives = gives_of(self.objective, self.model.head)
        self.start = StartScores(self.examples, self.collectives, (), again=False)
        self.index = 0

    def draw(self, place: int) -> int | None:
        """The seed of the dropout in this rank's micro-batch number `place` of the step; None: there is no dropout."""
        if not self.model.dropouts:
            return None
        number = place * self.collectives.world + self.collectives.rank
        return derive_seed(self.plan.seed, "dropout", self.index, number) % 2**63  # torch's seeds are signed

    def outputs(self, place: int, micro: Micro) -> Tensor:
        """What the objective's columns are made of, in micro-batch number `place` of the step."""
        extra = self.extra.columns(micro) if self.extra else None
        return self.model.outputs(micro, self.gives, self.draw(place), extra)

    def micros(self, rows: np.ndarray) -> list[Micro]:
        """This rank's micro-batches of a step, dummies last."""
        return list(
            micros_of(
                self._shapes, self.examples.views, rows, self.budget, self.collectives, self.model.device
            )
        )

    @cached_property
    def _shapes(self) -> Shapes:
        flat = bool(self.model.flat) and (self.extra is None or self.extra.flat)
        return Shapes(self.examples.views, flat=flat)

    def add_reference(self) -> None:
        """Reference log-probs, under the weights now loaded, of all rows."""
        self._score(self.needing("reference_logprobs"), self.plan.seen())

    def add_start(self) -> None:
        """Old log-probs, and reference log-probs where they are still missing: both are those of the start, which is loaded
        now. With dropout no step sees the start as it is, so the first step's rows need a pass like the others."""
        reads = [*self.needing("reference_logprobs"), *self.needing("old_logprobs")]
        seen = self.plan.seen()
        self._score(reads, seen if self.model.dropouts else seen[1:])
        if reads and not self.model.dropouts:
            again = self.plan.steps > self.plan.per_epoch
            self.start = StartScores(self.examples, self.collectives, reads, again)

    def needing(self, name: str) -> list[tuple[str, str]]:
        """(view, name) of views whose objective reads `name` and whose rows do not have it yet."""
        reads = self.objective.reads.items()
        return [
            (view, name)
            for view, names in reads
            if name in names and (view, name) not in self.examples.values
        ]

    def _score(self, reads: Sequence[tuple[str, str]], batches: Sequence[np.ndarray]) -> None:
        """One pass without gradient: log-probs under the weights now loaded become the values `reads`; zero where no batch
        holds the row. batches: rows of steps of the first epoch."""
        if not reads:
            return
        found, name = TokenScores({view: self.examples.views[view] for view, _ in reads}), reads[0][1]
        for place, rows in enumerate(batches):
            self.doing(f"{name.replace('_', ' ')} of batch {place + 1:,} of {len(batches):,}")
            for micro in self.micros(rows):
                with torch.no_grad():
                    found.put(micro, self.model.outputs(micro))
        total = found.total(self.collectives)
        self.examples.values |= {(view, name): total[view] for view, name in reads}

    def step(self, index: int, lr: float) -> tuple[StepFigures, float]:
        """Optimizer step `index` of the plan: figures over all ranks, and the gradient's norm."""
        self.index, rows = index, self.plan.step(index)
        counts = self._counts(rows)
        micros = self.micros(rows)
        sums = self._sums(micros)
        mine, total = StepFigures(), StepFigures()
        for place, micro in enumerate(micros):
            outputs = self.outputs(place, micro)
            self.start.note(micro, outputs)
            self.model.backward(self._loss(micro, outputs, counts, sums, mine))
        for other in self.collectives.all(mine):
            total.merge(other)
        if total.error is not None:
            raise total.error
        norm = self.model.step(lr)
        if not np.isfinite(norm):
            raise StepError(f"the gradient is not finite (its norm is {norm}; the loss was {total.loss:.6g})")
        self.state = total.state
        self.start.close()
        return total, norm

    def _counts(self, rows: np.ndarray) -> dict[str, float]:
        """Each term's divisor over the whole step, from a dry call on zeros; the same on every rank. Bad columns are
        found here, on all ranks at once."""
        micro = micro_of(self.examples.views, rows)
        batch = columns_of(self.examples, micro)
        zeros = {
            f"{view}.{name}": nothing(micro, view, name)
            for view, names in self.objective.reads.items()
            for name in names
            if computed(name)
        }
        with torch.no_grad():
            loss = self._call(micro, {**zeros, **batch, **self._state_columns(micro)})
        least = 1e-12  # a term that counts nothing sums to zero, and zero it stays
        return {name: max(float(term.count()), least) for name, term in loss.terms.items()}

    def _sums(self, micros: Sequence[Micro]) -> dict[str, Tensor]:
        """The objective's statistics over the whole step, from a pass without gradient."""
        names = self.objective.statistic_names
        if not names:
            return {}
        total: dict[str, Tensor] = {}
        error: SelfloopError | None = None
        for place, micro in enumerate(micros):
            with torch.no_grad():
                outputs = self.outputs(place, micro)
            if not len(micro.rows) or error is not None:
                continue
            batch = {**self._batch(micro, outputs), **self._state_columns(micro)}
            try:
                parts = self.objective.statistics(batch)
            except Exception as met:
                error = self._named(met, micro, batch)
                continue
            for name, value in parts.items():
                part = value.detach().double().cpu()
                total[name] = total[name] + part if name in total else part
        everywhere: dict[str, Tensor] = {}
        for found, met in self.collectives.all((total, error)):
            if met is not None:
                raise met
            for name, value in found.items():
                everywhere[name] = everywhere[name] + value if name in everywhere else value
        return everywhere

    def _loss(
        self,
        micro: Micro,
        outputs: Tensor,
        counts: Mapping[str, float],
        sums: Mapping[str, Tensor],
        figures: StepFigures,
    ) -> Tensor:
        """This micro-batch's share of the step's loss; zero for a dummy or after an error."""
        zero = (outputs * 0.0).sum()
        if not len(micro.rows) or figures.error is not None:
            return zero
        expanded = {
            name: value.to(outputs.device).expand(len(micro.rows)) if value.dim() == 0 else value
            for name, value in sums.items()
        }
        batch = {**self._batch(micro, outputs), **expanded, **self._state_columns(micro)}
        try:
            loss = self._call(micro, batch)
        except SelfloopError as error:
            figures.error = error
            return zero
        shares = {name: term.sum() / counts[name] for name, term in loss.terms.items()}
        total = sum(shares.values(), start=zero.new_zeros(()))
        value = float(total.detach())
        if not np.isfinite(value):
            bad = {name: float(share.detach()) for name, share in shares.items()}
            figures.error = StepError(f"the loss is not finite: its terms are {bad}")
            return zero
        figures.note(loss, shares, micro, value)
        return total if total.requires_grad else total + zero

    def _batch(self, micro: Micro, outputs: Tensor) -> dict[str, Tensor]:
        """The columns an objective is called with."""
        batch = columns_of(self.examples, micro)
        for view, names in self.objective.reads.items():
            if self.gives in names:
                spread = micro.spread_rows if self.gives == "rewards" else micro.spread
                values = spread(outputs, view)
                batch[f"{view}.{self.gives}"] = values.detach() if view in self.objective.detached else values
        if self.extra is not None:
            batch |= self.extra.split(micro, outputs)
        return batch | self.start.columns(micro, outputs)

    def _state_columns(self, micro: Micro) -> dict[str, Tensor]:
        """Running state as columns: a number is the same on every row."""
        rows, device = len(micro.rows), micro.input_ids.device
        return {
            name if name.startswith("state_") else f"state_{name}": (
                value.to(device).expand(rows) if value.dim() == 0 else value.to(device)
            )
            for name, value in self.state.items()
        }

    def _call(self, micro: Micro, batch: Mapping[str, Tensor]) -> Loss:
        try:
            return self.objective(batch)
        except Exception as error:
            raise self._named(error, micro, batch) from error

    def _named(self, error: Exception, micro: Micro, batch: Mapping[str, Tensor]) -> SelfloopError:
        """The error of an objective, with the name of the row it is about."""
        who = type(self.objective).__name__
        if not isinstance(error, ObjectiveError):
            return TrainerError(
                f"the objective {who} raised {type(error).__name__}: {error}. It was called with {sorted(batch)} of "
                f"{len(micro.rows)} examples; mend the objective"
            )
        for place, row in enumerate(micro.rows):
            one = {name: value[place : place + 1] for name, value in batch.items() if value.dim()}
            try:
                with torch.no_grad():
                    self.objective(one)
            except ObjectiveError:
                return ObjectiveError(f"{error} The row is {self.examples.name(int(row))}.")
            except Exception:
                break
        return error
