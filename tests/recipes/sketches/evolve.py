"""EVOLVE: evolving the self-refinement capability."""

from __future__ import annotations

import random
from typing import Any

from selfloop import DPO, SFT, Iteration, Model, Player, Recipe, Rule, Said, Stream, frame
from selfloop.workflows.recipes.preference.spin import demonstration_against_sample
from tests.recipes.sketches.texts import Messages, own_prompt, user


class Evolve(Recipe):
    """Answers and refinements are trained together; then the new model's chain of refinements gives the next pairs."""

    rounds: int = 4
    alpha: float = 0.5
    beta: float = 0.1

    def iteration(self, it: Iteration) -> Model:
        pairs, start = it.saved("pairs"), it.policy
        if pairs is None:
            pairs = self.preferences(it)
            start = start.train(
                self.lessons(pairs, start), SFT(), reference=None, optimizer="fresh", name="activate"
            )
        direct = pairs.score(Weigh(value=2 * (1 - self.alpha)), column="weight", name="direct")
        refined = pairs.score(Weigh(value=2 * self.alpha), column="weight").recontext(
            refine_rejected, tokens=start
        )
        objective = DPO(beta=self.beta)
        policy = start.train(direct.merge(refined), objective, reference=start, optimizer="fresh")
        chain = it.prompts().play(self.refine, policy=policy).recontext(own_prompt, tokens=policy)
        chain.pair(last_against_first).save("pairs")
        return policy

    def preferences(self, it: Iteration) -> Stream:
        """The pairs of the first round: demonstrations against samples."""
        prompts = it.prompts()
        return (
            prompts.sample(it.policy).merge(prompts.demonstrate(it.policy)).pair(demonstration_against_sample)
        )

    def lessons(self, pairs: Stream, tokens: Model) -> Stream:
        """The preferred answer after the prompt, and after the prompt with the other answer to be improved."""
        plain = pairs.recontext(own_prompt, tokens=tokens, view="response", of="chosen", name="answer")
        return plain.merge(pairs.recontext(refine_rejected, tokens=tokens, view="response", of="chosen"))

    async def refine(self, player: Player, rows: list[Any], rng: random.Random) -> list[Said]:
        """A direct answer, then each answer made from the one before it alone."""
        chain = [await player.policy.say(rows[0]["prompt"])]
        for _ in range(self.rounds - 1):
            chain.append(await player.policy.say(refine(rows[0]["prompt"], chain[-1].text)))
        return chain


def refine(prompt: Messages, answer: str) -> Messages:
    return user(f"{frame(task=prompt[-1]['content'], answer=answer)}\n\nimprove")


def refine_rejected(row: Any) -> Messages:
    return refine(row["prompt"], row["rejected"][0]["content"])


class Weigh(Rule):
    """The same weight for every row."""

    value: float

    def __call__(self, rows: list[Any], rng: random.Random) -> list[float]:
        return [self.value] * len(rows)


def last_against_first(rows: list[Any], rng: random.Random) -> list[tuple[Any, Any]]:
    """The later refinement is chosen, without any scorer; equal texts are dropped."""
    return [(rows[-1], rows[0])] if rows[-1]["response"] != rows[0]["response"] else []
