"""The tasks of the pocket world: six kinds on strings of digits, each with a verifier and a train/held-out split.

A task is one short line such as `sort 52913`. Its level is the number of digits it is about: 3 to 7 in the core band
the base model was trained on, 8 to 10 in the hard band. Which split a task belongs to is a hash of the task itself,
so no seed, size or order of drawing can ever put one task on both sides.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from selfloop.workflows.judges.base import Comparison, Row

__all__ = [
    "CORE_LEVELS",
    "HARD_LEVELS",
    "KINDS",
    "PocketVerifier",
    "Side",
    "Split",
    "Task",
    "draw",
    "generate",
    "parse_task",
    "side_of",
    "solve",
    "verify",
]

Side = Literal["train", "heldout"]
Split = Literal["train", "heldout", "hard"]

KINDS = ("sort", "reverse", "unique", "count", "max", "add")
CORE_LEVELS = (3, 4, 5, 6, 7)
HARD_LEVELS = (8, 9, 10)
HELDOUT_SHARE = 8  # one task in this many is held out

_TASK = re.compile(r"(sort|reverse|unique|max) (\d+)|(count) (\d) in (\d+)|(add) (\d+) (\d+)")


@dataclass(frozen=True)
class Task:
    """One task: its kind, its arguments (strings of digits) and what follows from them."""

    kind: str
    args: tuple[str, ...]

    @property
    def text(self) -> str:
        """The line that states the task."""
        if self.kind == "count":
            return f"count {self.args[0]} in {self.args[1]}"
        return " ".join((self.kind, *self.args))

    @property
    def answer(self) -> str:
        """The only right answer."""
        return solve(self.kind, self.args)

    @property
    def level(self) -> int:
        """How many digits the task is about."""
        return len(self.args[-1]) if self.kind == "count" else sum(map(len, self.args))

    @property
    def band(self) -> str:
        """core: of a length the base was trained on. hard: longer."""
        return "core" if self.level <= CORE_LEVELS[-1] else "hard"

    @property
    def meta(self) -> str:
        """Kind, level and band as JSON."""
        return json.dumps({"kind": self.kind, "level": self.level, "band": self.band})


def solve(kind: str, args: Sequence[str]) -> str:
    """The right answer of a task."""
    digits = args[-1]
    if kind == "sort":
        return "".join(sorted(digits))
    if kind == "reverse":
        return digits[::-1]
    if kind == "unique":
        return "".join(dict.fromkeys(digits))
    if kind == "count":
        return str(digits.count(args[0]))
    if kind == "max":
        return max(digits)
    if kind == "add":
        return str(int(args[0]) + int(args[1]))
    raise ValueError(f"unknown kind of task {kind!r}; the kinds are {', '.join(KINDS)}")


def parse_task(text: str) -> Task | None:
    """The task a line states, or None when it states none."""
    match = _TASK.fullmatch(text.strip())
    if match is None:
        return None
    kind, *args = (group for group in match.groups() if group is not None)
    return Task(kind, tuple(args))


def verify(task: Task | str, response: str) -> bool:
    """Whether a response is exactly the right answer, white space around it aside."""
    known = parse_task(task) if isinstance(task, str) else task
    return known is not None and response.strip() == known.answer


class PocketVerifier(Comparison):
    """1 for exactly the right answer, else 0. Reads the gold answer, so no label-free recipe may use it."""

    def verify(self, row: Row) -> float | None:
        return float(row["response"].strip() == row["answer"])


def side_of(task: Task) -> Side:
    """The side a task is on: a hash of kind and arguments (the two numbers of a sum in either order are one task)."""
    args = sorted(task.args) if task.kind == "add" else list(task.args)
    digest = hashlib.sha256(" ".join([task.kind, *args]).encode()).digest()
    return "heldout" if digest[0] % HELDOUT_SHARE == 0 else "train"


def draw(rng: random.Random, kind: str, level: int, side: Side | None = None) -> Task:
    """A random task of this kind and level, on this side when one is given."""
    while True:
        task = Task(kind, _arguments(rng, kind, level))
        if side is None or side_of(task) == side:
            return task


def _arguments(rng: random.Random, kind: str, level: int) -> tuple[str, ...]:
    if kind == "add":
        return _number(rng, level // 2), _number(rng, level - level // 2)
    digits = "".join(rng.choices("0123456789", k=level))
    if (
        kind == "unique"
    ):  # repeats are what the task is about, so fewer different digits than chance would give
        few = rng.sample("0123456789", k=max(2, level - 2))
        digits = "".join(rng.choices(few, k=level))
    if kind == "count":  # a digit that occurs, four times in five
        return rng.choice(digits if rng.random() < 0.8 else "0123456789"), digits
    return (digits,)


def _number(rng: random.Random, length: int) -> str:
    return str(rng.randrange(10 ** (length - 1), 10**length))


def generate(
    split: Split,
    size: int,
    seed: int,
    kinds: Sequence[str] | None = None,
    levels: Sequence[int] | None = None,
) -> list[Task]:
    """`size` different tasks of a split, evenly over kinds and levels, in an order drawn from the seed.

    train and heldout are of the core levels and never overlap; hard is held out too, of levels 8 to 10. Other
    `levels` may be asked for on either side. Raises ValueError for unknown kinds, and when so many different tasks
    cannot be found.
    """
    if split not in ("train", "heldout", "hard"):
        raise ValueError(f"unknown split {split!r} of the pocket world; the splits are train, heldout, hard")
    side: Side = "train" if split == "train" else "heldout"
    levels = tuple(levels or (HARD_LEVELS if split == "hard" else CORE_LEVELS))
    kinds = tuple(kinds or KINDS)
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise ValueError(f"unknown kinds of task {', '.join(unknown)}; the kinds are {', '.join(KINDS)}")
    if min(levels) < 2:
        raise ValueError(f"level {min(levels)} is too low: a task is about at least 2 digits")
    rng = random.Random(f"pocket {split} {seed}")
    cells = [(kind, level) for kind in kinds for level in levels]
    found: dict[Task, None] = {}
    tries = 0
    while len(found) < size:
        kind, level = cells[tries % len(cells)]
        found.setdefault(draw(rng, kind, level, side))
        tries += 1
        if tries > 50 * size + 1000:
            raise ValueError(
                f"only {len(found)} different {split} tasks found of kinds {kinds} and levels {levels}, {size} were "
                "asked for; ask for fewer, or for higher levels"
            )
    tasks = list(found)
    rng.shuffle(tasks)
    return tasks
