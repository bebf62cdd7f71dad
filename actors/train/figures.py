"""What was seen of an optimizer step: loss and its terms, an objective's logs, tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from selfloop.actors.train.rows.micro import Micro
from selfloop.workflows.errors import SelfloopError
from selfloop.workflows.objectives.base import Loss

__all__ = ["StepFigures"]


@dataclass
class StepFigures:
    """What one rank, or all, saw of a step. tokens: of all sequences. cells: that a forward computed, `filled` of them with a
    token; fewer than tokens where contexts are shared."""

    loss: float = 0.0
    terms: dict[str, float] = field(default_factory=dict)
    logs: dict[str, tuple[float, float]] = field(default_factory=dict)
    tokens: int = 0
    filled: int = 0
    cells: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)
    error: SelfloopError | None = None

    def merge(self, other: StepFigures) -> None:
        """Add another rank's figures; the running state is the same everywhere."""
        self.loss += other.loss
        self.tokens += other.tokens
        self.filled += other.filled
        self.cells += other.cells
        for name, value in other.terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + value
        for name, (total, count) in other.logs.items():
            mine = self.logs.get(name, (0.0, 0.0))
            self.logs[name] = (mine[0] + total, mine[1] + count)
        self.state = self.state or other.state
        self.error = self.error or other.error

    def note(self, loss: Loss, shares: Mapping[str, Tensor], micro: Micro, value: float) -> None:
        """Add a micro-batch. shares: each term's of the step's loss; value: their sum."""
        self.loss += value
        self.tokens += micro.tokens
        self.filled += micro.tokens if micro.layout is None else micro.input_ids.numel()
        self.cells += micro.input_ids.numel()
        self.state = {name: column.detach().cpu() for name, column in loss.state.items()}
        for name, share in shares.items():
            self.terms[name] = self.terms.get(name, 0.0) + float(share.detach())
        for name, column in loss.logs.items():
            total, count = self.logs.get(name, (0.0, 0.0))
            seen = max(column.numel(), 1)
            each = float(column.detach().float().sum()) / seen
            self.logs[name] = (total + each * len(micro.rows), count + len(micro.rows))

    def line(self, step: int, lr: float, norm: float) -> dict[str, float]:
        """A step's line of the curve."""
        line = {
            "step": float(step),
            "loss": self.loss,
            "lr": lr,
            "grad_norm": norm,
            "tokens": float(self.tokens),
        }
        if len(self.terms) > 1:
            line |= {f"loss_{name}": value for name, value in self.terms.items()}
        for name, (total, count) in sorted(self.logs.items()):
            line[f"mean_{name}" if name in line else name] = total / max(count, 1)
        return line
