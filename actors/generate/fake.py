"""An engine without a model, for tests and for measuring everything around an engine.

Replies depend on the ask's seed alone (and, with `emit_version`, on the weights' version), so they are as reproducible
as a real engine's and cost microseconds.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfloop.actors.generate.spec import EngineSpec
from selfloop.actors.weights.receipt import receipt_of
from selfloop.workflows.errors import EngineError, InputError
from selfloop.workflows.flow.asks import Ask, Reply
from selfloop.workflows.models.facts import ModelFacts, read_facts

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FailOn", "FakeEngine", "FakeOptions"]

POOL = 1 << 13  # drawn once; a reply is a slice of it
SPREAD = 0x9E3779B1  # an odd constant, so that neighbouring seeds start far apart in the pool


@dataclass(frozen=True)
class FailOn:
    """A prompt that is not answered: it holds `ids` in a row.

    how: `exit` ends the process as a crash would, `raise` breaks the engine, `error` gives an error reply.
    once: a path; the failure happens only while no file is there, and leaves one.
    """

    ids: tuple[int, ...]
    how: Literal["exit", "raise", "error"] = "exit"
    once: str | None = None


@dataclass(frozen=True)
class FakeOptions:
    """`EngineSpec.options` of the fake engine.

    length: tokens of the longest reply, without its end token; shorter ones come up equally often.
    latency_s: seconds a call takes. Calls are served one after another, so throughput is known: asks / latency_s.
    emit_version: the first token of a reply is the version of the weights, so that stale weights show.
    stale: `load` is answered with a right receipt and the old weights go on being served: the fault to be found.
    script: (prompt_ids, seed, version) -> token ids or text of the reply (end token added; text ends at a stop string);
        it must pickle.
    labels: (prompt_ids, labels, version) -> a log-prob for each label; it must pickle.
    fail_on: one or several `FailOn`, or mappings of its fields.
    """

    length: int = 8
    latency_s: float = 0.0
    emit_version: bool = False
    stale: bool = False
    script: Callable[[Sequence[int], int, int], Sequence[int] | str] | None = None
    labels: Callable[[Sequence[int], Sequence[int], int], Sequence[float]] | None = None
    fail_on: Any = ()


class FakeEngine:
    """See `FakeOptions`. Without a model folder: 256 tokens, of which 1 is the end token."""

    def __init__(self, spec: EngineSpec, version: int = 0):
        self.spec = spec
        self.version = version
        self.options = read_options(spec.options)
        self.failures = read_failures(self.options.fail_on)
        has_model = bool(spec.model) and (Path(spec.model) / "config.json").exists()
        default = ModelFacts(256, spec.max_model_len or 1 << 20, frozenset({1}))
        self.facts = read_facts(spec.model, spec.max_model_len) if has_model else default
        self.end = min(self.facts.ends, default=1)
        draw = random.Random(0)
        ids = [token for token in range(self.facts.vocabulary) if token not in self.facts.ends and token > 1]
        self.pool = [draw.choice(ids) for _ in range(POOL + self.options.length)]
        self.free_at = 0.0
        self.served = -1
        self.serve(version)

    def serve(self, version: int) -> None:
        self.served = version
        self.values = [self.value(token) for token in range(self.facts.vocabulary)]
        self.pool_values = [self.values[token] for token in self.pool]
        self.version_token = version % self.facts.vocabulary

    def value(self, token: int) -> float:
        """The log-prob of a token: other weights give other log-probs."""
        return -(((token * 31 + self.served * 17) % 97) + 1) / 64

    async def sample(self, asks: Sequence[Ask]) -> list[Reply]:
        await self.wait()
        answer = self.scripted if self.options.script else self.drawn
        if self.failures:
            return [self.failed(ask) or answer(ask) for ask in asks]
        return [answer(ask) for ask in asks]

    def drawn(self, ask: Ask) -> Reply:
        """A slice of the pool that the seed chooses."""
        seed = ask.seed * SPREAD
        limit = min(ask.params.max_tokens, self.facts.longest - len(ask.prompt_ids))
        length, start = 1 + (seed >> 7) % self.options.length, (seed >> 16) % POOL
        if self.options.emit_version or not 0 < len(ask.prompt_ids) < self.facts.longest:
            return self.finished(ask, [self.version_token, *self.pool[start : start + length - 1]])
        if length < limit:
            ids = self.pool[start : start + length]
            ids.append(self.end)
            values = self.pool_values[start : start + length]
            values.append(self.values[self.end])
            return Reply(ids, values)
        return Reply(self.pool[start : start + limit], self.pool_values[start : start + limit], "length")

    def scripted(self, ask: Ask) -> Reply:
        assert self.options.script is not None
        said = self.options.script(ask.prompt_ids, ask.seed, self.served)
        cuts = (
            [said.index(stop) + len(stop) for stop in ask.params.stop if stop in said]
            if isinstance(said, str)
            else []
        )
        if isinstance(said, str) and cuts:
            ids = self.encode(said[: min(cuts)])[: ask.params.max_tokens]
            return Reply(ids, [self.values[token] for token in ids])
        return self.finished(ask, self.encode(said) if isinstance(said, str) else list(said))

    def finished(self, ask: Ask, ids: list[int]) -> Reply:
        """A reply of these tokens and the end token, cut where the ask or the model ends it."""
        room = self.facts.longest - len(ask.prompt_ids)
        if not ask.prompt_ids or room < 1:
            return Reply(
                finish="error",
                error=f"the prompt has {len(ask.prompt_ids)} tokens and the model takes 1 to {self.facts.longest - 1}",
            )
        limit = min(ask.params.max_tokens, room)
        whole = ids if ids and ids[-1] == self.end else [*ids, self.end]
        kept = whole[:limit]
        return Reply(
            kept, [self.values[token] for token in kept], "stop" if len(whole) <= limit else "length"
        )

    def failed(self, ask: Ask) -> Reply | None:
        """The failure that was ordered for this prompt, if any."""
        for failure in self.failures:
            if not holds(ask.prompt_ids, failure.ids) or (failure.once and not first_time(failure.once)):
                continue
            if failure.how == "exit":
                os._exit(1)
            if failure.how == "raise":
                raise EngineError("the fake engine broke on a prompt it was told to break on (fail_on)")
            return Reply(finish="error", error="the fake engine was told to refuse this prompt (fail_on)")
        return None

    async def logprobs(
        self, contexts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        await self.wait()
        return [[self.values[token] for token in target] for _, target in zip(contexts, targets, strict=True)]

    async def label_logprobs(
        self, prompts: Sequence[Sequence[int]], labels: Sequence[int]
    ) -> list[list[float]]:
        await self.wait()
        if self.options.labels is not None:
            return [list(self.options.labels(prompt, labels, self.served)) for prompt in prompts]
        return [self.label_row(prompt, labels) for prompt in prompts]

    def label_row(self, prompt: Sequence[int], labels: Sequence[int]) -> list[float]:
        """Nine tenths of the mass on the labels, dealt by the prompt's tokens."""
        shares = [
            1 + (sum(prompt) * 13 + len(prompt) + label * 31 + self.served * 7) % 89 for label in labels
        ]
        return [math.log(0.9 * share / sum(shares)) for share in shares]

    async def wait(self) -> None:
        """Take the known service time, one call after another."""
        if self.options.latency_s:
            now = time.monotonic()
            self.free_at = max(now, self.free_at) + self.options.latency_s
            await asyncio.sleep(self.free_at - now)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    @cached_property
    def tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(Path(self.spec.model) / "tokenizer.json"))

    def load(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
        receipt = receipt_of(tensors)
        self.version = version
        if not self.options.stale:
            self.serve(version)
        return receipt

    def sleep(self) -> None:
        """Nothing to give back."""

    def wake(self) -> None:
        """Nothing to take."""

    def close(self) -> None:
        """Nothing to free."""


def read_options(options: Mapping[str, Any]) -> FakeOptions:
    unknown = sorted(set(options) - set(FakeOptions.__dataclass_fields__))
    if unknown:
        raise InputError(
            f"the fake engine has no option {unknown[0]!r}; it has {', '.join(FakeOptions.__dataclass_fields__)}"
        )
    return FakeOptions(**options)


def read_failures(given: Any) -> list[FailOn]:
    several = [given] if isinstance(given, FailOn | Mapping) else list(given)
    return [
        one if isinstance(one, FailOn) else FailOn(**{**one, "ids": tuple(one["ids"])}) for one in several
    ]


def holds(ids: Sequence[int], part: tuple[int, ...]) -> bool:
    """Whether `part` occurs in `ids` in a row."""
    width = len(part)
    return any(tuple(ids[start : start + width]) == part for start in range(len(ids) - width + 1))


def first_time(path: str) -> bool:
    """Whether nobody has been here before: makes the file, atomically."""
    try:
        Path(path).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
