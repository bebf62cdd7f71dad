"""SALMON: a reward model that reads principles, and PPO on it."""

from __future__ import annotations

import asyncio
import random
from statistics import fmean
from typing import Any

import pyarrow as pa

from selfloop import PPO, BradleyTerry, Iteration, Model, Player, Recipe, ScalarHead, Stream, ValueLoss, frame
from tests.recipes.sketches.texts import Messages, task, user

PRINCIPLES = {"concise": "long", "honest": "false", "specific": "vague", "creative": "dull"}
WEIGHTS = {"concise": 3, "honest": 2, "specific": 1, "creative": 1}
NUMBERS, TEXTS = pa.list_(pa.float64()), pa.list_(pa.string())
TOKENS = {name: pa.list_(pa.float32()) for name in ("advantages", "returns")}


class Salmon(Recipe):
    """The first iteration makes the reward model from the policy's own comparisons; all of them run PPO against it."""

    passes: int = 4
    kl: float = 0.01

    def iteration(self, it: Iteration) -> dict[str, Model]:
        first, prompts = it.index == 1, it.prompts()
        reward = self.reward_model(it, prompts) if first else it.model("reward")
        critic = reward if first else it.model("critic")
        answers = prompts.sample(it.policy, temperature=0.7, name="rollouts")
        judged = answers.recontext(under_drawn, tokens=it.policy, view="judged")
        judged = judged.measure(reward, "rewards", under="judged", column="reward")
        judged = judged.measure(critic, "values", column="old_values").measure(it.policy).measure(
            it.initial, column="reference", name="reference")  # fmt: skip
        rows = judged.map(self.advantages, adds=TOKENS)
        policy = it.policy.train(rows, PPO(), reference=None, optimizer="continued")
        optimizer = "fresh" if first else "continued"
        critic = critic.train(
            rows, ValueLoss(), reference=None, optimizer=optimizer, role="critic", name="critic"
        )
        return {"policy": policy, "critic": critic, "reward": reward}

    def reward_model(self, it: Iteration, prompts: Stream) -> Model:
        """Pairs under principles drawn and negated at random, labelled by the principle that tells most."""
        two = prompts.sample(it.policy, n=2, temperature=0.7)
        compared = two.play(compare, judge=it.policy, adds={"one": NUMBERS, "two": NUMBERS})
        scored = compared.gather(aggregate, adds=("leads",)).pair(self.label, adds={"shown": TEXTS})
        pairs = scored.recontext(under_shown, tokens=it.policy, reads=("shown",))
        return it.initial.adapt(ScalarHead()).train(
            pairs, BradleyTerry(), reference=None, optimizer="fresh", role="reward", name="reward"
        )

    def label(self, rows: list[Any], rng: random.Random) -> list[tuple[Any, Any, dict[str, Any]]]:
        made = []
        for _ in range(self.passes if len(rows) == 2 else 0):
            drawn = rng.sample(list(PRINCIPLES), min(geometric(rng), len(PRINCIPLES)))
            leads = {name: rows[0]["leads"][list(PRINCIPLES).index(name)] for name in drawn}
            negated = {name for name in drawn if rng.random() < 0.5}
            lead = max(((-leads[name] if name in negated else leads[name]) for name in drawn), key=abs)
            shown = [PRINCIPLES[name] if name in negated else name for name in drawn]
            if lead:
                made.append((*(rows if lead > 0 else rows[::-1]), {"shown": shown}))
        return made

    def advantages(self, row: Any, rng: random.Random) -> dict[str, Any]:
        """GAE with gamma = lambda = 1: what is still to come, less the critic's value. The KL counts only above 0."""
        gaps = zip(row["measured_logprobs"], row["reference"], strict=True)
        rewards = [-self.kl * max(0.0, one - other) for one, other in gaps]
        rewards[-1] += row["reward"] - 6 * (row["finish"] == "length")
        returns = [sum(rewards[place:]) for place in range(len(rewards))]
        return {
            "returns": returns,
            "advantages": [a - v for a, v in zip(returns, row["old_values"], strict=True)],
        }


async def compare(player: Player, rows: list[Any], rng: random.Random) -> list[dict[str, Any]]:
    """For each principle the log-odds that the first answer is better, asked in both orders."""
    if len(rows) < 2:
        return []

    async def odds(principle: str, a: Any, b: Any) -> float:
        question = f"{frame(task=task(a), A=a['response'], B=b['response'])}\n\nmore {principle}?"
        first, second = await player.judge.label_logprobs(user(question), ["A", "B"])
        return first - second

    one = await asyncio.gather(*(odds(name, *rows) for name in PRINCIPLES))
    two = await asyncio.gather(*(odds(name, *rows[::-1]) for name in PRINCIPLES))
    return [{**row, "one": one, "two": [-value for value in two]} for row in rows]


def aggregate(table: pa.Table, rng: random.Random) -> pa.Table:
    """Mean of both orders over the variance of the principle, 0 where the orders disagree."""
    one, two = table["one"].to_pylist(), table["two"].to_pylist()
    every = [[value for row in (*one, *two) for value in row[k : k + 1]] for k in range(len(PRINCIPLES))]
    spread = [fmean((value - fmean(values)) ** 2 for value in values) for values in every]
    leads = [[fmean((a, b)) / v if a * b > 0 else 0.0 for a, b, v in zip(x, y, spread, strict=True)]
             for x, y in zip(one, two, strict=True)]  # fmt: skip
    return table.append_column("leads", pa.array(leads, NUMBERS))


def geometric(rng: random.Random) -> int:
    count = 1
    while rng.random() > 0.2:
        count += 1
    return count if count <= 8 else geometric(rng)


def under_shown(row: Any) -> Messages:
    return user(f"{task(row)}\nbe {', '.join(row['shown'])}")


def under_drawn(row: Any) -> Messages:
    rng = random.Random(row["seed"])  # three principles a rollout, by weight
    drawn = sorted(PRINCIPLES, key=lambda name: rng.random() ** (1 / WEIGHTS[name]))[-3:]
    return user(f"{task(row)}\nbe {', '.join(drawn)}")
