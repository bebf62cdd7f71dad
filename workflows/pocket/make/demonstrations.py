"""What the base model is trained on: demonstrations of every role, a known share of them wrong.

Wrong answers are of two sorts. A slip changes, swaps, drops or repeats a digit at random: it lowers sampled accuracy
but not greedy accuracy. Each kind also has one habitual mistake (a sum without its carries, a sort that puts the
largest digit first), shown more often the longer the task, and more for some tasks than for others of the same
length, until it outweighs the right answer: there the greedy answer is wrong too. Judgements are shown mostly right,
so the model knows better than it answers: that is what self-improvement can use.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from selfloop.workflows.data.schema import Message
from selfloop.workflows.pocket import roles
from selfloop.workflows.pocket.mistakes import habit, slip, wrong_answer
from selfloop.workflows.pocket.tasks import CORE_LEVELS, KINDS, Task, draw

__all__ = ["KIND_WEIGHTS", "Noise", "attempt", "demonstration"]

ROLES = {
    "answer": 0.42,
    "point": 0.22,
    "comparison": 0.15,
    "critique": 0.05,
    "refinement": 0.08,
    "principle": 0.04,
    "new_task": 0.04,
}
KIND_WEIGHTS = {
    "sort": 1.2,
    "reverse": 1.2,
    "unique": 1.2,
    "count": 1.0,
    "max": 0.4,
    "add": 2.0,
}  # hard ones more


@dataclass(frozen=True)
class Noise:
    """Shares of wrong demonstrations."""

    slip: float = 0.28
    habit: tuple[float, ...] = (0.06, 0.12, 0.20, 0.28, 0.36)  # by level, from 3
    leaning: float = 0.08  # more for tasks whose last digit is odd, less for the others
    judgement: float = 0.08  # judgements turned round
    refinement: float = 0.20  # refinements that are wrong
    principle: float = 0.30

    def habit_of(self, task: Task) -> float:
        """How often the habitual mistake is shown for this task."""
        share = self.habit[min(max(task.level - CORE_LEVELS[0], 0), len(self.habit) - 1)]
        return share and share + (self.leaning if task.args[-1][-1] in "13579" else -self.leaning)


def attempt(rng: random.Random, task: Task, noise: Noise) -> str:
    """An answer as the base gives it: right, the habitual mistake, or a slip."""
    at = rng.random()
    if at < noise.slip:
        return slip(rng, task.answer)
    return habit(task) if at < noise.slip + noise.habit_of(task) else task.answer


def demonstration(
    rng: random.Random, noise: Noise, role: str | None = None, levels: tuple[int, ...] = CORE_LEVELS
) -> tuple[list[Message], str]:
    """One training row: messages and the reply shown for them. Only tasks of the train side are used."""
    role = role or rng.choices(list(ROLES), weights=list(ROLES.values()))[0]
    kind = rng.choices(KINDS, weights=[KIND_WEIGHTS[kind] for kind in KINDS])[0]
    task = draw(rng, kind, rng.choice(levels), "train")
    return _SHOW[role](rng, task, noise)


def _answer(rng: random.Random, task: Task, noise: Noise) -> tuple[list[Message], str]:
    return roles.answer_messages(task.text), attempt(rng, task, noise)


def _point(rng: random.Random, task: Task, noise: Noise) -> tuple[list[Message], str]:
    said = task.answer if rng.random() < 0.5 else wrong_answer(rng, task)
    truth = roles.point_truth(task, said) == "yes"
    turned = rng.random() < noise.judgement
    return roles.point_messages(task.text, said), "yes" if truth != turned else "no"


def _comparison(rng: random.Random, task: Task, noise: Noise) -> tuple[list[Message], str]:
    pair = [task.answer, wrong_answer(rng, task)]
    if rng.random() < 0.1:  # both wrong: no truth, a coin
        pair = [wrong_answer(rng, task), wrong_answer(rng, task)]
    rng.shuffle(pair)
    truth = roles.comparison_truth(task, *pair)
    coin = truth is None or rng.random() < 2 * noise.judgement
    return roles.comparison_messages(task.text, *pair), rng.choice("AB") if coin or truth is None else truth


def _critique(rng: random.Random, task: Task, noise: Noise) -> tuple[list[Message], str]:
    said = task.answer if rng.random() < 0.4 else wrong_answer(rng, task)
    shown = roles.critique_truth(task, said)
    if rng.random() < noise.judgement:
        shown = rng.choice(("right", f"wrong at {rng.randint(1, len(task.answer))}"))
    return roles.critique_messages(task.text, said), shown


def _refinement(rng: random.Random, task: Task, noise: Noise) -> tuple[list[Message], str]:
    said = task.answer if rng.random() < 0.3 else wrong_answer(rng, task)
    critique = roles.critique_truth(task, said) if rng.random() < 0.5 else None
    better = task.answer if rng.random() >= noise.refinement else attempt(rng, task, noise)
    return roles.refinement_messages(task.text, said, critique), better


def _principle(rng: random.Random, task: Task, noise: Noise) -> tuple[list[Message], str]:
    rule = rng.choice(list(roles.PRINCIPLES))
    shown = roles.principle_truth(task, rule)
    if rng.random() < noise.principle:  # a wrong answer written by the rule, or the rule forgotten
        shown = roles.PRINCIPLES[rule](wrong_answer(rng, task)) if rng.random() < 0.5 else task.answer
    return roles.principle_messages(task.text, rule), shown


def _new_task(rng: random.Random, task: Task, noise: Noise) -> tuple[list[Message], str]:
    return roles.new_task_messages(task.kind if rng.random() < 0.5 else None), task.text


_SHOW = {
    "answer": _answer,
    "point": _point,
    "comparison": _comparison,
    "critique": _critique,
    "refinement": _refinement,
    "principle": _principle,
    "new_task": _new_task,
}
