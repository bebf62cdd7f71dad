"""RAIN: rewindable inference, without training."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from selfloop import Iteration, Model, Player, Recipe, Said, frame
from tests.recipes.sketches.texts import task, user

CHUNKS = (1, 2, 4, 10)  # tokens, by depth


class Rain(Recipe):
    """A tree search over chunks of the answer; the model judges its own text in two orders of the options. Similarity of
    siblings is that of their words: no encoder is asked."""

    turns: int = 50
    width: int = 10
    least_visits: int = 6
    threshold: float = 0.8
    explore: float = 2.0
    similar: tuple[float, float] = (0.95, 0.2)  # cosine, weight
    longest: int = 64

    def iteration(self, it: Iteration) -> dict[str, Model]:
        it.prompts().play(self.decode, policy=it.policy, reads=("prompt",)).save("answers")
        return {}

    async def decode(self, player: Player, rows: list[Any], rng: random.Random) -> Said:
        """Search, commit the most visited chunk, search on from there."""
        search, root = Search(self, player, rows[0]), Node("")
        while root.depth == 0 or not (root.said.ended or len(root.said.ids) >= self.longest):
            root = await search.chunk(root)
        return root.said


@dataclass
class Node:
    """A response up to and with one chunk. n: visits, with shares of like siblings' ones; real: visits; q: mean score."""

    said: Any
    depth: int = 0
    prior: float = 1.0
    n: float = 0.0
    real: int = 0
    q: float = 0.0
    children: list[Node] = field(default_factory=list)


@dataclass
class Search:
    settings: Rain
    player: Player
    row: Any
    low: float = -1.0
    high: float = 1.0

    async def chunk(self, root: Node) -> Node:
        """The next chunk after what is fixed."""
        best = root
        for _ in range(self.settings.turns):
            path = [root]
            while path[-1].children:
                path.append(max(path[-1].children, key=lambda node, above=path[-1]: self.worth(node, above)))
            score, _ = await asyncio.gather(self.judge(path[-1]), self.expand(path[-1]))
            self.back_up(path, score)
            best = max(root.children, key=lambda node: (node.n, node.q))
            if best.real > self.settings.least_visits and best.q > self.settings.threshold:
                break
        return best

    def worth(self, node: Node, above: Node) -> float:
        level = (node.q - self.low) / (self.high - self.low + 1e-5) if node.n else 0.0
        return level + self.settings.explore * node.prior * math.sqrt(above.n) / (1 + node.n)

    async def judge(self, node: Node) -> float:
        """+1 or -1 if both orders of the options agree on the text up to the clause's end, else 0."""
        said = node.said
        if node.depth == 0 or not said.ended:
            stop = (",", ".", "?", ":", ";", "\n")
            said = await self.player.policy.say(self.row["prompt"], after=said, stop=stop)
        text = frame(task=task(self.row), answer=said.text) + "\n\n"
        orders = ("A: harmless B: harmful", "A: harmful B: harmless")
        one, two = await asyncio.gather(
            *(self.player.policy.label_logprobs(user(text + order), ["A", "B"]) for order in orders)
        )
        return (one[0] > one[1]) + (two[1] > two[0]) - 1.0

    async def expand(self, node: Node) -> None:
        """Distinct sampled chunks, with their probabilities as priors."""
        if node.depth and node.said.ended:
            return
        size = CHUNKS[min(node.depth, len(CHUNKS) - 1)]
        drawn = await self.player.policy.sample(
            self.row["prompt"], n=self.settings.width, after=node.said, max_tokens=size, top_k=15)  # fmt: skip
        distinct = {tuple(said.ids): said for said in drawn}.values()
        shares = [math.exp(sum(said.logprobs[-said.new :])) for said in distinct]
        node.children = [Node(said, node.depth + 1, 0.75 * share / sum(shares) + 0.25 / len(shares))
                         for said, share in zip(distinct, shares, strict=True)]  # fmt: skip

    def back_up(self, path: list[Node], score: float) -> None:
        limit, share = self.settings.similar
        for above, node in zip([None, *path], path, strict=False):
            node.n, node.real = node.n + 1, node.real + 1
            node.q += (score - node.q) / node.n
            for other in above.children if above else ():
                alike = cosine(node.said.step, other.said.step)
                if other is not node and alike >= limit:
                    other.q = (other.q * other.n + share * alike * score) / (other.n + share * alike)
                    other.n += share * alike
        self.low, self.high = min(self.low, path[-1].q), max(self.high, path[-1].q)


def cosine(one: str, other: str) -> float:
    a, b = Counter(one.split()), Counter(other.split())
    norm = math.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))
    return sum(a[word] * b[word] for word in a) / norm if norm else 0.0
