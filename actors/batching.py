"""Which examples make an optimizer step, how they are cut into micro-batches, and which rank takes which.

All of it depends on the rows and the config alone. A step's examples are sorted, those of one prompt side by side, and
cut by the tokens that are computed. Sequences lie end to end in one line, without padding, and a context that several of
them share stands there once (actors/attention.py); an architecture that cannot do that gets a padded line for each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from selfloop.actors.examples import Examples, View, bounds_of, places_of, steps_of
from selfloop.actors.lines import end_to_end, padded_lines

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from selfloop.actors.attention import Layout

__all__ = ["Micro", "Plan", "Shapes", "columns_of", "cut", "deal", "dummy", "micro_of"]

ABSENT = {"rank": -1.0}
SHORTEST = 0.8
"""Where sequences are padded, the shortest of a micro-batch, as a share of its longest."""


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


class Shapes:
    """What examples weigh in a forward. contexts: of each view, (sequences,) the number of the tokens before the first
    trained one; equal contexts have equal numbers, over all views."""

    def __init__(self, views: Mapping[str, View], *, flat: bool = True):
        numbers: dict[bytes, int] = {}
        self.flat = flat
        self.contexts = {
            name: np.array([numbers.setdefault(key, len(numbers)) for key in view.contexts()], np.int64)
            for name, view in views.items()
        }
        self.longest = np.max([view.lengths() for view in views.values()], axis=0)
        self.count = np.sum([np.diff(view.row_bounds) for view in views.values()], axis=0)
        self.length = np.zeros(len(numbers), np.int64)
        self.tails = np.zeros(len(self.longest), np.int64)
        self.of_row: list[tuple[int, ...]] = [()] * len(self.longest)
        for name, view in views.items():
            self.length[self.contexts[name]] = view.starts
            self.tails += np.add.reduceat(np.diff(view.bounds) - view.starts, view.row_bounds[:-1])
            for row, (low, high) in enumerate(itertools.pairwise(view.row_bounds)):
                self.of_row[row] += tuple(dict.fromkeys(self.contexts[name][low:high].tolist()))

    def order(self, rows: np.ndarray) -> np.ndarray:
        """These rows, longest first; those under one context side by side, by the longest of them."""
        longest = self.longest[rows]
        if not self.flat:
            return rows[np.argsort(-longest, kind="stable")]
        family = np.array([self.of_row[row][0] for row in rows], np.int64)
        top = np.zeros(len(self.length), np.int64)
        np.maximum.at(top, family, longest)
        return rows[np.lexsort((-longest, family, -top[family]))]

    def added(self, part: Sequence[int], seen: set[int], row: int) -> float:
        """Tokens that a row adds to a forward of `part`, whose contexts are `seen`; infinite if it should not."""
        if self.flat:
            new = (int(self.length[one]) for one in self.of_row[row] if one not in seen)
            return int(self.tails[row]) + sum(new)
        longest = int(self.longest[part[0] if part else row])
        return longest * int(self.count[row]) if self.longest[row] >= SHORTEST * longest else math.inf

    def cost(self, rows: np.ndarray) -> int:
        """Tokens that a forward of these rows computes."""
        if not self.flat:
            return int(self.longest[rows].max() * self.count[rows].sum())
        contexts = list({one for row in rows for one in self.of_row[row]})
        return int(self.tails[rows].sum() + self.length[contexts].sum())


def cut(shapes: Shapes, rows: np.ndarray, budget: int, parts: int = 1) -> list[np.ndarray]:
    """Cut rows into micro-batches of at most `budget` tokens each; a row over the budget stands alone. parts: the number
    of micro-batches is a multiple of it where there are enough rows."""
    found = _fill(shapes, shapes.order(rows), budget)
    while len(found) % parts:
        sizes = [int(len(part) > 1) * shapes.cost(part) for part in found]
        widest = int(np.argmax(sizes))
        if sizes[widest] == 0:
            break
        part = found[widest]
        found[widest : widest + 1] = [part[: len(part) // 2], part[len(part) // 2 :]]
    return found


def _fill(shapes: Shapes, order: np.ndarray, budget: int) -> list[np.ndarray]:
    """Row after row into a micro-batch, as long as there is room."""
    found: list[np.ndarray] = []
    part, seen, size = list[int](), set[int](), 0.0
    for row in order.tolist():
        more = shapes.added(part, seen, row)
        if part and size + more > budget:
            found.append(np.array(part))
            part, seen, size = [], set(), 0.0
            more = shapes.added(part, seen, row)
        part.append(row)
        seen.update(shapes.of_row[row])
        size += more
    return [*found, np.array(part)]


def deal(parts: Sequence[np.ndarray], rank: int, world: int) -> list[np.ndarray | None]:
    """This rank's micro-batches, by turns, so that the k-th ones are of like size. Every rank gets the same number:
    None is a dummy, which takes part in the collectives and weighs nothing."""
    each = math.ceil(len(parts) / world)
    mine: list[np.ndarray | None] = list(parts[rank::world])
    return mine + [None] * (each - len(mine))


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
