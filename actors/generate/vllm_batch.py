"""The requests of one caller of the vLLM engine, and reading what vLLM answers."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from selfloop.actors.generate.limits import NOT_FINITE
from selfloop.workflows.errors import EngineError
from selfloop.workflows.flow.asks import Reply

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import RequestOutput

__all__ = ["Batch", "label_values", "prompt_values", "reply_of"]


class Batch:
    """The requests of one caller, and where to hand their results: outputs in order, or why one was refused."""

    def __init__(self, requests: Sequence[tuple[list[int], SamplingParams]]):
        self.requests = requests
        self.results: list[RequestOutput | str | None] = [None] * len(requests)
        self.left = len(requests)
        self.names: list[str] = []
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[list[RequestOutput | str]] = self.loop.create_future()

    def put(self, place: int, result: RequestOutput | str) -> None:
        self.results[place] = result
        self.left -= 1
        if not self.left:
            self.tell(lambda: self.future.set_result(self.results))  # type: ignore[arg-type]

    def fail(self, error: EngineError) -> None:
        self.tell(lambda: self.future.set_exception(error))

    def tell(self, settle: Callable[[], None]) -> None:
        """Settle the caller's future on its own loop, unless it has gone."""
        with contextlib.suppress(RuntimeError):  # the caller's loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(lambda: None if self.future.done() else settle())


def reply_of(result: RequestOutput | str) -> Reply:
    """vLLM's output of a sampling request, or its refusal, as a reply."""
    if isinstance(result, str):
        return Reply(finish="error", error=result)
    done = result.outputs[0]
    ids, values = list(done.token_ids), list(done.logprobs.logprobs)  # type: ignore[union-attr]
    if done.finish_reason not in ("stop", "length"):
        return Reply(finish="error", error=f"vLLM ended the response with {done.finish_reason!r}")
    if not math.isfinite(sum(values)):
        return Reply(finish="error", error=NOT_FINITE)
    return Reply(ids, values, done.finish_reason)


def prompt_values(result: RequestOutput | str) -> list[float]:
    """Log-probs of a prompt's tokens from the second on."""
    return [] if isinstance(result, str) else list(result.prompt_logprobs.logprobs)  # type: ignore[union-attr]


def label_values(result: RequestOutput | str, count: int) -> list[float]:
    """Log-probs of the labels; vLLM puts the sampled token before them."""
    if isinstance(result, str):
        return []
    return list(result.outputs[0].logprobs.logprobs[1 : count + 1])  # type: ignore[union-attr]
