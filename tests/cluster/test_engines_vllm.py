"""vLLM as an engine, for real: invariance, loading, scoring and failures. One process, two engines."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from selfloop.actors.generate.spec import EngineSpec
from selfloop.actors.generate.transformers import TransformersEngine
from selfloop.actors.generate.vllm import VllmEngine
from selfloop.actors.weights.folder import folder_tensors
from selfloop.actors.weights.receipt import receipt_of
from selfloop.workflows.errors import EngineError
from selfloop.workflows.flow.asks import Ask, Reply, SamplingParams

pytestmark = pytest.mark.real

T = TypeVar("T")
VOCABULARY = 320
LENGTH = 384


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def make_model(folder: Path, seed: int) -> str:
    """A random Qwen2 whose sampling is lively (weights three times the usual) and whose tokenizer is trivial."""
    import torch
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,  # vLLM's CPU attention wants heads of 32, 64, ...
        num_key_value_heads=1,
        intermediate_size=128,
        max_position_embeddings=1024,
        eos_token_id=1,
        bos_token_id=None,
        pad_token_id=0,
        tie_word_embeddings=seed % 2 == 0,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.06)
    model.save_pretrained(folder)
    words = {"<pad>": 0, "<end>": 1} | {chr(0x4E00 + number): number for number in range(2, VOCABULARY)}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>").save_pretrained(
        folder
    )
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two sets of weights of one architecture."""
    return [make_model(tmp_path_factory.mktemp("model") / str(seed), seed) for seed in (0, 2)]


@pytest.fixture(scope="module")
def engine(folders: list[str]) -> Iterator[VllmEngine]:
    made = VllmEngine(EngineSpec("vllm", folders[0], max_model_len=LENGTH, max_num_seqs=64))
    yield made
    made.close()


@pytest.fixture(scope="module")
def cramped(folders: list[str]) -> Iterator[VllmEngine]:
    """An engine started from the other weights, whose cache holds no more than three long sequences."""
    token = 2 * 2 * 1 * 32 * 4  # layers, keys and values, heads, width, bytes
    made = VllmEngine(
        EngineSpec(
            "vllm", folders[1], max_model_len=LENGTH, max_num_seqs=64, memory=3.5 * token * LENGTH / 2**30
        )
    )
    yield made
    made.close()


def mixed_asks(count: int, tokens: int = 24) -> list[Ask]:
    """Prompts of 3 to 300 tokens, many of them beginning alike, greedy and sampled in several ways."""
    draw = random.Random(5)
    shared = [draw.randrange(2, VOCABULARY) for _ in range(300)]
    kinds = [
        SamplingParams(max_tokens=tokens),
        SamplingParams(temperature=0.7, top_p=0.9, max_tokens=tokens),
        SamplingParams(temperature=1.3, top_k=20, max_tokens=tokens // 2),
        SamplingParams(temperature=0.0, max_tokens=tokens),
    ]
    asks: list[Ask] = []
    for number in range(count):
        start = shared[: draw.randrange(3, 300)] if number % 2 else []
        own = [draw.randrange(2, VOCABULARY) for _ in range(draw.randrange(3, 40))]
        asks.append(Ask([*start, *own][:300], 1000 + number, kinds[number % len(kinds)]))
    return asks


async def in_batches(engine: VllmEngine, asks: Sequence[Ask], size: int) -> list[Reply]:
    return [
        reply
        for start in range(0, len(asks), size)
        for reply in await engine.sample(asks[start : start + size])
    ]


def test_replies_do_not_depend_on_the_batch(engine: VllmEngine) -> None:
    asks = mixed_asks(64)
    whole = run(engine.sample(asks))
    assert {reply.finish for reply in whole} == {"stop", "length"}
    assert len({tuple(reply.ids) for reply in whole}) > 56
    assert run(in_batches(engine, asks, 8)) == whole
    assert run(in_batches(engine, asks[:16], 1)) == whole[:16]
    assert run(engine.sample(asks[::-1]))[::-1] == whole
    for reply, ask in zip(whole, asks, strict=True):
        assert len(reply.ids) == len(reply.logprobs) <= ask.params.max_tokens
        assert (reply.finish == "stop") == (reply.ids[-1] == 1)


def test_callers_share_the_running_engine(engine: VllmEngine) -> None:
    asks = mixed_asks(64)
    whole = run(engine.sample(asks))

    async def together() -> list[list[Reply]]:
        return await asyncio.gather(*(engine.sample(asks[start::4]) for start in range(4)))

    for start, replies in enumerate(run(together())):
        assert replies == whole[start::4]


def test_a_later_batch_joins_at_the_next_step(engine: VllmEngine) -> None:
    long = [Ask([5, 6, 7 + number], number, SamplingParams(max_tokens=300)) for number in range(16)]
    short = [Ask([9, 8, 7], number, SamplingParams(max_tokens=2)) for number in range(4)]

    async def overtake() -> bool:
        first = asyncio.create_task(engine.sample(long))
        await asyncio.sleep(0.05)
        await engine.sample(short)
        early = not first.done()
        await first
        return early

    assert run(overtake())


def test_a_cancelled_caller_leaves_nothing_behind(engine: VllmEngine) -> None:
    async def cancel() -> None:
        task = asyncio.create_task(engine.sample(mixed_asks(32, 300)))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await engine.sample(mixed_asks(1))

    run(cancel())
    assert not engine.waiting
    assert not engine.call(engine.engine.has_unfinished_requests)


def test_bad_asks_are_error_replies_among_good_ones(engine: VllmEngine) -> None:
    good = mixed_asks(2)
    params = SamplingParams(max_tokens=4)
    bad = [
        Ask([], 0, params),
        Ask([5] * LENGTH, 0, params),
        Ask([5, VOCABULARY], 0, params),
        Ask([5, -1], 0, params),
        Ask([5], 0, SamplingParams(max_tokens=0)),
        Ask([5], 0, SamplingParams(temperature=-1.0)),
        Ask([5], 0, SamplingParams(top_p=0.0)),
    ]
    replies = run(engine.sample([good[0], *bad, good[1]]))
    assert [replies[0], replies[-1]] == run(engine.sample(good))
    assert all(reply.finish == "error" and reply.error and not reply.ids for reply in replies[1:-1])
    assert "383" in str(replies[2].error) or str(LENGTH) in str(replies[2].error)


def test_a_response_ends_where_the_model_does(engine: VllmEngine) -> None:
    reply = run(engine.sample([Ask([5] * (LENGTH - 4), 3, SamplingParams(max_tokens=50))]))[0]
    assert reply.finish == "stop" or len(reply.ids) == 4


def test_a_stop_string_ends_a_response(engine: VllmEngine) -> None:
    ask = Ask([5, 6, 7], 1, SamplingParams(max_tokens=40))
    whole = run(engine.sample([ask]))[0]
    stop = chr(0x4E00 + whole.ids[3])
    cut = run(engine.sample([Ask(ask.prompt_ids, 1, SamplingParams(max_tokens=40, stop=(stop,)))]))[0]
    first = whole.ids.index(whole.ids[3])
    assert (cut.ids, cut.logprobs, cut.finish) == (
        whole.ids[: first + 1],
        whole.logprobs[: first + 1],
        "stop",
    )


def test_scoring_agrees_with_sampling_in_any_order(engine: VllmEngine) -> None:
    asks = [ask for ask in mixed_asks(32) if ask.params.max_tokens]
    replies = run(engine.sample(asks))
    contexts, targets = [ask.prompt_ids for ask in asks], [reply.ids for reply in replies]
    scores = run(engine.logprobs(contexts, targets))
    assert run(engine.logprobs(contexts[::-1], targets[::-1]))[::-1] == scores
    assert [
        run(engine.logprobs([c], [t]))[0] for c, t in zip(contexts[:4], targets[:4], strict=True)
    ] == scores[:4]
    for row, reply in zip(scores, replies, strict=True):
        assert row == pytest.approx(reply.logprobs, abs=2e-5)
    assert run(engine.logprobs([[5], []], [[5] * LENGTH, [5]])) == [[], []]


def test_label_log_probs_are_normalised_over_the_vocabulary(engine: VllmEngine) -> None:
    prompts = [ask.prompt_ids for ask in mixed_asks(6)]
    rows = run(engine.label_logprobs([*prompts, [5] * LENGTH], list(range(VOCABULARY))))
    assert rows.pop() == []
    for row, prompt in zip(rows, prompts, strict=True):
        assert math.fsum(map(math.exp, row)) == pytest.approx(1.0, abs=1e-5)
        assert row[7] == pytest.approx(run(engine.logprobs([prompt], [[7]]))[0][0], abs=2e-5)
    assert run(engine.label_logprobs(prompts, [7, 9, 7])) == [[row[7], row[9], row[7]] for row in rows]

    async def beside_sampling() -> list[list[float]]:
        _, found = await asyncio.gather(engine.sample(mixed_asks(16)), engine.label_logprobs(prompts, [3, 4]))
        return found

    assert run(beside_sampling()) == [row[3:5] for row in rows]


def test_greedy_tokens_are_those_of_transformers(engine: VllmEngine, folders: list[str]) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=24)
    asks = [Ask(ask.prompt_ids, 0, params) for ask in mixed_asks(12)]
    other = TransformersEngine(EngineSpec("transformers", folders[0], max_model_len=LENGTH))
    ours, theirs = run(engine.sample(asks)), run(other.sample(asks))
    other.close()
    assert [reply.ids for reply in ours] == [reply.ids for reply in theirs]
    for one, two in zip(ours, theirs, strict=True):
        assert one.logprobs == pytest.approx(two.logprobs, abs=1e-4)


def test_greedy_tokens_of_the_pocket_model_are_those_of_transformers() -> None:
    from selfloop.workflows.models.codec import Codec
    from selfloop.workflows.pocket.source import POCKET_MODEL, pocket_prompts

    codec = Codec(POCKET_MODEL)
    prompts = [codec.encode(messages) for messages in pocket_prompts("train", 32, 1)["prompt"].to_pylist()]
    asks = [Ask(ids, 0, SamplingParams(temperature=0.0, max_tokens=16)) for ids in prompts]
    one = VllmEngine(EngineSpec("vllm", str(POCKET_MODEL), max_model_len=256, max_num_seqs=32))
    two = TransformersEngine(EngineSpec("transformers", str(POCKET_MODEL), max_model_len=256))
    ours, theirs = run(one.sample(asks)), run(two.sample(asks))
    one.close()
    two.close()
    assert [reply.ids for reply in ours] == [reply.ids for reply in theirs]


def test_loaded_weights_answer_as_an_engine_started_from_them(
    engine: VllmEngine, cramped: VllmEngine, folders: list[str]
) -> None:
    asks = mixed_asks(32)
    before = run(engine.sample(asks))
    sent = list(folder_tensors(folders[1], "float32"))
    assert engine.load(7, sent) == receipt_of(sent)
    assert engine.version == 7
    for _, tensor in sent:
        tensor.zero_()  # nothing of what was sent is kept
    after = run(engine.sample(asks))
    assert after == run(cramped.sample(asks))
    assert sum(one.ids != two.ids for one, two in zip(before, after, strict=True)) > 24
    engine.load(0, folder_tensors(folders[0], "float32"))
    assert run(engine.sample(asks)) == before


def test_requests_set_aside_for_want_of_cache_get_the_same_tokens(
    engine: VllmEngine, cramped: VllmEngine, folders: list[str]
) -> None:
    asks = mixed_asks(24, 80)
    pieces = run(in_batches(cramped, asks, 1))
    assert run(cramped.sample(asks)) == pieces


def test_loading_is_refused_while_requests_run(engine: VllmEngine, folders: list[str]) -> None:
    async def meanwhile() -> list[Reply]:
        task = asyncio.create_task(engine.sample(mixed_asks(16, 80)))
        await asyncio.sleep(0.05)
        with pytest.raises(EngineError, match="requests run on version 0"):
            await asyncio.to_thread(engine.load, 1, folder_tensors(folders[1], "float32"))
        return await task

    assert run(meanwhile()) == run(engine.sample(mixed_asks(16, 80)))
    assert engine.version == 0


def test_an_engine_that_broke_tells_every_caller(cramped: VllmEngine, folders: list[str]) -> None:
    async def broken() -> list[Any]:
        calls = [asyncio.create_task(cramped.sample(mixed_asks(4, 200))) for _ in range(3)]
        await asyncio.sleep(0.05)
        with pytest.raises(EngineError, match="requests run"):
            await asyncio.to_thread(cramped.load, 1, [])
        cramped.call(lambda: setattr(cramped.engine, "step", lambda: 1 / 0))
        return await asyncio.gather(*calls, return_exceptions=True)

    assert all(isinstance(answer, EngineError) for answer in run(broken()))
    with pytest.raises(EngineError, match="ZeroDivisionError"):
        run(cramped.sample(mixed_asks(1)))


def test_missing_tensors_are_not_served(engine: VllmEngine, folders: list[str]) -> None:
    tensors = [pair for pair in folder_tensors(folders[1], "float32") if "layers.1" not in pair[0]]
    with pytest.raises(EngineError, match="did not come"):
        engine.load(1, tensors)
    with pytest.raises(EngineError, match="started again"):
        run(engine.sample(mixed_asks(1)))
