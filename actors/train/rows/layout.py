"""How the sequences of a micro-batch lie in a model's input: end to end in one line, or padded in a line each."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from selfloop.actors.train.rows.views import bounds_of, places_of, steps_of

__all__ = ["Block", "Layout", "Line", "end_to_end", "padded_lines"]


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


SHORT, LIKE = 16, 1.6
"""Pieces are one batch of attention if both are this short, or one at most so many times as long as the other: fewer
blocks pay a kernel's start less often, and at worst 1 - 1 / LIKE of a block is padding."""


@dataclass(frozen=True)
class Line:
    """Sequences in a matrix. ids: (lines, length). heads, tails: (sequences,) places of the first token of each
    one's context and of what follows it, in the flattened matrix. starts: (sequences,) length of the context."""

    ids: np.ndarray
    heads: np.ndarray
    tails: np.ndarray
    starts: np.ndarray
    layout: Layout | None = None

    def place(self, sequence: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Where a token of a sequence is in the flattened matrix."""
        start = self.starts[sequence]
        return np.where(place < start, self.heads[sequence] + place, self.tails[sequence] + place - start)


def padded_lines(tokens: np.ndarray, lengths: np.ndarray) -> Line:
    """A line each, padded on the right, where causal attention never looks."""
    shape = len(lengths), int(lengths.max(initial=2))
    ids, starts = np.zeros(shape, np.int64), np.arange(shape[0]) * shape[1]
    ids.reshape(-1)[np.repeat(starts, lengths) + steps_of(lengths)] = tokens
    return Line(ids, starts, starts, np.zeros_like(starts))


def end_to_end(
    tokens: np.ndarray,
    lengths: np.ndarray,
    numbers: np.ndarray,
    starts: np.ndarray,
    device: str | torch.device,
) -> Line:
    """All in one line: every context once, then what follows each; or, if no context occurs twice, the sequences.

    tokens: of all sequences, one after the other. lengths, numbers, starts: (sequences,) how long each is, which context it
    stands under, and how long that is.
    """
    _, first, group = np.unique(numbers, return_index=True, return_inverse=True)
    if len(first) == len(numbers):
        first, starts = first[:0], np.zeros_like(starts)
    heads, tails = starts[first], lengths - starts
    head_at, tail_at = bounds_of(heads)[:-1], heads.sum() + bounds_of(tails)[:-1]
    at = bounds_of(lengths)[:-1]
    taken = np.concatenate([places_of(at[first], heads), places_of(at + starts, tails)])
    head_of = head_at[group] if len(first) else np.zeros_like(starts)
    none = np.zeros_like(heads)
    pieces = [(heads, tails), (head_at, tail_at), (none, starts), (none, head_of)]
    layout = _layout([np.concatenate(pair) for pair in pieces], device)
    return Line(tokens[taken][None], head_of, tail_at, starts, layout)


def _layout(pieces: list[np.ndarray], device: str | torch.device) -> Layout:
    """Blocks of pieces of like length under contexts of like length. pieces: how many tokens each has, where the first one
    is, in the order of the line; and the same of what each stands under."""
    lengths, at, contexts, over = pieces

    def put(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    kinds = np.stack([_kind(lengths), _kind(contexts)])
    order, blocks, done = np.empty(lengths.sum(), np.int64), list[Block](), 0
    for kind in np.unique(kinds[:, lengths > 0], axis=1).T:
        some = np.flatnonzero((kinds == kind[:, None]).all(0) & (lengths > 0))
        own, context = _spread(at[some], lengths[some]), _spread(over[some], contexts[some])
        blocks.append(Block(put(own), put(np.concatenate([context, own], 1)), put(contexts[some])))
        cells = done + np.arange(len(some)) * own.shape[1]
        order[places_of(at[some], lengths[some])] = places_of(cells, lengths[some])
        done += own.size
    return Layout(tuple(blocks), put(order), put(places_of(contexts, lengths)[None]))


def _kind(lengths: np.ndarray) -> np.ndarray:
    """A number for each length; equal ones differ by less than LIKE, or are at most SHORT tokens. 0 is 0."""
    steps = np.log(np.maximum(lengths, SHORT) / SHORT) / np.log(LIKE)
    rounding = 1e-9  # a length that is SHORT times a power of LIKE shall not fall into the next kind
    return np.where(lengths > 0, 1 + np.ceil(steps - rounding), 0).astype(np.int64)


def _spread(at: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(pieces, longest) places of pieces that begin at `at`; the first place of the line where a piece has ended."""
    columns = np.arange(lengths.max(initial=0))
    return np.where(columns < lengths[:, None], at[:, None] + columns, 0)
