"""I-SHEEP: iterative self-enhancement."""

from __future__ import annotations

import random
import re
from typing import Any, ClassVar

from selfloop import SFT, Iteration, Model, PromptJudge, Recipe, Rule, Stream, frame
from tests.recipes.sketches.texts import Messages, plain, task, unlike, user


class ISheep(Recipe):
    """The policy writes tasks after seed tasks, answers them, grades itself; the base is tuned on what it grades highest."""

    tasks: int = 30
    rounds: int = 4
    shown: int = 5
    threshold: float = 8

    def iteration(self, it: Iteration) -> Model:
        tasks = it.grow(self.write, until=self.tasks, rounds=self.rounds, accept=new_task, name="tasks")
        answers = tasks.sample(it.policy, top_p=0.95, show=asked_plainly if it.index == 1 else None).keep(
            sound
        )
        graded = answers.judge(Grade(of="quality"), by=it.policy, column="quality")
        graded = graded.judge(Grade(of="following"), by=it.policy, column="following")
        kept = graded.keep(Above(threshold=self.threshold))
        return it.initial.train(kept, SFT(), reference=None, optimizer="fresh", epochs=2)

    def write(self, it: Iteration) -> Stream:
        """Lists of tasks that go on after seed tasks; no task like a seed."""
        seeds = it.data("seeds")
        lists = seeds.map(Show(count=self.shown), beside=seeds).sample(it.policy, top_p=0.95, stop=("17.",))
        return lists.map(listed, beside=seeds, reads=("response",))


class Show(Rule):
    """Random seed tasks as the head of a list."""

    count: int

    def __call__(self, row: Any, seeds: list[Any], rng: random.Random) -> dict[str, Any]:
        lines = [f"{k}. {task(one)}" for k, one in enumerate(rng.sample(seeds, self.count), 1)]
        return {"prompt": plain("\n".join(["tasks", *lines, f"{self.count + 1}. "]))}


def listed(row: Any, seeds: list[Any], rng: random.Random) -> list[dict[str, Any]]:
    """The tasks of a list but for its last piece, which may be cut."""
    found = [piece.strip() for piece in re.split(r"\n\d+\. ", row["response"])[:-1]]
    return [{"prompt": user(text), "answer": None} for text in found
            if 4 <= len(text.split()) <= 150 and unlike(text, [task(seed) for seed in seeds])]  # fmt: skip


def new_task(rows: list[Any], pool: list[Any]) -> bool:
    return unlike(task(rows[0]), [task(row) for row in pool])


def asked_plainly(row: Any) -> Messages:
    return plain(task(row) + "\n")


def sound(rows: list[Any], rng: random.Random) -> list[Any]:
    return [row for row in rows if row["response"].strip() and "\nUser:" not in row["response"]]


class Grade(PromptJudge):
    """Number, separator, explanation; 1 to 10, rounded half to even."""

    of: str
    reads: ClassVar[tuple[str, ...]] = ("prompt", "response")

    def messages(self, row: Any) -> Messages:
        texts = frame(task=task(row), answer=row["response"])
        return user(f"{self.of} of the answer, 1 to 10 || why\n\n{texts}")

    def parse(self, text: str) -> float | None:
        number = re.match(r"\W*(\d+(?:\.\d+)?)", text)
        return float(round(float(number[1]))) if number and 1 <= round(float(number[1])) <= 10 else None


class Above(Rule):
    """Rows whose two grades are both above the threshold."""

    threshold: float

    def __call__(self, rows: list[Any], rng: random.Random) -> list[Any]:
        grades = ("quality", "following")
        return [row for row in rows if all((row[name] or 0) > self.threshold for name in grades)]
