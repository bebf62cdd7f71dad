"""Attention over sequences that lie end to end in one line, a context that several of them share standing there once.

All layers but attention see the line as it is: no padding, and a prompt with eight answers costs one prompt. Attention
takes the line apart into pieces of like length: contexts, each over itself, and answers, each over its context and itself.
The architecture stays transformers' own; this is registered there as one of its attention functions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["NAME", "Block", "Layout", "states", "tolerance", "use"]

NAME = "selfloop"


@dataclass(frozen=True)
class Block:
    """Pieces of the line that attention treats as one batch, padded with any place, which the mask leaves out.

    queries: (pieces, A) places. keys: (pieces, C + A) places of the context and of the piece itself. starts: (pieces,)
    tokens of each one's context.
    """

    queries: Tensor
    keys: Tensor
    starts: Tensor
    masks: dict[int | None, Tensor | None] = field(default_factory=dict)

    def mask(self, window: int | None) -> Tensor | None:
        """(pieces, 1, A, C + A), true where a token looks; None: at all of its piece before it. window: how many tokens a
        layer looks back, its own included; None: all."""
        if window not in self.masks:
            self.masks[window] = self._mask(window)
        return self.masks[window]

    def _mask(self, window: int | None) -> Tensor | None:
        size = self.queries.shape[1]
        context = self.keys.shape[1] - size
        if not context and (window is None or window >= size):
            return None
        before, own = (torch.arange(width, device=self.keys.device) for width in (context, size))
        starts = self.starts[:, None]
        asking = (starts + own)[:, :, None]
        places = torch.cat([before.expand(len(starts), -1), starts + own], 1)[:, None]
        there = torch.cat([before < starts, (own >= 0).expand(len(starts), -1)], 1)[:, None]
        seen = there & (places <= asking)
        return (seen if window is None else seen & (asking - places < window))[:, None]


@dataclass(frozen=True)
class Layout:
    """The blocks of a line of T tokens. order: (T,) where each token is among all cells of the blocks. positions: (1, T) of
    the tokens in their sequences."""

    blocks: tuple[Block, ...]
    order: Tensor
    positions: Tensor


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    layout: Layout | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' attention function: query, key, value (1, heads, T, width) -> (1, T, heads, width)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward as plain

    if layout is None:
        return plain(module, query, key, value, attention_mask, **kwargs)
    if getattr(module.config, "sliding_window", None) and "sliding_window" not in kwargs:
        raise TypeError(f"{type(module).__name__} does not tell its attention how far it looks back")
    window, parts = kwargs.pop("sliding_window", None), list[Tensor]()
    for block in layout.blocks:
        taken = _take(query, block.queries), _take(key, block.keys), _take(value, block.keys)
        parts.append(plain(module, *taken, block.mask(window), **kwargs)[0].flatten(0, 1))
    return torch.cat(parts).index_select(0, layout.order)[None], None


def _take(line: Tensor, places: Tensor) -> Tensor:
    """(1, heads, T, width), (blocks, size) -> (blocks, heads, size, width)."""
    taken = line[0].index_select(1, places.reshape(-1))
    return taken.unflatten(1, tuple(places.shape)).transpose(0, 1)


def use(model: Any) -> None:
    """Make a model of transformers use this attention, if its architecture lets it."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or [])
    chunked = getattr(config, "attention_chunk_size", None)
    if (
        model.config._attn_implementation != "sdpa"
        or chunked
        or kinds - {"full_attention", "sliding_attention"}
    ):
        return
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def states(model: Any, input_ids: Tensor, layout: Layout | None = None) -> Tensor:
    """(tokens, width) last hidden states of a causal language model, or of one with a scalar head.

    input_ids: (lines, length), each line a sequence padded on its right; or, with a layout, (1, T).
    """
    more: dict[str, Any] = {}
    if layout is not None:
        # a mask of four dimensions is taken as it is: none is made, and attention has its own
        unused = input_ids.new_ones((1, 1, 1, 1), dtype=torch.bool)
        more = {"layout": layout, "position_ids": layout.positions, "attention_mask": unused}
    return model.base_model(input_ids=input_ids, use_cache=False, **more).last_hidden_state.flatten(0, 1)


def tolerance(model: nn.Module) -> float:
    """By what share two ways to compute the same may differ."""
    return 1e-3 if next(model.parameters()).dtype == torch.float32 else 0.1
