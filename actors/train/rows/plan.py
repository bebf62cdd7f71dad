"""Which examples make an optimizer step, how they are cut into micro-batches, and which rank takes which.

All of it depends on the rows and the config alone. A step's examples are sorted, those of one prompt side by side, and
cut by the tokens that are computed. Sequences lie end to end in one line, without padding, and a context that several of
them share stands there once (actors/train/model/attention.py); an architecture that cannot do that gets a padded line for each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from selfloop.actors.train.rows.views import View

__all__ = ["Plan", "Shapes", "cut", "deal"]

SHORTEST = 0.8
"""Where sequences are padded, the shortest of a micro-batch, as a share of its longest: at most a fifth is padding."""

ROUNDING = 1e-9
"""Of an epoch: less is what a sum of shares, such as 0.1 ten times, leaves over, and no part of an epoch."""


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
        return max(1, round(share * self.rows)) if share > ROUNDING else 0

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

    def seen(self) -> list[np.ndarray]:
        """The rows of each step of the first epoch: every row that is trained on at least once, in its first micro-batches."""
        return [self.step(index) for index in range(min(self.steps, self.per_epoch))]


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
