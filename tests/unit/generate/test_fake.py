"""The fake engine keeps the contract of a real one, and shows stale weights, crashes and service times."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from selfloop.actors.generate.fake import FailOn, FakeEngine
from selfloop.actors.generate.generator import make_engine
from selfloop.actors.generate.spec import EngineSpec
from selfloop.actors.weights.receipt import tensor_hash
from selfloop.workflows.errors import EngineError, InputError
from selfloop.workflows.flow.asks import Ask, Reply, SamplingParams

PARAMS = SamplingParams(max_tokens=16)


def engine(**options: Any) -> FakeEngine:
    made = make_engine(EngineSpec("fake", "", options=options), version=3)
    assert isinstance(made, FakeEngine)
    return made


def sample(made: FakeEngine, asks: Sequence[Ask]) -> list[Reply]:
    return asyncio.run(made.sample(asks))


def asks(count: int, prompt: Sequence[int] = (5, 6, 7)) -> list[Ask]:
    return [Ask(prompt, seed, PARAMS) for seed in range(count)]


def test_replies_depend_on_the_seed_alone() -> None:
    whole = sample(engine(), asks(64))
    assert [sample(engine(), [ask])[0] for ask in asks(64)] == whole
    assert sample(engine(), asks(64)[::-1])[::-1] == whole
    assert len({tuple(reply.ids) for reply in whole}) > 32
    assert all(reply.ids[-1] == 1 and reply.finish == "stop" for reply in whole)
    assert all(len(reply.ids) == len(reply.logprobs) for reply in whole)


def test_a_reply_is_cut_at_max_tokens() -> None:
    replies = sample(engine(length=32), [Ask([5], seed, SamplingParams(max_tokens=2)) for seed in range(64)])
    assert {len(reply.ids) for reply in replies if reply.finish == "length"} == {2}


def test_bad_prompts_are_error_replies() -> None:
    made = make_engine(EngineSpec("fake", "", max_model_len=4))
    assert isinstance(made, FakeEngine)
    replies = sample(made, [Ask([], 0, PARAMS), Ask([5] * 4, 0, PARAMS), Ask([5], 0, PARAMS)])
    assert [reply.finish == "error" for reply in replies] == [True, True, False]


def test_the_version_is_in_the_reply_and_stale_weights_show() -> None:
    import torch

    tensors = [("a", torch.arange(4.0))]
    honest, stale = engine(emit_version=True), engine(emit_version=True, stale=True)
    assert honest.load(4, tensors) == stale.load(4, tensors) == {"a": tensor_hash(tensors[0][1])}
    assert (honest.version, stale.version) == (4, 4)
    assert {reply.ids[0] for reply in sample(honest, asks(8))} == {4}
    assert {reply.ids[0] for reply in sample(stale, asks(8))} == {3}


def test_log_probs_of_a_sample_are_those_of_scoring_it_and_change_with_the_weights() -> None:
    made = engine()
    reply = sample(made, asks(1))[0]
    assert asyncio.run(made.logprobs([[5, 6, 7]], [reply.ids])) == [reply.logprobs]
    made.load(4, [])
    assert asyncio.run(made.logprobs([[5, 6, 7]], [reply.ids])) != [reply.logprobs]


def test_label_log_probs_are_of_a_distribution() -> None:
    import math

    rows = asyncio.run(engine().label_logprobs([[5], [6, 7]], [10, 11, 12]))
    assert [len(row) for row in rows] == [3, 3]
    assert all(0 < sum(map(math.exp, row)) < 1 for row in rows)


def script(prompt_ids: Sequence[int], seed: int, version: int) -> list[int]:
    return [len(prompt_ids), version, 20 + seed]


def test_a_script_writes_the_replies() -> None:
    made = pickle.loads(pickle.dumps(EngineSpec("fake", "", options={"script": script})))
    replies = sample(FakeEngine(made, 3), asks(2))
    assert [reply.ids for reply in replies] == [[3, 3, 20, 1], [3, 3, 21, 1]]


def test_latency_is_the_service_time_of_calls_served_in_turn() -> None:
    made = engine(latency_s=0.02)

    async def together() -> float:
        started = time.monotonic()
        await asyncio.gather(*(made.sample(asks(4)) for _ in range(5)))
        return time.monotonic() - started

    assert asyncio.run(together()) >= 0.1


def test_ordered_failures(tmp_path: Path) -> None:
    poison = Ask((5, 9, 9, 7), 0, PARAMS)
    refusing = engine(fail_on={"ids": [9, 9], "how": "error"})
    assert [reply.finish for reply in sample(refusing, [poison, *asks(1)])] == ["error", "stop"]
    breaking = engine(fail_on=[FailOn((9, 9), "raise", once=str(tmp_path / "once"))])
    with pytest.raises(EngineError):
        sample(breaking, [poison])
    assert sample(breaking, [poison])[0].finish == "stop"


def test_an_ordered_exit_kills_the_process() -> None:
    code = (
        "import asyncio; from selfloop.actors.generate.generator import *; from selfloop.actors.generate.spec import *; from selfloop.workflows.flow.asks import *;"
        "spec = EngineSpec('fake', '', options={'fail_on': {'ids': [9]}});"
        "asyncio.run(make_engine(spec).sample([Ask([9], 0, SamplingParams())])); print('alive')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "alive" not in done.stdout


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(InputError, match="latency"):
        engine(latency=1)
