"""SAMI: mutual information between a constitution and the response written under it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field

from selfloop.workflows.objectives.base import Batch, Loss, Objective, Term, by_settings
from selfloop.workflows.objectives.maths import mean, weighed

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SAMI", "info_nce"]


class SAMI(Objective):
    """Self-supervised alignment with mutual information: a symmetric InfoNCE loss over C constitutions and responses.

    Formula: M_ij = (1/|y_j|) sum_t log p(y_j,t | x, c_i), L_row = mean_i [logsumexp_j M_ij - M_ii], L_col = mean_j
    [logsumexp_i M_ij - M_jj], L = (L_row + L_col) / 2
    Source: Fraenken et al. 2024, arXiv 2404.14313; official code janphilippfranken/sami
    Tokens: means over response tokens, then mean over queries.
    Differs: 1) No KL option (weight 0 in all runs). 2) The C x C combinations of a query are views of one row, named
    c0_y0, c0_y1, c1_y0, ...: response y_j under constitution c_i.
    """

    constitutions: int = Field(default=2, ge=2, description="C")

    @by_settings
    def views(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """c0_y0, c0_y1, ...: constitution by response."""
        n = range(self.constitutions)
        return tuple(f"c{i}_y{j}" for i in n for j in n)

    def compute(self, batch: Batch) -> Loss:
        import torch

        c = self.constitutions
        matrix = torch.stack([mean(batch, view) for view in self.views], dim=-1).unflatten(-1, (c, c))
        row, column = info_nce(matrix), info_nce(matrix.transpose(-1, -2))
        values = (row + column) / 2
        logs = {"row": row.detach(), "column": column.detach(), "information": math.log(c) - values.detach()}
        return Loss({"contrast": Term(weighed(values, batch))}, logs=logs)


def info_nce(matrix: Tensor) -> Tensor:
    """mean_i [logsumexp_j M_ij - M_ii] of (rows, C, C)."""
    return (matrix.logsumexp(-1) - matrix.diagonal(dim1=-2, dim2=-1)).mean(-1)
