"""SPO: self-supervised prompt optimization."""

from __future__ import annotations

import asyncio
import random
import re
from typing import Any

import pyarrow as pa

from selfloop import Iteration, Model, Player, Recipe, frame
from tests.recipes.sketches.texts import task, user

COLUMNS = {"best": pa.string(), "tried": pa.string(), "wins": pa.int64()}


class SPO(Recipe):
    """An iteration is a round: rewrite the best prompt, answer with it, compare, keep the winner. Nothing is trained."""

    questions: int = 3
    votes: int = 4
    tries: int = 3

    def iteration(self, it: Iteration) -> dict[str, Model]:
        best = it.saved("best", default=it.data("task", take=1) if it.index == 1 else None)
        assert best is not None
        best.play(self.round, policy=it.policy, beside=it.prompts(), adds=COLUMNS, reads=("prompt",)).save(
            "best"
        )
        return {}

    async def round(
        self, player: Player, rows: list[Any], pool: list[Any], rng: random.Random
    ) -> dict[str, Any]:
        """The best prompt after this round. The first round's prompt has nothing to be compared with."""
        told, asked = dict(rows[0]), rng.sample(pool, self.questions)
        if not told.get("best"):
            return {**told, "best": "answer", "tried": "answer", "wins": self.votes}
        before = await self.execute(player, told["best"], asked)
        new = await self.rewrite(player, told, before)
        after = await self.execute(player, new, asked)
        votes = await asyncio.gather(
            *(self.vote(player, rows[0], before, after, rng) for _ in range(self.votes))
        )
        wins = sum(votes) if new else 0
        return {**told, "best": new if wins > self.votes - wins else told["best"], "tried": new, "wins": wins}

    async def rewrite(self, player: Player, told: dict[str, Any], outputs: str) -> str:
        """A new prompt; an empty one, which cannot win, if no reply can be read."""
        texts = frame(aim=task(told), prompt=told["best"], outputs=outputs)
        ask = f"{texts}\n\nwrite a better prompt in <prompt>"
        for _ in range(self.tries):
            said = await player.policy.say(user(ask), temperature=0.7)
            if found := re.search(r"<prompt>(.+?)</prompt>", said.text, re.DOTALL):
                return found[1]
        return ""

    async def execute(self, player: Player, prompt: str, asked: list[Any]) -> str:
        asks = (player.policy.say(user(f"{prompt}\n\n{task(one)}"), temperature=0.0) for one in asked)
        return "\n".join(said.text for said in await asyncio.gather(*asks))

    async def vote(self, player: Player, row: Any, old: str, new: str, rng: random.Random) -> bool:
        """Whether the new outputs win, shown first or second at random; a vote that cannot be read is lost."""
        swapped = rng.random() < 0.5
        a, b = (new, old) if swapped else (old, new)
        said = await player.policy.say(user(f"{frame(aim=task(row), A=a, B=b)}\n\nbetter?"), temperature=0.3)
        return said.text.strip() == ("A" if swapped else "B")
