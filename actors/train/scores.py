"""Forwards over rows, on every rank: what they give, in which micro-batches, and scores without gradient."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from selfloop.actors.train.collectives import Collectives
from selfloop.actors.train.rows.examples import SCALARS
from selfloop.actors.train.rows.micro import Micro, dummy, micro_of
from selfloop.actors.train.rows.plan import Shapes, cut, deal
from selfloop.actors.train.rows.views import View
from selfloop.workflows.errors import TrainerError
from selfloop.workflows.objectives.base import Objective

if TYPE_CHECKING:
    from selfloop.actors.train.model.zero import Sharded

__all__ = ["TokenScores", "gives_of", "micros_of", "nothing", "score"]


def nothing(micro: Micro, view: str, name: str) -> Tensor:
    """Zeros in the shape of a column that the trainer computes."""
    if name == "hidden":
        return torch.zeros(len(micro.rows), 1)
    return torch.zeros_like(micro.rows_of(view) if name == "rewards" else micro.masks[view])


def micros_of(
    shapes: Shapes,
    views: Mapping[str, View],
    rows: np.ndarray,
    budget: int,
    collectives: Collectives,
    device: torch.device,
) -> Iterator[Micro]:
    """A rank's micro-batches of these rows, dummies last."""
    contexts = shapes.contexts if shapes.flat else None
    for part in deal(cut(shapes, rows, budget, collectives.world), collectives.rank, collectives.world):
        yield dummy(device) if part is None else micro_of(views, part, device, contexts)


def target_places(view: View, rows: np.ndarray) -> np.ndarray:
    """Places of these rows' trained tokens among all of the view's."""
    bounds = view.row_targets()
    return np.concatenate([np.arange(bounds[row], bounds[row + 1]) for row in rows])


class TokenScores:
    """One number a trained token of these views, flat: every rank puts in those of its micro-batches."""

    def __init__(self, views: Mapping[str, View]):
        self.views = views
        self.values = {name: np.zeros(len(view.targets), np.float32) for name, view in views.items()}

    def put(self, micro: Micro, outputs: Tensor) -> None:
        """What a forward gave; a dummy's is nothing."""
        for name, view in self.views.items() if len(micro.rows) else ():
            self.values[name][target_places(view, micro.rows)] = (
                outputs[micro.spans[name]].detach().float().cpu().numpy()
            )

    def total(self, collectives: Collectives) -> dict[str, np.ndarray]:
        """All ranks' numbers."""
        return {name: collectives.add(values) for name, values in self.values.items()}


def gives_of(objective: Objective, head: bool) -> str:
    """What a forward must give the objective: logprobs, or a scalar head's values or rewards."""
    reads = {name for names in objective.reads.values() for name in names}
    found = [name for name in SCALARS if name in reads]
    who = type(objective).__name__
    if len(found) > 1 or (found and "logprobs" in reads):
        raise TrainerError(
            f"{who} reads {' and '.join([*found, *({'logprobs'} & reads)])} of one model: heads on a shared trunk are not "
            "trained here. Train a critic of its own (for PPO: vf_coefficient=0, and ValueLoss on the critic)"
        )
    if bool(found) != head:
        none = (
            "reads no scalar head's values or rewards, and the model has a scalar head instead of log-probs"
        )
        wrong = f"reads the {found[0]} of a scalar head, and the model has none" if found else none
        raise TrainerError(f"{who} {wrong}. A model gets a scalar head by model.adapt(ScalarHead())")
    return found[0] if found else "logprobs"


def score(
    model: Sharded, collectives: Collectives, view: View, budget: int, what: str = "logprobs"
) -> list[list[float]]:
    """Log-probs or values of each sequence's trained tokens, or its reward, without gradient."""
    rows, views = np.arange(len(view.row_bounds) - 1), {"": view}
    bounds = np.arange(len(rows) + 1) if what == "rewards" else view.target_bounds
    found = np.zeros(bounds[-1], np.float32)
    for micro in micros_of(
        Shapes(views, flat=bool(model.flat)), views, rows, budget, collectives, model.device
    ):
        with torch.no_grad():
            outputs = model.outputs(micro, what)
        if len(micro.rows):
            places = micro.rows if what == "rewards" else target_places(view, micro.rows)
            found[places] = outputs.float().cpu().numpy()
    found = collectives.add(found)
    return [found[low:high].tolist() for low, high in itertools.pairwise(bounds)]
