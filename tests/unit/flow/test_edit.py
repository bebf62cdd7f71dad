"""Verbs that change text or context: edit, recontext, sample(show=…); and what the lint refuses after them."""

from __future__ import annotations

import asyncio
from typing import Any

import pyarrow as pa
import pytest

from selfloop.actors.generate.generator import make_engine
from selfloop.actors.generate.spec import EngineSpec
from selfloop.workflows.errors import RecipeError
from selfloop.workflows.flow.iteration import Iteration
from selfloop.workflows.flow.lint import lint
from selfloop.workflows.flow.recipe import Recipe
from selfloop.workflows.flow.stream import Model
from selfloop.workflows.flow.verbs.base import Context, Op
from selfloop.workflows.flow.verbs.edit import Edit, Recontext
from selfloop.workflows.flow.verbs.rules import Map, Pair
from selfloop.workflows.flow.verbs.sample import Sample
from selfloop.workflows.models.codec import codec_of
from selfloop.workflows.objectives import GRPO
from selfloop.workflows.pocket.source import POCKET_MODEL, pocket_prompts
from tests.unit.flows import fake_config, setup_of

FOLDER = str(POCKET_MODEL)


def run(op: Op, table: pa.Table, node: str = "node") -> pa.Table:
    engine = make_engine(EngineSpec("fake", FOLDER)) if op.place == "engine" else None
    context = Context(
        node, 1, 7, "policy@0", folder=FOLDER, engine=engine, codec=codec_of(FOLDER) if engine else None
    )
    return asyncio.run(op.run([table], context))


def sampled(n: int = 1, **more: Any) -> pa.Table:
    return run(Sample(n, max_tokens=16, **more), pocket_prompts("train", 5, 0), "sample")


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def shown(row: Any) -> list[dict[str, str]]:
    return user(row["prompt"][0]["content"] + " backwards")


def test_shown_messages_are_what_the_model_gets_and_the_prompt_stays() -> None:
    table, codec = sampled(show=shown), codec_of(FOLDER)
    for row in table.to_pylist():
        assert (
            row["prompt_ids"] == codec.encode(shown(row)) and "backwards" not in row["prompt"][0]["content"]
        )


def test_rows_of_one_prompt_are_sampled_apart() -> None:
    prompts = pocket_prompts("train", 3, 0)
    doubled = prompts.take(pa.array([0, 0, 1, 1, 2, 2]))
    one, two = run(Sample(4, max_tokens=16), prompts), run(Sample(2, max_tokens=16), doubled)
    assert one.equals(two) and len(set(one["seed"].to_pylist())) == 12


def test_plain_text_has_no_template() -> None:
    codec = codec_of(FOLDER)
    assert codec.decode([codec.encode([{"role": "plain", "content": "sort 31\n"}])]) == ["sort 31\n"]


def first_half(row: Any) -> str | None:
    return {0: row["response"], 1: "12", 2: None}[row["sample"]]


def test_an_edited_response_has_its_own_tokens_and_no_sampling_logprobs() -> None:
    before, after = sampled(3).to_pylist(), run(Edit(first_half), sampled(3)).to_pylist()
    assert len(after) == 10 and [row["edited"] for row in after] == [False, True] * 5
    assert [row["response_ids"] for row in after[::2]] == [row["response_ids"] for row in before[::3]]
    codec = codec_of(FOLDER)
    for row in after[1::2]:
        ended = row["finish"] != "length"
        assert row["response_ids"] == codec.encode_response("12")[: None if ended else -1]
        assert row["response_logprobs"] is None and row["completion"][0]["content"] == "12"


def test_recontext_keeps_the_response_under_another_prompt() -> None:
    table = sampled(2)
    moved, viewed = run(Recontext(shown), table), run(Recontext(shown, view="judged"), table)
    codec = codec_of(FOLDER)
    for was, now, beside in zip(table.to_pylist(), moved.to_pylist(), viewed.to_pylist(), strict=True):
        assert now["response_ids"] == was["response_ids"] == beside["judged_ids"] == beside["response_ids"]
        assert (
            now["prompt_ids"]
            == codec.encode(shown(was))
            == beside["judged_prompt_ids"]
            != beside["prompt_ids"]
        )
        assert now["response_logprobs"] is None and now["edited"] and beside["response_logprobs"]
        assert now["prompt_id"] == was["prompt_id"] and now["prompt"] == shown(was)
    assert run(Recontext(lambda row: None, view="judged"), table)["judged_prompt_ids"].equals(
        table["prompt_ids"]
    )


def test_pairs_take_declared_columns() -> None:
    op = Pair(lambda rows, rng: [(rows[0], rows[1], {"why": "first"})], (("why", pa.string()),))
    assert run(op, sampled(2))["why"].to_pylist() == ["first"] * 5 and "why" in op.columns([frozenset()])


def test_a_mapped_column_that_nobody_declared_is_refused() -> None:
    with pytest.raises(RecipeError, match="'length', which nobody declared"):
        run(Map(lambda row, rng: {"length": 3}), sampled())


class Ratio(Recipe):
    def iteration(self, it: Iteration) -> Model:
        rows = (
            it.prompts()
            .sample(it.policy, n=2)
            .recontext(shown, tokens=it.policy)
            .score(zeros, column="advantages")
        )
        return it.policy.train(rows, GRPO(beta=0.0), reference=None, optimizer="fresh")


def zeros(rows: list[Any], rng: Any) -> list[float]:
    return [0.0] * len(rows)


def test_an_importance_ratio_on_edited_rows_is_refused() -> None:
    found = lint(setup_of(fake_config(), Ratio()).planner)
    assert len(found) == 1 and "takes the ratio to what was sampled (old_logprobs)" in found[0]
