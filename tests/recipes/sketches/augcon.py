"""AugCon: questions at every granularity of a corpus."""

from __future__ import annotations

import asyncio
import random
from typing import Any, ClassVar

import pyarrow as pa

from selfloop import (
    SFT,
    BradleyTerry,
    Iteration,
    Model,
    Player,
    PromptJudge,
    Recipe,
    ScalarHead,
    Stream,
    frame,
)
from tests.recipes.sketches.texts import Messages, own_prompt, task, unlike, user

CONTEXT = {"context": pa.string()}
CRIPPLED = ("ask", "ask as in: what is it?", "ask, as: who? when?")


class AugCon(Recipe):
    """Chunks are split again and again with a question for each part; a scorer trained against questions of worse prompts
    ranks them; the model learns its answers without the context."""

    tries: int = 4
    characters: int = 35  # of a chunk for each question kept

    def iteration(self, it: Iteration) -> Model:
        base = it.initial
        split = it.data("corpus", take=4).play(self.split, writer=base, adds=CONTEXT)
        questions = split.edit(question, tokens=base).recontext(
            about_context, tokens=base, reads=("context",)
        )
        worse = questions.play(cripple, writer=base, adds={"crippled": pa.bool_()}, name="crippled")
        pairs = worse.pair(good_against_crippled)
        scorer = base.adapt(ScalarHead()).train(
            pairs, BradleyTerry(), reference=None, optimizer="fresh", role="scorer", name="scorer"
        )
        best = questions.measure(scorer, "rewards", column="quality").keep(self.pick)
        asked = best.map(as_prompt, beside=self.demonstrations(it), reads=("context", "response"))
        answers = asked.sample(base, temperature=0.2, show=with_context, reads=("context",), name="answers")
        lessons = answers.recontext(own_prompt, tokens=base, name="lessons")
        return base.train(lessons, SFT(), reference=None, optimizer="fresh", epochs=4)

    async def split(self, player: Player, rows: list[Any], rng: random.Random) -> list[dict[str, Any]]:
        """Whole trees over the chunk until there are questions enough."""
        made: list[dict[str, Any]] = []
        for _ in range(self.tries):
            made += await self.branch(player, task(rows[0]))
            if len(made) >= 1.15 * (len(task(rows[0])) // self.characters):
                break
        return made

    async def branch(self, player: Player, context: str) -> list[dict[str, Any]]:
        """A question about a context, and those about its two halves, which the model writes."""
        for _ in range(self.tries if len(context) > 20 else 0):
            said = await player.writer.say(
                user(f"{context}\nquestion || first half || second half"), temperature=0.85
            )
            asked, *halves = said.text.split(" || ")
            if len(halves) == 2 and len(asked) >= 5 and all(len(half) < len(context) for half in halves):
                below = await asyncio.gather(*(self.branch(player, half) for half in halves))
                return [said.row(context=context), *(row for rows in below for row in rows)]
        return []

    def pick(self, rows: list[Any], rng: random.Random) -> list[Any]:
        """The best questions of a chunk that are unlike each other, up to its quota."""
        kept: list[Any] = []
        quota = max(len(row["context"]) for row in rows) // self.characters
        for row in sorted(rows, key=lambda row: -row["quality"]):
            if len(kept) < quota and unlike(row["response"], [one["response"] for one in kept]):
                kept.append(row)
        return kept

    def demonstrations(self, it: Iteration) -> Stream:
        """Answers to examples that the model itself finds to match the references."""
        answers = it.data("examples", take=4).sample(it.initial, name="demonstrations")
        return answers.judge(Matches(), by=it.initial).keep(matching)


def question(row: Any) -> str:
    return row["response"].split(" || ")[0]


def about_context(row: Any) -> Messages:
    return user(f"{row['context']}\nask")


async def cripple(player: Player, rows: list[Any], rng: random.Random) -> list[dict[str, Any]]:
    """Beside each question one that a worse prompt gave for the same context."""
    asks = [player.writer.say(user(f"{row['context']}\n{rng.choice(CRIPPLED)}")) for row in rows]
    said = await asyncio.gather(*asks)
    return [one for row, worse in zip(rows, said, strict=True)
            for one in ({**row}, worse.row(context=row["context"], crippled=True))]  # fmt: skip


def good_against_crippled(rows: list[Any], rng: random.Random) -> list[tuple[Any, Any]]:
    both = zip(rows[::2], rows[1::2], strict=True)
    return [(one, two) for one, two in both if one["response"] != two["response"]]


def as_prompt(row: Any, examples: list[Any], rng: random.Random) -> dict[str, Any]:
    shown = "".join(
        f"{task(one)}: {one['response']}\n" for one in rng.sample(examples, min(3, len(examples)))
    )
    return {"prompt": user(row["response"]), "context": shown + row["context"]}


def with_context(row: Any) -> Messages:
    return user(f"{row['context']}\nanswer with reasons: {task(row)}")


class Matches(PromptJudge):
    """Whether an answer says what the reference says: yes or no."""

    reads: ClassVar[tuple[str, ...]] = ("prompt", "response", "answer")

    def messages(self, row: Any) -> Messages:
        texts = frame(task=task(row), reference=row["answer"], answer=row["response"])
        return user(f"{texts}\n\nright?")

    def parse(self, text: str) -> float | None:
        return {"yes": 1.0, "no": 0.0}.get(text.strip())


def matching(rows: list[Any], rng: random.Random) -> list[Any]:
    return [row for row in rows if row["score"] == 1]
