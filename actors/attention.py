"""Attention over sequences that lie end to end in one line, a context that several of them share standing there once.

All layers but attention see the line as it is: no padding, and a prompt with eight answers costs one prompt. Attention
takes the line apart: contexts among themselves, then every answer over its context and itself. The architecture stays
transformers' own; this is registered there as one of its attention functions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["NAME", "Layout", "states", "use"]

NAME = "selfloop"


@dataclass(frozen=True)
class Layout:
    """Where things are in a line of T tokens. Blocks are padded with any place, which the masks leave out.

    heads: (contexts, C) places of each shared context; None if nothing is shared, then tails are whole sequences. tails:
    (sequences, A) places of what follows the context. keys: (sequences, C + A) of what each tail looks at. starts:
    (sequences,) length of each one's context. order: (T,) where each token is in the blocks, heads before tails.
    """

    heads: Tensor | None
    tails: Tensor
    keys: Tensor
    starts: Tensor
    order: Tensor
    masks: dict[int | None, tuple[Tensor | None, Tensor | None]] = field(default_factory=dict)

    def mask(self, window: int | None) -> tuple[Tensor | None, Tensor | None]:
        """(1, 1, C, C) of the heads and (sequences, 1, A, C + A) of the tails, true where a token looks; None: wherever
        causality lets it. window: how many tokens a layer looks back, its own included; None: all."""
        if window not in self.masks:
            heads = 0 if self.heads is None else self.heads.shape[1]
            self.masks[window] = (_causal(heads, window, self.order.device), self._tails(heads, window))
        return self.masks[window]

    def _tails(self, heads: int, window: int | None) -> Tensor | None:
        size, device = self.tails.shape[1], self.order.device
        if not heads:
            return _causal(size, window, device)
        context, own = torch.arange(heads, device=device), torch.arange(size, device=device)
        starts = self.starts[:, None]
        places = torch.cat([context.expand(len(starts), -1), starts + own], 1)[
            :, None, :
        ]  # of the keys, in sequences
        asking = (starts + own)[:, :, None]
        there = torch.cat([context < starts, own.expand(len(starts), -1) >= 0], 1)[:, None, :]
        seen = there & (places <= asking)
        return (seen if window is None else seen & (asking - places < window))[:, None]


def _causal(size: int, window: int | None, device: torch.device) -> Tensor | None:
    """The mask of a window that is shorter than the sequences."""
    if window is None or window >= size:
        return None
    places = torch.arange(size, device=device)
    back = places[:, None] - places
    return ((back >= 0) & (back < window))[None, None]


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
    of_heads, of_tails = layout.mask(kwargs.pop("sliding_window", None))

    def block(queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        taken = (_take(query, queries), _take(key, keys), _take(value, keys))
        return plain(module, *taken, mask, **kwargs)[0].flatten(0, 1)

    parts = [] if layout.heads is None else [block(layout.heads, layout.heads, of_heads)]
    parts.append(block(layout.tails, layout.keys, of_tails))
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


def states(
    model: Any, input_ids: Tensor, positions: Tensor | None = None, layout: Layout | None = None
) -> Tensor:
    """(tokens, width) last hidden states of a causal language model, or of one with a scalar head.

    input_ids: (lines, length), each line a sequence padded on its right; or, with a layout, (1, T), whose tokens have
    these positions.
    """
    more: dict[str, Any] = {}
    if layout is not None:  # a mask of four dimensions is handed to the layers as it is
        more = {"layout": layout, "attention_mask": input_ids.new_ones((1, 1, 1, 1), dtype=torch.bool)}
    found = model.base_model(input_ids=input_ids, position_ids=positions, use_cache=False, **more)
    return found.last_hidden_state.flatten(0, 1)
