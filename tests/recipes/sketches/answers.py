"""What the fake engine says in each sketch: (prompt as text, seeded generator) -> reply."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from selfloop.workflows.pocket.tasks import parse_task

Says = Callable[[str, random.Random], str]

WORDS = [
    "red",
    "green",
    "blue",
    "small",
    "large",
    "round",
    "square",
    "old",
    "new",
    "warm",
    "cold",
    "loud",
    "soft",
    "north",
    "south",
    "early",
    "late",
    "plain",
]


def words(rng: random.Random, count: int = 4) -> str:
    return " ".join(rng.choices(WORDS, k=count))


def anything(prompt: str, rng: random.Random) -> str:
    return words(rng)


def digits(prompt: str, rng: random.Random) -> str:
    """For the pocket judge, to which only digits are answers."""
    return str(rng.randrange(10**6))


def dno(prompt: str, rng: random.Random) -> str:
    if "grade 0-6" not in prompt:
        return words(rng)
    return "\n".join(f"{k}: {rng.choice(['0', '2', '3', '5', '6', 'x'])}" for k in range(1, 7))


def i_sheep(prompt: str, rng: random.Random) -> str:
    if "tasks\n" in prompt:
        return "".join(f"name {words(rng, 6)}\n{k}. " for k in range(7, 12)) + "name cut"
    if "1 to 10" in prompt:
        return rng.choice(["9 || good", "10 || fine", "8.6 || ok", "8.5 || ok", "good"])
    return words(rng)


def self_align(prompt: str, rng: random.Random) -> str:
    if "topics of" in prompt:
        return "".join(f"{rng.choice(WORDS).title()}\n{k}. " for k in range(2, 6 + rng.randrange(3)))
    if "of type" in prompt:
        return f"what is {words(rng)}?"
    if "principles:" in prompt:
        return rng.choice(["I am Selfloop, rule 1", "I am"]) + f"\nanswer: {words(rng)}, {words(rng)}."
    return f"{words(rng)}. {words(rng)}. and so on. and so on."


def cut(prompt: str, rng: random.Random) -> str:
    return rng.choice(["right", "wrong at 2", "wrong at 1"]) if "critique" in prompt else words(rng)


def augcon(prompt: str, rng: random.Random) -> str:
    if "first half" in prompt:
        context = prompt.rsplit("<|user|>", maxsplit=1)[-1].split("\nquestion ||", maxsplit=1)[0]
        half = len(context) // 2
        return f"what is {words(rng)}? || {context[:half]} || {context[half:]}"
    return rng.choice(["yes", "yes", "no"]) if "right?" in prompt else f"who is {words(rng)}?"


def tree_plv(prompt: str, rng: random.Random) -> str:
    task, _, begun = prompt.rpartition("<|assistant|>")
    answer = solve(task.rpartition("<|user|>")[2].removesuffix("<|end|>"))
    steps = re.findall(r"by way (\d)", begun)
    if not steps or (len(steps) < 3 and rng.random() < 0.3):
        return f"by way {rng.randrange(4)}\n"
    return answer if rng.randrange(4) < int(steps[-1]) else "x"


def solve(task: str) -> str:
    parsed = parse_task(task)
    return parsed.answer if parsed else "none"


def rain(prompt: str, rng: random.Random) -> str:
    return words(rng, 6) + "."


def spo(prompt: str, rng: random.Random) -> str:
    if "<prompt>" in prompt:
        return rng.choice([f"why <prompt>{words(rng)}</prompt>", "nothing"])
    return rng.choice("AB") if "better?" in prompt else words(rng)
