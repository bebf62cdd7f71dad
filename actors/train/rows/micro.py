"""A micro-batch: its rows end to end (or padded), with the columns that an objective reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from selfloop.actors.train.rows.examples import Examples
from selfloop.actors.train.rows.layout import Layout, end_to_end, padded_lines
from selfloop.actors.train.rows.views import View, bounds_of, places_of, steps_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Micro", "columns_of", "dummy", "micro_of"]

ABSENT = {"rank": -1.0}


@dataclass(frozen=True)
class Micro:
    """One forward. All views of its rows are sequences of one line, or of one padded matrix.

    rows: (rows,) numbers of the examples. input_ids: (1, tokens) laid out by `layout`, or (lines, length) without one. index:
    (trained,) places in the flattened input whose hidden state predicts `targets`: (trained,). Trained
    tokens are ordered by view, row and place. ends: (sequences,) places of their last tokens. present: (rows, k) of a
    ranked view, true where there is a sequence. tokens: of all sequences, each counted whole.
    """

    rows: np.ndarray
    input_ids: Tensor
    index: Tensor
    targets: Tensor
    layout: Layout | None
    spans: dict[str, slice]
    masks: dict[str, Tensor]
    tokens: int
    ends: Tensor
    sequences: dict[str, slice]
    present: dict[str, Tensor]

    def spread(self, values: Tensor, view: str) -> Tensor:
        """The view's part of flat values as (rows, tokens), or (rows, k, tokens); zero where there is no token."""
        return self.spread_part(values[self.spans[view]], view)

    def spread_part(self, values: Tensor, view: str) -> Tensor:
        """The same, of values of this view alone."""
        mask = self.masks[view]
        return values.new_zeros(mask.shape).masked_scatter(mask.bool(), values)

    def rows_of(self, view: str) -> Tensor:
        """(rows,) or, for a ranked view, (rows, k): the shape of one value a sequence, in float32."""
        found = self.present.get(view)
        return self.masks[view][:, 0] if found is None else found.float()

    def spread_rows(self, values: Tensor, view: str) -> Tensor:
        """The view's part of one value a sequence as (rows,), or (rows, k) with zero where there is no sequence."""
        part, found = values[self.sequences[view]], self.present.get(view)
        return part if found is None else part.new_zeros(found.shape).masked_scatter(found, part)


def micro_of(
    views: Mapping[str, View],
    rows: np.ndarray,
    device: str | torch.device = "cpu",
    contexts: Mapping[str, np.ndarray] | None = None,
) -> Micro:
    """Build the micro-batch of these rows. contexts: of Shapes, if sequences lie end to end; None: they are padded."""
    import torch

    chosen = [(name, view, _ranges(view.row_bounds, rows)) for name, view in views.items()]
    tokens = np.concatenate([view.tokens[_ranges(view.bounds, own)] for _, view, own in chosen])
    lengths = np.concatenate([np.diff(view.bounds)[own] for _, view, own in chosen])
    counts = {name: np.diff(view.target_bounds)[own] for name, view, own in chosen}
    places = np.concatenate([view.targets[_ranges(view.target_bounds, own)] for _, view, own in chosen])
    sequence = np.repeat(np.arange(len(lengths)), np.concatenate(list(counts.values())))
    if contexts is None:
        line = padded_lines(tokens, lengths)
    else:
        numbers = np.concatenate([contexts[name][own] for name, _, own in chosen])
        starts = np.concatenate([view.starts[own] for _, view, own in chosen])
        line = end_to_end(tokens, lengths, numbers, starts, device)
    arrays = (
        line.ids,
        line.place(sequence, places - 1),
        tokens[bounds_of(lengths)[sequence] + places],
        line.place(np.arange(len(lengths)), lengths - 1),
    )
    ids, index, targets, ends = (torch.from_numpy(array).to(device) for array in arrays)
    spans, masks, each, present = {}, {}, {}, {}
    first = done = 0
    for name, view, own in chosen:
        trained = int(counts[name].sum())
        spans[name], each[name] = slice(done, done + trained), slice(first, first + len(own))
        masks[name] = torch.from_numpy(_mask(view, rows, counts[name])).to(device)
        if view.ranked:
            ranked = np.diff(view.row_bounds)[rows][:, None]
            present[name] = torch.from_numpy(np.arange(masks[name].shape[1]) < ranked).to(device)
        first, done = first + len(own), done + trained
    return Micro(
        rows, ids, index, targets, line.layout, spans, masks, int(lengths.sum()), ends, each, present
    )


def dummy(device: str | torch.device = "cpu") -> Micro:
    """A forward of two tokens that trains nothing."""
    import torch

    zero = torch.zeros(1, dtype=torch.long, device=device)
    return Micro(np.empty(0, np.int64), zero.new_zeros((1, 2)), zero, zero, None, {}, {}, 0, zero, {}, {})


def columns_of(examples: Examples, micro: Micro) -> dict[str, Tensor]:
    """The columns of a micro-batch but for the log-probs the trainer computes: masks, per-token values, columns."""
    import torch

    device = micro.input_ids.device
    batch = {f"{name}.mask": mask for name, mask in micro.masks.items()}
    for (view, name), values in examples.values.items():
        bounds = examples.views[view or "response"].row_targets()
        flat = torch.from_numpy(values[_ranges(bounds, micro.rows)]).to(device)
        mask = micro.masks[view or "response"]
        spread = torch.zeros(mask.shape, device=device).masked_scatter(mask.bool(), flat)
        batch[f"{view}.{name}" if view else name] = spread
    for name, column in examples.columns.items():
        if isinstance(column, np.ndarray):
            taken = column[micro.rows]
        else:
            taken = _padded([column[row] for row in micro.rows], ABSENT.get(name, 0.0))
        batch[name] = torch.from_numpy(taken.astype(np.float32)).to(device)
    return batch


def _mask(view: View, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(rows, tokens) or, for a ranked view, (rows, k, tokens): 1 where there is a trained token."""
    longest = int(counts.max(initial=1))
    flat = (np.arange(longest) < counts[:, None]).astype(np.float32)
    if not view.ranked:
        return flat
    each = np.diff(view.row_bounds)[rows]
    mask = np.zeros((len(rows), int(each.max(initial=1)), longest), np.float32)
    mask[np.repeat(np.arange(len(rows)), each), steps_of(each)] = flat
    return mask


def _padded(lists: Sequence[np.ndarray], fill: float) -> np.ndarray:
    padded = np.full((len(lists), max((len(part) for part in lists), default=0)), fill)
    for row, part in enumerate(lists):
        padded[row, : len(part)] = part
    return padded


def _ranges(bounds: np.ndarray, items: np.ndarray) -> np.ndarray:
    """All places of these items, one item after the other."""
    return places_of(bounds[items], bounds[items + 1] - bounds[items])
