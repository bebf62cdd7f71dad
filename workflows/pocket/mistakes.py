"""Wrong answers of the pocket world: a slip changes, swaps, drops or repeats a digit at random; each kind of task also has
one habitual mistake (a sum without its carries, a sort that puts the largest digit first).
"""

from __future__ import annotations

import random

from selfloop.workflows.pocket.tasks import Task

__all__ = ["habit", "slip", "wrong_answer"]


def habit(task: Task) -> str:
    """The habitual mistake of this kind of task (now and then it happens to be right)."""
    right, digits = task.answer, task.args[-1]
    if task.kind == "sort":  # the largest digit first
        return right[-1] + right[:-1]
    if task.kind == "reverse":  # the first digit stays
        return digits[0] + digits[:0:-1]
    if task.kind == "unique":  # the last one is forgotten
        return right[:-1] or right + right
    if task.kind == "count":  # one too many
        return str(int(right) + 1)
    if task.kind == "max":  # the last digit
        return digits[-1]
    return _without_carry(*task.args)


def _without_carry(a: str, b: str) -> str:
    width = max(len(a), len(b))
    pairs = zip(a.zfill(width), b.zfill(width), strict=True)
    return "".join(str((int(x) + int(y)) % 10) for x, y in pairs)


def slip(rng: random.Random, answer: str) -> str:
    """The answer with one digit changed, swapped with its neighbour, dropped or repeated; never the answer itself."""
    while True:
        at = rng.randrange(len(answer))
        how = rng.choice(("change", "change", "swap", "drop", "repeat"))
        wrong = answer
        if how == "change":
            wrong = answer[:at] + rng.choice("0123456789") + answer[at + 1 :]
        elif how == "swap" and at:
            wrong = answer[: at - 1] + answer[at] + answer[at - 1] + answer[at + 1 :]
        elif how == "drop" and len(answer) > 1:
            wrong = answer[:at] + answer[at + 1 :]
        elif how == "repeat":
            wrong = answer[: at + 1] + answer[at:]
        if wrong != answer:
            return wrong


def wrong_answer(rng: random.Random, task: Task) -> str:
    """The habitual mistake or a slip, equally often; never right."""
    usual = habit(task)
    return usual if rng.random() < 0.5 and usual != task.answer else slip(rng, task.answer)
