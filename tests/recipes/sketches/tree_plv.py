"""Tree-PLV: a step verifier from a tree of reasoning."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import pyarrow as pa

from selfloop import (
    VERDICT,
    BestOfN,
    BradleyTerry,
    Iteration,
    Model,
    Player,
    Recipe,
    Rule,
    Said,
    ScalarHead,
    Verifier,
    graded,
)


class TreePLV(Recipe):
    """Best-first search; a step is worth the share of its completions that are right; siblings far apart are pairs."""

    children: int = 5
    completions: int = 8
    margin: float = 0.375
    expansions: int = 3
    candidates: int = 10

    def iteration(self, it: Iteration) -> dict[str, Model]:
        search = Search(children=self.children, completions=self.completions, expansions=self.expansions,
                        checker=it.verifier())  # fmt: skip
        prompts = it.prompts()
        steps = prompts.play(
            search, policy=it.policy, reads=("prompt", "answer"), adds={**VERDICT, "under": pa.int64()}
        )
        pairs = steps.pair(Siblings(margin=self.margin))
        verifier = it.initial.adapt(ScalarHead()).train(
            pairs, BradleyTerry(), reference=None, optimizer="fresh", role="verifier"
        )
        solutions = prompts.sample(it.policy, n=self.candidates)
        scored = solutions.measure(verifier, "values", column="worth").score(worst_step, reads=("worth",))
        scored.keep(BestOfN()).save("solutions")
        return {"verifier": verifier}


class Search(Rule):
    """The program: rows are candidate steps, each with everything before it, its worth, and the step it follows."""

    children: int
    completions: int
    expansions: int
    checker: Verifier

    async def __call__(self, player: Player, rows: list[Any], rng: random.Random) -> list[dict[str, Any]]:
        made: list[dict[str, Any]] = []
        tree: list[tuple[float, int, Said | str]] = [(1.0, 0, "")]
        for _ in range(self.expansions):
            best = max(tree, key=lambda node: (node[0], -node[1]))
            if isinstance(best[2], Said) and best[2].ended:
                break
            tree.remove(best)
            steps = await player.policy.sample(
                rows[0]["prompt"], n=self.children, after=best[2], stop=("\n",)
            )
            steps = list({step.text: step for step in steps}.values())
            worths = await asyncio.gather(*(self.worth(player, rows[0], step) for step in steps))
            for step, worth in zip(steps, worths, strict=True):
                made.append(graded(step.row(under=best[1]), worth))
                tree.append((worth, len(made), step))
        return made

    async def worth(self, player: Player, row: Any, step: Said) -> float:
        """The share of completions that end in the right answer."""
        ends = (
            [step]
            if step.ended
            else await player.policy.sample(row["prompt"], n=self.completions, after=step)
        )
        right = [self.checker.verify({**row, "response": end.text.splitlines()[-1]}) for end in ends]
        return sum(value or 0.0 for value in right) / len(right)


class Siblings(Rule):
    """Steps after the same step whose worths are at least `margin` apart."""

    margin: float

    def __call__(self, rows: list[Any], rng: random.Random) -> list[tuple[Any, Any]]:
        return [(one, other) for one, other in itertools.permutations(rows, 2)
                if one["under"] == other["under"] and one["score"] - other["score"] >= self.margin]  # fmt: skip


def worst_step(rows: list[Any], rng: random.Random) -> list[float | None]:
    """The least value at the end of a step: a path is as good as its weakest step. (Here every token ends one.)"""
    return [min(row["worth"], default=None) for row in rows]
