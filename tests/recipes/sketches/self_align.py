"""SELF-ALIGN (Dromedary)."""

from __future__ import annotations

import random
import re
from typing import Any

import pyarrow as pa

from selfloop import SFT, Iteration, Model, Recipe, Stream
from tests.recipes.sketches.texts import Messages, own_prompt, plain, task, user

PRINCIPLES = (
    "principles: be ethical, be honest\nuser: who are you\nthought: I am Selfloop, rule 2\nanswer: a model\n"
)
OPENING, LABEL = "I am Selfloop", "\nanswer: "


class SelfAlign(Recipe):
    """The base writes prompts, answers them under principles, and is tuned on the answers without the principles; then
    the tuned model's long answers tune the base once more."""

    def iteration(self, it: Iteration) -> Model:
        base, prompts = it.initial, it.prompts().concat(self.questions(it))
        said = prompts.sample(base, temperature=0.5, top_p=0.95, show=under_principles)
        answers = said.edit(final_answer, tokens=base).recontext(own_prompt, tokens=base)
        lessons = answers.concat(it.data("identity").demonstrate(base))
        engraved = base.train(lessons, SFT(), reference=None, optimizer="fresh", name="engrave")
        long = prompts.sample(engraved, temperature=0.3, top_p=0.7, show=at_length, name="verbose")
        told = long.edit(without_repeats, tokens=base, name="tidy").recontext(own_prompt, tokens=base)
        return base.train(told, SFT(), reference=None, optimizer="fresh")

    def questions(self, it: Iteration) -> Stream:
        """Topics of each question type, as many for one type as for the other; a question for each."""
        topics = (
            it.data("types").sample(it.initial, top_p=0.98, show=ask_topics, name="topics").map(topics_in)
        )
        asked = topics.gather(balance).sample(it.initial, top_p=0.95, show=ask_question, name="questions")
        return asked.map(question_in, reads=("response",))


def ask_topics(row: Any) -> Messages:
    return plain(f"topics of {task(row)}\n1. ")


def topics_in(row: Any, rng: random.Random) -> list[dict[str, Any]]:
    found = dict.fromkeys(line.strip() for line in re.split(r"\n\d+\. ", row["response"]))
    return [{"prompt": user(topic), "meta": task(row)} for topic in found
            if re.match(r"[A-Z]", topic) and len(topic.split()) <= 3 and topic[-1].isalnum()]  # fmt: skip


def balance(table: pa.Table, rng: random.Random) -> pa.Table:
    """As many topics of each type as the smallest type has."""
    places: dict[str, list[int]] = {}
    for place, kind in enumerate(table["meta"].to_pylist()):
        places.setdefault(kind, []).append(place)
    least = min(map(len, places.values()), default=0)
    return table.take(pa.array(sorted(k for found in places.values() for k in found[:least]), pa.int64()))


def ask_question(row: Any) -> Messages:
    return plain(f"a question of type {row['meta']} on {task(row)}: ")


def question_in(row: Any, rng: random.Random) -> dict[str, Any] | None:
    return {"prompt": user(row["response"].strip())} if row["response"].strip() else None


def under_principles(row: Any) -> Messages:
    return plain(f"{PRINCIPLES}user: {task(row)}\nthought: ")


def final_answer(row: Any) -> str | None:
    """What stands after the label, if the thought opens as it must."""
    thought, label, answer = row["response"].partition(LABEL)
    fine = thought.strip().startswith(OPENING) and label and task(row) not in answer
    return without_repeats({"response": answer}) if fine else None


def without_repeats(row: Any) -> str | None:
    """The text up to the first clause that was said before."""
    clauses, seen = re.split(r"(?<=[\n.?!;:,`])", row["response"]), []
    for clause in clauses:
        if clause in seen:
            break
        seen.append(clause)
    return "".join(seen).strip() or None


def at_length(row: Any) -> Messages:
    return [{"role": "system", "content": "answer at length"}, *row["prompt"]]
