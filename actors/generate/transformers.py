"""Hugging Face transformers as an engine: slower than vLLM, readable, and everywhere.

Each ask has a random generator of its own, and rows are run in fixed shapes: prompts are padded on the left to a width
that depends on their own length alone, and every forward has the same number of rows, filled up with copies. So a row
sees the same shapes whatever it is batched with, and its tokens depend on weights, prompt, seed and parameters. Plain
torch does not promise that a row's place inside a matrix product leaves its last bits alone: on CPU in fp32 it held in
every test here; in bf16 or on GPUs take it as nearly so. `rows` and `threads` are part of the result's last bits.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from selfloop.actors.generate.choosing import Chooser, uniform
from selfloop.actors.generate.limits import NOT_FINITE, ask_problem, ids_problem
from selfloop.actors.generate.spec import EngineSpec
from selfloop.actors.weights.receipt import tensor_hash
from selfloop.workflows.errors import EngineError, InputError
from selfloop.workflows.flow.asks import Ask, Reply
from selfloop.workflows.models.facts import read_facts

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TransformersEngine"]

T = TypeVar("T")
STEP = 16  # widths are multiples of it
LOGITS = 1 << 27  # numbers; the most logits held at once when scoring


class TransformersEngine:
    """See `Engine`. Options: `rows`, asks in one forward (default 32 on CPU, 128 on a GPU), and `trust_remote_code`."""

    def __init__(self, spec: EngineSpec, version: int = 0):
        unknown = sorted(set(spec.options) - {"rows", "trust_remote_code"})
        if unknown:
            raise InputError(
                f"the transformers engine has no option {unknown[0]!r}; it has rows and trust_remote_code"
            )
        self.spec = spec
        self.version = version
        self.rows: int = spec.options.get("rows", 32 if spec.device == "cpu" else 128)
        trusted = bool(spec.options.get("trust_remote_code", False))
        self.facts = read_facts(spec.model, spec.max_model_len, trusted)
        self.running = 0
        self.broken: str | None = None
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="transformers-engine")
        self.worker.submit(self.start).result()

    def start(self) -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        if self.spec.device == "cpu":
            torch.set_num_threads(self.spec.threads)  # OpenMP keeps the number for each thread apart
        trusted = bool(self.spec.options.get("trust_remote_code", False))
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            self.spec.model,
            dtype=getattr(torch, self.spec.dtype),
            use_safetensors=True,
            trust_remote_code=trusted,
        )
        self.model.eval().requires_grad_(False).to(self.spec.device)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(self.spec.model, trust_remote_code=trusted)

    # ---- callers

    async def sample(self, asks: Sequence[Ask]) -> list[Reply]:
        problems = [ask_problem(ask, self.facts) for ask in asks]
        replies = [Reply(finish="error", error=problem) for problem in problems]
        good = [place for place, problem in enumerate(problems) if problem is None]
        with self.busy():
            for width, places in self.chunks(good, lambda place: width_of(len(asks[place].prompt_ids))):
                made = await self.call(partial(self.generate, [asks[place] for place in places], width))
                for place, reply in zip(places, made, strict=True):
                    replies[place] = reply
        return replies

    async def logprobs(
        self, contexts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """A row is empty when its tokens do not fit the model."""
        whole = [[*context, *target] for context, target in zip(contexts, targets, strict=True)]
        good = [
            place
            for place, ids in enumerate(whole)
            if contexts[place] and targets[place] and ids_problem(ids, self.facts, 0) is None
        ]
        found: list[list[float]] = [[] for _ in whole]

        def shape(place: int) -> tuple[int, int]:
            return width_of(len(whole[place])), width_of(len(targets[place]))

        with self.busy():
            for (width, keep), places in self.chunks(good, shape):
                rows = max(1, min(self.rows, LOGITS // (keep * self.facts.vocabulary)))
                for start in range(0, len(places), rows):
                    some = places[start : start + rows]
                    lengths = [len(targets[place]) for place in some]
                    values = await self.call(
                        partial(self.score, [whole[place] for place in some], lengths, width, rows)
                    )
                    for place, row in zip(some, values, strict=True):
                        found[place] = row
        return found

    async def label_logprobs(
        self, prompts: Sequence[Sequence[int]], labels: Sequence[int]
    ) -> list[list[float]]:
        """Normalised over the whole vocabulary. A row is empty when its prompt does not fit the model."""
        if not labels or min(labels) < 0 or max(labels) >= self.facts.vocabulary:
            raise EngineError(
                f"labels must be tokens of the model's vocabulary of {self.facts.vocabulary}: {labels}"
            )
        good = [place for place, prompt in enumerate(prompts) if ids_problem(prompt, self.facts) is None]
        found: list[list[float]] = [[] for _ in prompts]
        with self.busy():
            for width, places in self.chunks(good, lambda place: width_of(len(prompts[place]))):
                ids = [prompts[place] for place in places]
                values = await self.call(partial(self.score_labels, ids, list(labels), width))
                for place, row in zip(places, values, strict=True):
                    found[place] = row
        return found

    def load(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
        """Copy into the model's parameters. EngineError while requests run, or if tensors do not fit or are missing."""
        if self.running:
            raise EngineError(
                f"version {version} cannot be loaded while {self.running} calls run on version {self.version}: their "
                "tokens would be of both; wait for them first"
            )
        return self.worker.submit(self.replace_weights, version, tensors).result()

    def sleep(self) -> None:
        """Move the weights to main memory. On CPU nothing happens."""
        self.worker.submit(lambda: self.model.to("cpu")).result()

    def wake(self) -> None:
        """Move the weights back; `load` does it by itself."""
        self.worker.submit(lambda: self.model.to(self.spec.device)).result()

    def close(self) -> None:
        self.worker.shutdown(wait=True, cancel_futures=True)
        self.model = None

    def chunks(self, places: Sequence[int], shape: Callable[[int], T]) -> Iterator[tuple[T, list[int]]]:
        """Groups of one shape, at most `rows` each."""
        groups: dict[T, list[int]] = {}
        for place in places:
            groups.setdefault(shape(place), []).append(place)
        for key, group in groups.items():
            for start in range(0, len(group), self.rows):
                yield key, group[start : start + self.rows]

    @contextmanager
    def busy(self) -> Generator[None]:
        """While it lasts, `load` is refused."""
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    async def call(self, function: Callable[[], T]) -> T:
        """Run on the engine's thread; calls of several callers take turns chunk by chunk."""
        if self.broken:
            raise EngineError(self.broken)
        try:
            return await asyncio.get_running_loop().run_in_executor(self.worker, function)
        except RuntimeError as error:
            raise EngineError(f"transformers broke: {type(error).__name__}: {error}") from error

    # ---- on the engine's thread

    def generate(self, asks: Sequence[Ask], width: int) -> list[Reply]:
        """Sample one chunk to its end."""
        import torch

        rows = [asks[min(row, len(asks) - 1)] for row in range(self.rows)]
        limits = [min(ask.params.max_tokens, self.facts.longest - len(ask.prompt_ids)) for ask in rows]
        draws = torch.stack(
            [uniform(ask.seed, limit, max(limits)) for ask, limit in zip(rows, limits, strict=True)]
        )
        choose = Chooser(rows, self.spec.device)
        replies = [Growing(ask, limit) for ask, limit in zip(asks, limits, strict=False)]
        ids, mask = self.padded([ask.prompt_ids for ask in rows], width)
        cache: Any = None
        with torch.inference_mode():
            for step in range(max(limits)):
                logits, cache = self.forward(ids, mask, cache)
                tokens, values = choose(logits[:, -1], draws[:, step].to(logits.device))
                for growing, token, value in zip(replies, tokens.tolist(), values.tolist(), strict=False):
                    growing.grow(token, value, self)
                if all(growing.finish for growing in replies):
                    break
                ids = tokens[:, None]
                mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
        return [growing.reply() for growing in replies]

    def score(
        self, ids: Sequence[Sequence[int]], lengths: Sequence[int], width: int, rows: int
    ) -> list[list[float]]:
        """Log-probs of the last `lengths` tokens of each row."""
        import torch

        keep = width_of(max(lengths))
        with torch.inference_mode():
            batch, mask = self.padded([ids[min(row, len(ids) - 1)] for row in range(rows)], width)
            logits, _ = self.forward(batch, mask, None, min(keep, width))
            values = logits[:, :-1].log_softmax(-1)
            chosen = values.gather(-1, batch[:, -values.shape[1] :, None])[..., 0]  # (rows, keep - 1)
        return [row[-length:] for row, length in zip(chosen.tolist(), lengths, strict=False)]

    def score_labels(self, ids: Sequence[Sequence[int]], labels: list[int], width: int) -> list[list[float]]:
        import torch

        with torch.inference_mode():
            batch, mask = self.padded([ids[min(row, len(ids) - 1)] for row in range(self.rows)], width)
            logits, _ = self.forward(batch, mask, None)
            return logits[: len(ids), -1].log_softmax(-1)[:, labels].tolist()

    def padded(self, rows: Sequence[Sequence[int]], width: int) -> tuple[Tensor, Tensor]:
        """Token ids and mask, (rows, width), padded on the left."""
        import torch

        ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return ids.to(self.spec.device), mask.to(self.spec.device)

    def forward(self, ids: Tensor, mask: Tensor, cache: Any, keep: int = 1) -> tuple[Tensor, Any]:
        """Logits in fp32 of the last `keep` places, (rows, keep, vocabulary), and the key-value cache."""
        places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        return out.logits.float(), out.past_key_values

    def replace_weights(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
        import torch

        self.model.to(self.spec.device)
        served = self.model.state_dict()
        receipt: dict[str, str] = {}
        try:
            with torch.no_grad():
                for name, tensor in tensors:
                    if name not in served or served[name].shape != tensor.shape:
                        raise EngineError(
                            f"version {version} has a tensor {name} {tuple(tensor.shape)} that does not fit"
                        )
                    receipt[name] = tensor_hash(tensor)
                    served[name].copy_(tensor)
            tied = {"lm_head.weight"} if self.facts.config.get("tie_word_embeddings") else set()
            missing = sorted(set(dict(self.model.named_parameters())) - set(receipt) - tied)
            if missing:
                raise EngineError(f"version {version} lacks {len(missing)} tensors, among them {missing[0]}")
        except BaseException:
            self.broken = (
                f"loading version {version} failed half-way, so the weights are mixed; start the engine again"
            )
            raise
        self.version, self.broken = version, None
        return receipt


class Growing:
    """One reply being written."""

    def __init__(self, ask: Ask, limit: int):
        self.stop = ask.params.stop
        self.limit = limit
        self.ids: list[int] = []
        self.values: list[float] = []
        self.finish: Any = None

    def grow(self, token: int, value: float, engine: TransformersEngine) -> None:
        if self.finish:
            return
        self.ids.append(token)
        self.values.append(value)
        if token in engine.facts.ends or (self.stop and self.said_stop(engine)):
            self.finish = "stop"
        elif len(self.ids) == self.limit:
            self.finish = "length"

    def said_stop(self, engine: TransformersEngine) -> bool:
        text = engine.tokenizer.decode(self.ids, skip_special_tokens=True)
        return any(stop in text for stop in self.stop)

    def reply(self) -> Reply:
        if not math.isfinite(sum(self.values)):
            return Reply(finish="error", error=NOT_FINITE)
        return Reply(self.ids, self.values, self.finish)


def width_of(length: int) -> int:
    """The next multiple of STEP above: at least one place of padding, so that every forward has a mask."""
    return (length // STEP + 1) * STEP
