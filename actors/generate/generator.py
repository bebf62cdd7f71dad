"""The generator: an engine behind an actor. It runs sampling and judging nodes and loads new weights."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from selfloop.actors.generate.spec import EngineSpec
from selfloop.actors.weights.buckets import unpack
from selfloop.actors.weights.folder import folder_tensors
from selfloop.actors.weights.receipt import receipt_of
from selfloop.workflows.data.batches import Counts
from selfloop.workflows.data.schema import Message
from selfloop.workflows.errors import WeightsError
from selfloop.workflows.flow.asks import Ask, Engine, SamplingParams
from selfloop.workflows.flow.verbs.base import Context, Op
from selfloop.workflows.flow.verbs.batch import run_batch
from selfloop.workflows.models.codec import Codec
from selfloop.workflows.store.parts import Rows, packed

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Generator", "Probe", "make_engine"]

Probe = list[tuple[list[int], list[int], list[float]]]
"""(prompt tokens, sampled tokens, the engine's log-probs of them)."""


LONG_PROBE = 160  # tokens; a block of the prefix cache holds at most 128 of them


class Generator:
    """One replica. `model` is the label of the weights it serves; it refuses work for any other."""

    def __init__(self, spec: EngineSpec, model: str, trust_remote_code: bool = False):
        self.spec = spec
        self.engine = make_engine(spec)
        self.codec = Codec(spec.model, trust_remote_code)
        self.model = model
        self.loads = 0
        self.asleep = False
        self.turn = (
            asyncio.Lock()
        )  # loads and probes wait for each other: a publish may be tried again after a death

    def ready(self) -> str:
        """The label of the weights served; returns once the engine has started."""
        return self.model

    async def run(self, op: Op, context: Context, *inputs: Rows) -> tuple[pa.Buffer, Counts]:
        """Run a node's op on one batch: its rows, packed, and what was counted of them."""
        if context.model != self.model:
            raise WeightsError(
                f"node {context.node!r} wants {context.model} and this replica serves {self.model}: its rows would be "
                "off-policy. This is a fault of the executor; please report it"
            )
        loads = self.loads
        context.engine, context.codec = self.engine, self.codec
        table, counts = await run_batch(op, context, inputs)
        if loads != self.loads:
            raise WeightsError(
                f"other weights were loaded while a batch of node {context.node!r} ran: its prompt groups would be of both. "
                "This is a fault of the executor; please report it"
            )
        return packed(table), counts

    async def load(self, model: str, version: int, source: str | Sequence[Any]) -> dict[str, str]:
        """Serve other weights, from references to the trainer's buckets or a checkpoint folder. Returns the receipt."""
        async with self.turn:
            self.model = "nothing"
            self.loads += 1
            if self.asleep:
                self.engine.wake()
                self.asleep = False
            receipt = await asyncio.to_thread(self.engine.load, version, self.tensors(source))
            self.model = model
        return receipt

    def tensors(self, source: str | Sequence[Any]) -> Iterator[tuple[str, Tensor]]:
        if isinstance(source, str):
            return folder_tensors(source, self.spec.dtype)
        import ray

        return unpack(ray.get(list(source)))

    async def probe(self, messages: Sequence[list[Message]], tokens: int) -> Probe:
        """Greedy continuations of fixed prompts with their log-probs, through the same path as real samples.

        One prompt is long enough to fill blocks of the prefix cache, so that a stale cache shows.
        """
        prompts = [self.codec.encode(one) for one in messages]
        joined = [token for ids in prompts for token in ids]
        limit = min(LONG_PROBE, (self.spec.max_model_len or LONG_PROBE + tokens) - tokens)
        prompts.append((joined * (limit // len(joined) + 1))[:limit])
        params = SamplingParams(temperature=0.0, max_tokens=tokens)
        async with self.turn:
            replies = await self.engine.sample([Ask(ids, 0, params) for ids in prompts])
        return [
            (ids, reply.ids, reply.logprobs) for ids, reply in zip(prompts, replies, strict=True) if reply.ids
        ]

    def sleep(self) -> None:
        """Give the device's memory back until the next load."""
        self.model = "nothing"
        self.engine.sleep()
        self.asleep = True

    def expected(self, folder: str) -> dict[str, str]:
        """The receipt that loading this checkpoint folder must give."""
        return receipt_of(folder_tensors(folder, self.spec.dtype))

    def close(self) -> None:
        self.engine.close()


def make_engine(spec: EngineSpec, version: int = 0) -> Engine:
    """Start the engine that the spec names, serving the weights in `spec.model` as `version`."""
    if spec.engine == "vllm":
        from selfloop.actors.generate.vllm import VllmEngine

        return VllmEngine(spec, version)
    if spec.engine == "transformers":
        from selfloop.actors.generate.transformers import TransformersEngine

        return TransformersEngine(spec, version)
    from selfloop.actors.generate.fake import FakeEngine

    return FakeEngine(spec, version)
