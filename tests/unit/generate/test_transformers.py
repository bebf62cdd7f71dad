"""The transformers engine on the pocket model: what a reply depends on, scoring, loading and refusals."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from selfloop.actors.generate.spec import EngineSpec
from selfloop.actors.generate.transformers import TransformersEngine
from selfloop.actors.weights.folder import folder_tensors
from selfloop.actors.weights.receipt import receipt_of
from selfloop.workflows.errors import EngineError
from selfloop.workflows.flow.asks import Ask, Reply, SamplingParams
from selfloop.workflows.pocket.source import POCKET_MODEL
from tests.models import byte_tokenizer, random_qwen2

T = TypeVar("T")
LENGTH = 96


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


@pytest.fixture(scope="module")
def engine() -> Iterator[TransformersEngine]:
    made = TransformersEngine(
        EngineSpec("transformers", str(POCKET_MODEL), max_model_len=LENGTH, options={"rows": 8})
    )
    yield made
    made.close()


def mixed_asks(engine: TransformersEngine, count: int) -> list[Ask]:
    draw = random.Random(3)
    kinds = [
        SamplingParams(max_tokens=10),
        SamplingParams(temperature=0.7, top_p=0.9, max_tokens=12),
        SamplingParams(temperature=1.5, top_k=9, max_tokens=8),
        SamplingParams(temperature=0.0, max_tokens=10),
    ]
    return [
        Ask(
            [draw.randrange(2, engine.facts.vocabulary) for _ in range(draw.randrange(1, 60))],
            number,
            kinds[number % 4],
        )
        for number in range(count)
    ]


def test_replies_do_not_depend_on_the_batch(engine: TransformersEngine) -> None:
    asks = mixed_asks(engine, 40)
    whole = run(engine.sample(asks))
    assert run(engine.sample(asks[::-1]))[::-1] == whole
    assert [run(engine.sample([ask]))[0] for ask in asks[:6]] == whole[:6]

    async def together() -> list[list[Reply]]:
        return await asyncio.gather(*(engine.sample(asks[start::3]) for start in range(3)))

    assert run(together()) == [whole[start::3] for start in range(3)]
    for reply, ask in zip(whole, asks, strict=True):
        assert len(reply.ids) == len(reply.logprobs) <= ask.params.max_tokens
        assert (reply.finish == "stop") == (reply.ids[-1] in engine.facts.ends)


def test_seeds_give_other_samples(engine: TransformersEngine) -> None:
    params = SamplingParams(temperature=2.0, max_tokens=12)
    replies = run(engine.sample([Ask([5, 6, 7], seed, params) for seed in range(16)]))
    assert len({tuple(reply.ids) for reply in replies}) > 8


def test_top_k_of_one_is_greedy(engine: TransformersEngine) -> None:
    prompts = [ask.prompt_ids for ask in mixed_asks(engine, 8)]
    narrow = SamplingParams(temperature=2.0, top_k=1, max_tokens=8)
    tight = SamplingParams(temperature=2.0, top_p=1e-6, max_tokens=8)
    greedy = run(
        engine.sample([Ask(ids, 1, SamplingParams(temperature=0.0, max_tokens=8)) for ids in prompts])
    )
    assert run(engine.sample([Ask(ids, 1, narrow) for ids in prompts])) == greedy
    assert run(engine.sample([Ask(ids, 1, tight) for ids in prompts])) == greedy


def test_scoring_agrees_with_sampling_in_any_order(engine: TransformersEngine) -> None:
    asks = mixed_asks(engine, 24)
    replies = run(engine.sample(asks))
    contexts, targets = [ask.prompt_ids for ask in asks], [reply.ids for reply in replies]
    scores = run(engine.logprobs(contexts, targets))
    assert run(engine.logprobs(contexts[::-1], targets[::-1]))[::-1] == scores
    for row, reply in zip(scores, replies, strict=True):
        assert row == pytest.approx(reply.logprobs, abs=2e-5)
    assert run(engine.logprobs([[5], [], [5]], [[5] * LENGTH, [5], [5] * (LENGTH - 1)]))[:2] == [[], []]


def test_label_log_probs_are_normalised_over_the_vocabulary(engine: TransformersEngine) -> None:
    prompts = [ask.prompt_ids for ask in mixed_asks(engine, 5)]
    rows = run(engine.label_logprobs([*prompts, [5] * LENGTH], range(engine.facts.vocabulary)))
    assert rows.pop() == []
    for row, prompt in zip(rows, prompts, strict=True):
        assert math.fsum(map(math.exp, row)) == pytest.approx(1.0, abs=1e-5)
        assert row[7] == pytest.approx(run(engine.logprobs([prompt], [[7]]))[0][0], abs=2e-5)
    assert run(engine.label_logprobs(prompts, [7, 9])) == [[row[7], row[9]] for row in rows]


def test_bad_asks_are_error_replies_among_good_ones(engine: TransformersEngine) -> None:
    good = mixed_asks(engine, 1)[0]
    params = SamplingParams()
    bad = [Ask([], 0, params), Ask([5] * LENGTH, 0, params), Ask([-1], 0, params)]
    replies = run(engine.sample([*bad, good]))
    assert [reply.finish for reply in replies[:3]] == ["error"] * 3
    assert replies[3] == run(engine.sample([good]))[0]


def test_the_end_that_the_template_writes_ends_a_response(tmp_path: Path) -> None:
    """The model lists another end token, which is the tokenizer's own."""
    model = random_qwen2(tmp_path)
    fast = byte_tokenizer()
    turn, own = fast.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    fast.eos_token = "<|endoftext|>"
    fast.save_pretrained(model)
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": own}))
    engine = TransformersEngine(EngineSpec("transformers", str(model), max_model_len=LENGTH))
    params = SamplingParams(temperature=2.0, max_tokens=64)
    replies = run(engine.sample([Ask([5, 6], seed, params) for seed in range(64)]))
    engine.close()
    ended = [reply.ids[-1] for reply in replies if reply.finish == "stop"]
    assert engine.facts.ends == {turn, own} == set(ended)
    assert all(not engine.facts.ends & set(reply.ids[:-1]) for reply in replies)


def test_a_stop_string_ends_a_response(engine: TransformersEngine) -> None:
    prompt = mixed_asks(engine, 1)[0].prompt_ids
    whole = run(engine.sample([Ask(prompt, 2, SamplingParams(temperature=2.0, max_tokens=12))]))[0]
    texts = [engine.tokenizer.decode(whole.ids[:end], skip_special_tokens=True) for end in range(1, 13)]
    stop = next(text for text in texts if text)
    cut = run(engine.sample([Ask(prompt, 2, SamplingParams(2.0, max_tokens=12, stop=(stop,)))]))[0]
    assert cut.finish == "stop" and cut.ids == whole.ids[: texts.index(stop) + 1]


def test_loading_other_weights_and_the_first_ones_again(engine: TransformersEngine) -> None:
    import torch

    asks = mixed_asks(engine, 12)
    before = run(engine.sample(asks))
    first = list(folder_tensors(str(POCKET_MODEL), "float32"))
    torch.manual_seed(0)
    other = [(name, tensor + 0.05 * torch.randn_like(tensor)) for name, tensor in first]
    assert engine.load(3, other) == receipt_of(other)
    assert engine.version == 3 and run(engine.sample(asks)) != before
    engine.load(0, first)
    assert run(engine.sample(asks)) == before


def test_loading_is_refused_while_calls_run(engine: TransformersEngine) -> None:
    async def meanwhile() -> None:
        task = asyncio.create_task(engine.sample(mixed_asks(engine, 40)))
        await asyncio.sleep(0.01)
        with pytest.raises(EngineError, match="calls run"):
            engine.load(1, [])
        await task

    run(meanwhile())


def test_weights_that_do_not_fit_break_the_engine() -> None:
    made = TransformersEngine(EngineSpec("transformers", str(POCKET_MODEL), options={"rows": 2}))
    with pytest.raises(EngineError, match="lacks"):
        made.load(1, list(folder_tensors(str(POCKET_MODEL), "float32"))[:3])
    with pytest.raises(EngineError, match="mixed"):
        run(made.sample(mixed_asks(made, 1)))
    made.close()
