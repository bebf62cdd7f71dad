"""Choosing tokens from logits so that a row's choice depends on its own logits and its own seed alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from selfloop.workflows.flow.asks import Ask

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Chooser", "uniform"]


class Chooser:
    """Chooses the next token of each row from its logits and a number drawn from its own generator."""

    def __init__(self, asks: Sequence[Ask], device: str):
        import torch

        def column(values: Iterable[float]) -> Tensor:
            return torch.tensor(list(values), device=device)[:, None]

        self.greedy = column(ask.params.temperature == 0 for ask in asks)[:, 0].bool()
        self.temperature = column(ask.params.temperature or 1.0 for ask in asks)
        self.top_p = column(ask.params.top_p for ask in asks)
        self.top_k = column(ask.params.top_k for ask in asks).long()
        self.cut = any(ask.params.top_p < 1 or ask.params.top_k for ask in asks)

    def __call__(self, logits: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and their log-probs before temperature, each (rows,)."""
        import torch

        scaled = logits / self.temperature
        if self.cut:
            scaled = self.narrowed(scaled)
        reached = scaled.softmax(-1).double().cumsum(-1)
        sampled = torch.searchsorted(reached, draws[:, None] * reached[:, -1:], right=True)[:, 0]
        tokens = torch.where(self.greedy, logits.argmax(-1), sampled.clamp(max=logits.shape[-1] - 1))
        return tokens, logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]

    def narrowed(self, logits: Tensor) -> Tensor:
        """Logits with what lies outside top-k, then outside top-p, at -inf."""
        import torch

        ordered, places = torch.sort(logits, dim=-1, descending=True, stable=True)
        rank = torch.arange(logits.shape[-1], device=logits.device)
        kept = torch.where((self.top_k > 0) & (rank >= self.top_k), -torch.inf, ordered)
        shares = kept.softmax(-1)
        before = shares.cumsum(-1) - shares
        kept = torch.where((self.top_p < 1) & (before >= self.top_p), -torch.inf, kept)
        return torch.empty_like(logits).scatter_(-1, places, kept)


def uniform(seed: int, count: int, width: int) -> Tensor:
    """`count` draws from the seed's own generator, filled up to `width`: (width,) in [0, 1)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    draws = torch.zeros(width, dtype=torch.float64)
    draws[:count] = torch.rand(count, generator=generator, dtype=torch.float64)
    return draws
