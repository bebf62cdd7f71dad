"""A refinement chain on the pocket world, with its real model: answer, critique, refine, and again."""

from __future__ import annotations

import asyncio
from typing import Any

import pyarrow as pa

from selfloop.actors.generate.spec import EngineSpec
from selfloop.actors.generate.transformers import TransformersEngine
from selfloop.workflows.flow.verbs.base import Context
from selfloop.workflows.flow.verbs.play import Play, Player
from selfloop.workflows.models.codec import codec_of
from selfloop.workflows.pocket.roles import critique_messages, parse_critique, refinement_messages, task_of
from selfloop.workflows.pocket.source import POCKET_MODEL, pocket_prompts

ROUNDS = 2


async def chain(player: Player, rows: list[Any], rng: Any) -> list[dict[str, Any]]:
    """Until the model's own critique finds no mistake: a refinement in the light of the critique."""
    task = task_of(rows[0]["prompt"])
    said = [await player.policy.say(rows[0]["prompt"], temperature=0.7)]
    for _ in range(ROUNDS):
        critique = await player.policy.say(critique_messages(task, said[-1].text), temperature=0.0)
        if parse_critique(critique.text) == 0:
            break
        said.append(
            await player.policy.say(refinement_messages(task, said[-1].text, critique.text), temperature=0.0)
        )
    return [one.row(round=number) for number, one in enumerate(said)]


def test_a_refinement_chain_on_the_pocket_model() -> None:
    table = pocket_prompts("train", 200, 0).slice(0, 48)
    engine = TransformersEngine(EngineSpec("transformers", str(POCKET_MODEL), max_model_len=160))

    def play(rows: pa.Table) -> list[dict[str, Any]]:
        context = Context("chain", 1, 7, "policy@0", engine=engine, codec=codec_of(str(POCKET_MODEL)))
        op = Play(chain, ("policy",), (("round", pa.int64()),), max_tokens=24)
        return asyncio.run(op.run([rows], context)).to_pylist()

    try:
        every, part = play(table), play(table.slice(10, 3))
    finally:
        engine.close()
    assert all(row["status"] == "ok" and row["response_ids"] for row in every)
    names = {row["prompt_id"] for row in part}
    assert [row for row in every if row["prompt_id"] in names] == part, (
        "a program is the same among others and alone"
    )
    chains: dict[str, list[dict[str, Any]]] = {}
    for row in every:
        chains.setdefault(row["prompt_id"], []).append(row)
    assert {len(rows) for rows in chains.values()} <= {1, 2, 3} and any(
        len(rows) > 1 for rows in chains.values()
    )
    first, last = (
        sum(rows[k]["response"].strip() == rows[k]["answer"] for rows in chains.values()) for k in (0, -1)
    )
    print(f"right: {first} of {len(chains)} at first, {last} at the end of the chain")
    assert last > first
