"""What verbs ask of devices. One interface for every generation engine: tokens in, tokens out; one for a trainer that measures.

An engine holds one set of weights (`version`) and answers several callers at once. Engines know no columns, no
prompts and no judges; `flow.verbs` turns rows into asks and replies into rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Ask", "Engine", "Reply", "SamplingParams", "Scorer"]


@dataclass(frozen=True)
class SamplingParams:
    """How to sample. temperature 0 is greedy; top_p 1 and top_k 0 are off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ask:
    """One sample wanted: the tokens the model is given, and the seed of this sample alone."""

    prompt_ids: Sequence[int]
    seed: int
    params: SamplingParams


@dataclass(frozen=True)
class Reply:
    """One sample. ids end with the end token when the model ended by itself. logprobs: nats, before temperature
    and top-p, one a token. finish 'error': the ask could not be served, `error` says why, ids are empty."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: Literal["stop", "length", "error"] = "stop"
    error: str | None = None


class Engine(Protocol):
    """What every engine can do. All methods but `load` may be awaited by many callers at once."""

    version: int

    async def sample(self, asks: Sequence[Ask]) -> list[Reply]:
        """One reply an ask, in order. A bad ask gives a reply with finish 'error'; EngineError if the engine broke."""
        ...

    async def logprobs(
        self, contexts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Log-probs, nats, of each target's tokens after its context, teacher-forced, temperature 1."""
        ...

    async def label_logprobs(
        self, prompts: Sequence[Sequence[int]], labels: Sequence[int]
    ) -> list[list[float]]:
        """Log-probs, nats, of each label token as the next token of each prompt: (prompts, labels)."""
        ...

    def load(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
        """Replace the weights while no request runs; clear the prefix cache; the receipt: a hash per tensor."""
        ...

    def sleep(self) -> None:
        """Give the device's memory back until `wake` (nothing on CPU)."""
        ...

    def wake(self) -> None:
        """Take the memory again; the weights must be loaded before the next ask."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...


class Scorer(Protocol):
    """What `measure` needs of a trainer: `what` a checkpoint makes of targets after contexts, one value a row. groups: sizes
    of consecutive prompt groups."""

    async def measure(
        self,
        what: str,
        folder: str,
        contexts: list[list[int]],
        targets: list[list[int]],
        groups: Sequence[int],
    ) -> list[Any]: ...
