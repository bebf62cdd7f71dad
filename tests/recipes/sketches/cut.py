"""CUT: contrastive unlikelihood training, online."""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa

from selfloop import CUT as Unlikelihood
from selfloop import Iteration, Model, PromptJudge, Recipe, frame
from tests.recipes.sketches.texts import Messages, task, user


class CUT(Recipe):
    """A judgment in words shows which tokens of the policy's own answer are wrong: those that it makes likelier."""

    share: float = 0.25  # of faultless answers, to each answer with faults
    threshold: float = 1.1

    def iteration(self, it: Iteration) -> Model:
        judged = it.prompts().sample(it.policy).judge(Critic(), by=it.policy, column="label").keep(readable)
        rows = judged.gather(self.balance).recontext(
            beside_judgment, tokens=it.policy, view="judged", reads=("label_judgements",)
        )
        return it.policy.train(
            rows, Unlikelihood(threshold=self.threshold), reference=None, optimizer="fresh"
        )

    def balance(self, table: pa.Table, rng: random.Random) -> pa.Table:
        labels = table["label"].to_pylist()
        good = [place for place, label in enumerate(labels) if label == 1]
        kept = rng.sample(good, min(len(good), int(self.share * (len(labels) - len(good)))))
        wanted = sorted([*kept, *(place for place, label in enumerate(labels) if label == 0)])
        return table.take(pa.array(wanted, pa.int64()))


class Critic(PromptJudge):
    """Mistakes in words, or one word for a perfect answer: 1 for that, else 0."""

    def messages(self, row: Any) -> Messages:
        texts = frame(task=task(row), answer=row["response"])
        return user(f"name mistakes, or say right\n\n{texts}\n\ncritique")

    def parse(self, text: str) -> float | None:
        return float(text.strip().lower().startswith("right")) if text.strip() else None


def readable(rows: list[Any], rng: random.Random) -> list[Any]:
    return [row for row in rows if row["label"] is not None]


def beside_judgment(row: Any) -> Messages | None:
    """The prompt with the judgment that the answer matches; the plain prompt for a faultless answer."""
    if row["label"] == 1:
        return None
    return user(f"{task(row)}\nanswer so that this is true of it: {row['label_judgements'][0]['text']}")
