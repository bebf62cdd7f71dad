"""Which examples make an optimizer step, how they are cut into micro-batches, and which rank takes which.

All of it depends on the rows and the config alone. A step's examples are sorted by length and cut by padded tokens.
Sequences are padded on the right, where causal attention never looks, so a forward needs no attention mask. Where
that would waste more than a tenth (a short answer beside a long one), short sequences share a line of the matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from selfloop.actors.examples import Examples, View

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Micro", "Plan", "columns_of", "cut", "deal", "dummy", "micro_of", "waste_of"]

WASTE = 0.09
TENTH = 0.1
PRICES = (1e6, 0.1, 0.03, 0.01, 0.005, 0.002, 0.001, 0.0)  # of a micro-batch, in shares of the step's tokens
ABSENT = {"rank": -1.0}


@dataclass(frozen=True)
class Plan:
    """The optimizer steps of a train node: every epoch is a permutation of its own, cut into batches; the last batch
    of an epoch may be smaller. A fraction of an epoch takes the first examples of its permutation."""

    rows: int
    batch_size: int
    epochs: float
    seed: int

    @cached_property
    def per_epoch(self) -> int:
        return math.ceil(self.rows / self.batch_size)

    @cached_property
    def last_rows(self) -> int:
        """Examples of the last epoch when it is only a part of one, else 0."""
        share = self.epochs - math.floor(self.epochs)
        return max(1, round(share * self.rows)) if share > 1e-9 else 0

    @property
    def steps(self) -> int:
        return math.floor(self.epochs) * self.per_epoch + math.ceil(self.last_rows / self.batch_size)

    def step(self, index: int) -> np.ndarray:
        """The rows of optimizer step `index`, counted from 0."""
        epoch, place = divmod(index, self.per_epoch)
        order = self._order(epoch)
        return order[place * self.batch_size : (place + 1) * self.batch_size]

    def _order(self, epoch: int) -> np.ndarray:
        kept: tuple[int, np.ndarray] | None = self.__dict__.get("_kept")
        if kept is None or kept[0] != epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
            part = self.last_rows if epoch >= math.floor(self.epochs) else self.rows
            kept = (epoch, order[:part])
            self.__dict__["_kept"] = kept
        return kept[1]

    def seen(self) -> list[tuple[int, np.ndarray]]:
        """(step, rows) of the first epoch: every row that is trained on at least once, in its first micro-batches."""
        return [(index, self.step(index)) for index in range(min(self.steps, self.per_epoch))]


def cut(
    lengths: np.ndarray, sequences: np.ndarray, budget: int, parts: int = 1, tokens: np.ndarray | None = None
) -> list[np.ndarray]:
    """Cut examples into as few micro-batches as waste little: at most `budget` padded tokens each, longest first.

    lengths: (examples,) longest sequence of each. sequences: (examples,) how many it has. tokens: (examples,) of all
    its sequences, if they may share lines. parts: the number of micro-batches is a multiple of it where there are
    enough examples. An example over the budget stands alone.
    """
    order = np.argsort(-lengths, kind="stable")
    found: list[np.ndarray] = []
    total = float((lengths * sequences).sum())
    for price in PRICES:
        found = _cut_at(order, lengths, sequences, budget, price * total)
        if waste_of(found, lengths, sequences, tokens) < WASTE:
            break
    while len(found) % parts:
        sizes = [len(part) * int(len(part) > 1) * int(lengths[part[0]]) for part in found]
        widest = int(np.argmax(sizes))
        if sizes[widest] == 0:
            break
        part = found[widest]
        found[widest : widest + 1] = [part[: len(part) // 2], part[len(part) // 2 :]]
    return found


def _cut_at(
    order: np.ndarray, lengths: np.ndarray, sequences: np.ndarray, budget: int, price: float
) -> list[np.ndarray]:
    """The cuts of a sorted order that cost least: the padded tokens, and `price` for each micro-batch."""
    longest = lengths[order].astype(np.float64)
    before = np.concatenate([[0], np.cumsum(sequences[order])]).astype(np.float64)
    cost = np.zeros(len(order) + 1)
    origin = np.zeros(len(order) + 1, np.int64)
    low = 0
    for end in range(1, len(order) + 1):
        while low < end - 1 and (before[end] - before[low]) * longest[low] > budget:
            low += 1
        padded = (before[end] - before[low:end]) * longest[low:end]
        choices = cost[low:end] + padded + price
        best = int(choices.argmin())
        cost[end], origin[end] = choices[best], low + best
    found: list[np.ndarray] = []
    end = len(order)
    while end:
        found.append(order[origin[end] : end])
        end = int(origin[end])
    return found[::-1]


def waste_of(
    parts: Sequence[np.ndarray], lengths: np.ndarray, sequences: np.ndarray, tokens: np.ndarray | None = None
) -> float:
    """Share of padding that other cuts could avoid; with `tokens`, when short sequences share lines."""
    real = lengths * sequences if tokens is None else tokens
    padded = 0
    for part in parts:
        longest, lines = int(lengths[part].max()), int(sequences[part].sum())
        padded += longest * (lines if tokens is None else min(lines, math.ceil(real[part].sum() / longest)))
    return 1 - float(real.sum()) / max(padded, 1)


def deal(parts: Sequence[np.ndarray], rank: int, world: int) -> list[np.ndarray | None]:
    """This rank's micro-batches, by turns, so that the k-th ones are of like size. Every rank gets the same number:
    None is a dummy, which takes part in the collectives and weighs nothing."""
    each = math.ceil(len(parts) / world)
    mine: list[np.ndarray | None] = list(parts[rank::world])
    return mine + [None] * (each - len(mine))


@dataclass(frozen=True)
class Micro:
    """One forward. All views of its rows are sequences of one padded matrix.

    rows: (rows,) numbers of the examples. input_ids: (lines, length). index: (trained,) places in the flattened matrix
    whose hidden state predicts `targets`: (trained,). Trained tokens are ordered by view, row and place. positions:
    (lines, length), each sequence from 0, if some lines hold several sequences. ends: (sequences,) places of their last
    tokens. present: (rows, k) of a ranked view, true where there is a sequence.
    """

    rows: np.ndarray
    input_ids: Tensor
    index: Tensor
    targets: Tensor
    positions: Tensor | None
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
    views: dict[str, View], rows: np.ndarray, device: str | torch.device = "cpu", pack: bool = False
) -> Micro:
    """Build the micro-batch of these rows. pack: short sequences may share lines."""
    import torch

    chosen = [(name, view, _ranges(view.row_bounds, rows)) for name, view in views.items()]
    lengths = np.concatenate([np.diff(view.bounds)[sequences] for _, view, sequences in chosen])
    starts, shape = _layout(lengths, pack)
    ids, positions = np.zeros(shape, np.int64).reshape(-1), np.tile(np.arange(shape[1]), shape[0])
    cells = np.repeat(starts, lengths) + _steps(lengths)
    ids[cells] = np.concatenate(
        [view.tokens[_ranges(view.bounds, sequences)] for _, view, sequences in chosen]
    )
    positions[cells] = _steps(lengths)
    index, spans, masks = [], {}, {}
    each, present = {}, {}
    first = done = 0
    for name, view, sequences in chosen:
        counts = np.diff(view.target_bounds)[sequences]
        places = view.targets[_ranges(view.target_bounds, sequences)]
        index.append(np.repeat(starts[first : first + len(sequences)], counts) + places - 1)
        spans[name] = slice(done, done + len(places))
        masks[name] = torch.from_numpy(_mask(view, rows, counts)).to(device)
        each[name] = slice(first, first + len(sequences))
        if view.ranked:
            ranked = np.diff(view.row_bounds)[rows][:, None]
            present[name] = torch.from_numpy(np.arange(masks[name].shape[1]) < ranked).to(device)
        first, done = first + len(sequences), done + len(places)
    predicting = np.concatenate(index)
    arrays = (
        ids.reshape(shape),
        predicting,
        ids[predicting + 1],
        positions.reshape(shape),
        starts + lengths - 1,
    )
    matrix, places, targets, positioned, ends = (torch.from_numpy(array).to(device) for array in arrays)
    shared = shape[0] < len(lengths)
    return Micro(rows, matrix, places, targets, positioned if shared else None, spans, masks, int(lengths.sum()),
                 ends, each, present)  # fmt: skip


def _layout(lengths: np.ndarray, pack: bool) -> tuple[np.ndarray, tuple[int, int]]:
    """Where each sequence starts in the flattened matrix, and the matrix's shape: a line each, or, if that wastes more
    than a tenth, shared lines of up to twice the longest, whichever length makes the smallest matrix."""
    longest = int(lengths.max(initial=2))
    best = np.arange(len(lengths)), np.zeros(len(lengths), np.int64), (len(lengths), longest)
    for factor in (1.0, 1.25, 1.5, 2.0) if pack else ():
        if lengths.sum() > (1 - TENTH) * best[2][0] * best[2][1]:
            break
        found = _share_lines(lengths, int(factor * longest))
        best = min(best, found, key=lambda layout: layout[2][0] * layout[2][1])
    lines, offsets, shape = best
    return lines * shape[1] + offsets, shape


def _share_lines(lengths: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Each sequence, longest first, in the first line with room: its line, its offset, and the matrix's shape."""
    lines, offsets, filled = (np.zeros(len(lengths), np.int64) for _ in range(3))
    for item in np.argsort(-lengths, kind="stable"):
        line = int(np.argmax(filled + lengths[item] <= room))
        lines[item], offsets[item] = line, filled[line]
        filled[line] += lengths[item]
    return lines, offsets, (int(np.count_nonzero(filled)), int(filled.max()))


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
    mask[np.repeat(np.arange(len(rows)), each), _steps(each)] = flat
    return mask


def _padded(lists: Sequence[np.ndarray], fill: float) -> np.ndarray:
    padded = np.full((len(lists), max((len(part) for part in lists), default=0)), fill)
    for row, part in enumerate(lists):
        padded[row, : len(part)] = part
    return padded


def _steps(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ... length - 1 for each length, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def _ranges(bounds: np.ndarray, items: np.ndarray) -> np.ndarray:
    """All places of these items, one item after the other."""
    lengths = bounds[items + 1] - bounds[items]
    return np.repeat(bounds[items], lengths) + _steps(lengths)
