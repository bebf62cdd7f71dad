"""An objective's own figures on rows that are not learned from: its loss, and how far its rewards tell good from bad."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, SerializeAsAny

from selfloop.workflows.data.rows import ok_rows
from selfloop.workflows.evaluation.metrics import auc
from selfloop.workflows.objectives.base import Objective

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["OwnMetrics"]


class OwnMetrics(BaseModel):
    """`test_NAME` of the new policy and `test_initial_NAME` of the initial one, for `stream.report`.

    Rows have, for each view, its log-probs under both as VIEW_policy and VIEW_initial. Loss and rewards are the objective's
    own, over all rows as one batch; where it reads a reference, that is the initial policy, whose own rewards are then 0. What an
    objective finds over a step (BCO's shift) is found over these rows.
    Rows that are longer than the model takes were not measured and are left out (test_left_out).
    accuracy: share of pairs whose chosen side has the higher reward, ties count half. separation, auc: of the rewards of
    label 1 and 0.
    """

    model_config = ConfigDict(frozen=True)
    objective: SerializeAsAny[Objective]

    def __call__(self, rows: pa.Table, *, seed: int = 0) -> dict[str, float]:
        rows = ok_rows(rows)
        given = rows.num_rows
        for view in self.objective.views:
            rows = rows.filter(pc.is_valid(rows[f"{view}_initial"]))
        left_out = {"test_left_out": float(given - rows.num_rows)} if rows.num_rows < given else {}
        if rows.num_rows == 0:
            return left_out
        found = left_out | {
            f"test_initial_{name}": value for name, value in self.figures(rows, "initial").items()
        }
        found |= {f"test_{name}": value for name, value in self.figures(rows, "policy").items()}
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def figures(self, rows: pa.Table, who: str) -> dict[str, float]:
        """Of one model."""
        loss = self.objective(self.batch(rows, who))
        logs = {name: values.double().numpy() for name, values in loss.logs.items()}
        found = {
            "loss": float(loss.total()),
            **{name: float(values.mean()) for name, values in logs.items() if values.size},
        }
        if {"chosen_reward", "rejected_reward"} <= set(logs):
            lead = np.sign(logs["chosen_reward"] - logs["rejected_reward"])
            found["accuracy"] = float((lead + 1).mean() / 2)
        if "reward" in logs and "label" in self.objective.columns:
            good = np.array(rows["label"].to_pylist()) >= 0.5
            if 0 < good.sum() < len(good):
                found["separation"] = float(logs["reward"][good].mean() - logs["reward"][~good].mean())
                found["auc"] = auc(good, logs["reward"])
        return found

    def batch(self, rows: pa.Table, who: str) -> dict[str, Tensor]:
        """The columns that the objective takes."""
        import torch

        made: dict[str, Tensor] = {}
        for view, reads in self.objective.reads.items():
            made[f"{view}.logprobs"], made[f"{view}.mask"] = padded(rows[f"{view}_{who}"].to_pylist())
            if "reference_logprobs" in reads:
                made[f"{view}.reference_logprobs"], _ = padded(rows[f"{view}_initial"].to_pylist())
        for name in self.objective.columns:
            made[name] = torch.tensor(rows[name].to_pylist(), dtype=torch.float64)
        return made


def padded(lists: list[list[float]]) -> tuple[Any, Any]:
    """(values, mask), both (rows, tokens)."""
    import torch

    values = torch.zeros(len(lists), max(map(len, lists)), dtype=torch.float64)
    mask = torch.zeros_like(values)
    for row, numbers in enumerate(lists):
        values[row, : len(numbers)] = torch.tensor(numbers, dtype=torch.float64)
        mask[row, : len(numbers)] = 1
    return values, mask
