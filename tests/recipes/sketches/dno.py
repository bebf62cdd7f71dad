"""Direct Nash Optimization, practical variant."""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa

from selfloop import DNO as Contrast
from selfloop import VERDICT, Iteration, Model, Player, Recipe, Rule, frame, graded, scored_rows
from tests.recipes.sketches.texts import task, user


class DNO(Recipe):
    """A teacher's answer among the policy's own, all graded in one call; every wide pair; old pairs come again."""

    samples: int = 5
    beta: float = 0.1
    inherited: tuple[float, ...] = (0.30, 0.15)  # of the pairs of t-1, t-2

    def iteration(self, it: Iteration) -> Model:
        prompts = it.prompts()
        students = prompts.sample(it.policy, n=self.samples, temperature=0.7, top_p=0.95)
        answers = students.merge(prompts.demonstrate(it.policy))
        pairs = answers.play(grade_together, judge=it.policy, adds=VERDICT).pair(wide_pairs).save("pairs")
        for age, share in enumerate(self.inherited):
            old = it.saved("pairs", before=age)
            if old is not None:
                pairs = pairs.concat(old.gather(Share(share=share)))
        return it.policy.train(pairs, Contrast(beta=self.beta), reference=it.policy, optimizer="fresh")


async def grade_together(player: Player, rows: list[Any], rng: random.Random) -> list[dict[str, Any]]:
    """One call sees all answers in a random order; one line of the reply an answer."""
    order = rng.sample(range(len(rows)), len(rows))
    answers = {f"answer_{number}": rows[k]["response"] for number, k in enumerate(order, 1)}
    texts = frame(task=task(rows[0]), **answers)
    said = await player.judge.say(user(f"grade 0-6, one line each, as 1: 4\n\n{texts}"))
    scores = dict(line.split(": ", 1) for line in said.text.splitlines() if ": " in line)
    return [graded(row, number_in(scores.get(str(order.index(k) + 1), ""))) for k, row in enumerate(rows)]


def number_in(text: str) -> float | None:
    return float(text) if text.strip().isdigit() and 0 <= int(text) <= 6 else None


def wide_pairs(rows: list[Any], rng: random.Random) -> list[tuple[Any, Any]]:
    """All pairs of a chosen of at least 5 and a rejected 2 below it, or 1 where the chosen is the student's."""
    good = [row for row in scored_rows(rows) if row["score"] >= 5 and not repetitive(row["response"])]
    return [(one, other) for one in good for other in scored_rows(rows)
            if repetitive(other["response"]) or other["score"] <= one["score"] - (2 if one["version"] is None else 1)]  # fmt: skip


def repetitive(text: str, n: int = 4) -> bool:
    words = text.split()
    grams = [tuple(words[k : k + n]) for k in range(len(words) - n + 1)]
    return len(set(grams)) < len(grams)


class Share(Rule):
    """A random share of the rows."""

    share: float

    def __call__(self, table: pa.Table, rng: random.Random) -> pa.Table:
        kept = sorted(rng.sample(range(table.num_rows), int(self.share * table.num_rows)))
        return table.take(pa.array(kept, pa.int64()))
