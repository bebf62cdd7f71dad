"""Attention over sequences that lie end to end in one line, a context that several of them share standing there once.

All layers but attention see the line as it is: no padding, and a prompt with eight answers costs one prompt. Attention
takes the line apart into pieces of like length: contexts, each over itself, and answers, each over its context and itself.
The architecture stays transformers' own; this is registered there as one of its attention functions.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selfloop.actors.train.rows.layout import Layout, end_to_end
from selfloop.actors.train.rows.views import bounds_of, steps_of

__all__ = ["NAME", "lies_flat", "states", "tolerance", "use"]

NAME = "selfloop"


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
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
    """By what share two ways to compute the same may differ: sums in another order, in numbers of 24 or of 8 bits."""
    return 1e-3 if next(model.parameters()).dtype == torch.float32 else 0.1


def lies_flat(model: Any, device: str | torch.device) -> bool:
    """Whether sequences that lie end to end, contexts shared or not, have the hidden states that each has alone. Not every
    architecture's attention sees to it."""
    if model.config._attn_implementation != NAME:
        return False
    # any tokens: 31 steps through a vocabulary of 97 without a repeat, and a smaller one is stepped through as it is
    tokens = np.arange(21) * 31 % min(model.config.get_text_config().vocab_size, 97)
    lengths, starts = np.array([9, 7, 5]), np.array([5, 5, 3])
    tokens[9:14] = tokens[:5]
    ends = bounds_of(lengths)
    try:
        with torch.no_grad():
            each = [
                torch.from_numpy(tokens[low:high])[None].to(device) for low, high in itertools.pairwise(ends)
            ]
            alone = torch.cat([states(model, one) for one in each])
            for numbers in ([0, 0, 1], [0, 1, 2]):
                line = end_to_end(tokens, lengths, np.array(numbers), starts, device)
                places = line.place(np.repeat(np.arange(3), lengths), steps_of(lengths))
                ids, order = (torch.from_numpy(array).to(device) for array in (line.ids, places))
                gap = (states(model, ids, line.layout)[order] - alone).abs().max()
                if not float(gap) <= tolerance(model) * max(1.0, float(alone.abs().max())):
                    return False
    except TypeError:  # the layers do not hand the layout on
        return False
    return True
