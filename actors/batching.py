"""Which examples make an optimizer step, how they are cut into micro-batches, and which rank takes which.

All of it depends on the rows and the config alone. A step's examples are sorted by length and cut by padded tokens;
sequences are padded on the right, where causal attention never looks, so a forward needs no attention mask.
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


def cut(lengths: np.ndarray, sequences: np.ndarray, budget: int, parts: int = 1) -> list[np.ndarray]:
    """Cut examples into micro-batches of at most `budget` padded tokens and little padding, longest first.

    lengths: (examples,) longest sequence of each. sequences: (examples,) how many it has. parts: the number of
    micro-batches is a multiple of it where there are enough examples. An example over the budget stands alone.
    """
    order = np.argsort(-lengths, kind="stable")
    found: list[np.ndarray] = []
    total = float((lengths * sequences).sum())
    for price in PRICES:
        found = _cut_at(order, lengths, sequences, budget, price * total)
        if waste_of(found, lengths, sequences) < WASTE:
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


def waste_of(parts: Sequence[np.ndarray], lengths: np.ndarray, sequences: np.ndarray) -> float:
    """Share of padding, against every example padded to its own longest sequence only."""
    padded = sum(int(sequences[part].sum()) * int(lengths[part].max()) for part in parts)
    return 1 - float((lengths * sequences).sum()) / max(padded, 1)


def deal(parts: Sequence[np.ndarray], rank: int, world: int) -> list[np.ndarray | None]:
    """This rank's micro-batches, by turns, so that the k-th ones are of like size. Every rank gets the same number:
    None is a dummy, which takes part in the collectives and weighs nothing."""
    each = math.ceil(len(parts) / world)
    mine: list[np.ndarray | None] = list(parts[rank::world])
    return mine + [None] * (each - len(mine))


@dataclass(frozen=True)
class Micro:
    """One forward. All views of its rows are sequences of one padded matrix.

    rows: (rows,) numbers of the examples. input_ids: (sequences, length). index: (trained,) places in the flattened
    matrix whose hidden state predicts `targets`: (trained,). Trained tokens are ordered by view, row and place.
    """

    rows: np.ndarray
    input_ids: Tensor
    index: Tensor
    targets: Tensor
    spans: dict[str, slice]
    masks: dict[str, Tensor]
    tokens: int

    def spread(self, values: Tensor, view: str) -> Tensor:
        """The view's part of flat values as (rows, tokens), or (rows, k, tokens); zero where there is no token."""
        mask = self.masks[view]
        zeros = values.new_zeros(mask.shape)
        return zeros.masked_scatter(mask.bool(), values[self.spans[view]])


def micro_of(views: dict[str, View], rows: np.ndarray, device: str | torch.device = "cpu") -> Micro:
    """Build the micro-batch of these rows."""
    import torch

    chosen = [(name, view, _ranges(view.row_bounds, rows)) for name, view in views.items()]
    longest = max(int(np.diff(view.bounds)[sequences].max(initial=1)) for _, view, sequences in chosen)
    total = sum(len(sequences) for _, _, sequences in chosen)
    ids = np.zeros((total, longest), np.int64)
    index, targets, spans, masks = [], [], {}, {}
    first = done = tokens = 0
    for name, view, sequences in chosen:
        lengths = np.diff(view.bounds)[sequences]
        lines = first + np.arange(len(sequences))
        ids[np.repeat(lines, lengths), _steps(lengths)] = view.tokens[_ranges(view.bounds, sequences)]
        counts = np.diff(view.target_bounds)[sequences]
        places = view.targets[_ranges(view.target_bounds, sequences)]
        owners = np.repeat(lines, counts)
        index.append(owners * longest + places - 1)
        targets.append(ids[owners, places])
        spans[name] = slice(done, done + len(places))
        masks[name] = torch.from_numpy(_mask(view, rows, counts)).to(device)
        first, done, tokens = first + len(sequences), done + len(places), tokens + int(lengths.sum())
    flat = [
        torch.from_numpy(array).to(device) for array in (ids, np.concatenate(index), np.concatenate(targets))
    ]
    return Micro(rows, flat[0], flat[1], flat[2], spans, masks, tokens)


def dummy(device: str | torch.device = "cpu") -> Micro:
    """A forward of two tokens that trains nothing."""
    import torch

    zero = torch.zeros(1, dtype=torch.long, device=device)
    return Micro(np.empty(0, np.int64), zero.new_zeros((1, 2)), zero, zero, {}, {}, 0)


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
