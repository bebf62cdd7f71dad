"""Rows that nothing can be learned from: what they are, and what is said where no others are left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from selfloop.actors.train.rows.views import View

__all__ = ["nothing_left", "useless_rows"]


def useless_rows(views: Mapping[str, View], longest: int | None) -> dict[str, np.ndarray]:
    """Why -> (rows,) which ones. too_long: a sequence has more tokens than the model takes. identical: chosen and rejected are
    the same tokens after the same context, which says nothing of what is better."""
    lengths = np.max([view.lengths() for view in views.values()], axis=0)
    long = lengths > (longest or np.inf)
    same = np.zeros(len(long), bool)
    if {"chosen", "rejected"} <= set(views):
        sides = [
            zip(view.contexts(), view.responses(), strict=True)
            for view in (views["chosen"], views["rejected"])
        ]
        same = np.array([chosen == rejected for chosen, rejected in zip(*sides, strict=True)])
    return {"too_long": long, "identical": same & ~long}


def nothing_left(rows: int, left_out: Mapping[str, int], longest: int | None) -> str:
    """Why there is nothing to train on, and the way out."""
    why = {
        "failed": "failed ones",
        "too_long": f"longer than the {longest} tokens that the model takes (its positions, or generator.max_model_len)",
        "identical": "pairs whose sides are the same",
    }
    told = "".join(f", {count} of them {why[name]}" for name, count in left_out.items() if count)
    return (
        f"there is nothing to train on: {rows} rows were given{told}. Training on nothing would publish the same weights as a "
        "new version, so the run stops. Look at what the nodes before `train` kept (a judge that scored everything zero? a "
        "rule too strict?), sample more, or loosen the rule"
    )
