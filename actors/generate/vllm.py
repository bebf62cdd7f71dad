"""vLLM as an engine: one engine in this process, stepped by one thread, fed by any number of callers.

A batch that arrives while others run joins them at the next step (continuous batching). On CPU in fp32 with one thread
an ask's tokens and log-probs are the same whatever runs beside it; with more threads, or bf16, or on a GPU they are not
in the last bits. Every call to vLLM is made on the engine's own thread.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from selfloop.actors.generate.limits import ask_problem, ids_problem
from selfloop.actors.generate.spec import EngineSpec
from selfloop.actors.generate.vllm_batch import Batch, label_values, prompt_values, reply_of
from selfloop.actors.generate.vllm_start import repack_head, start_engine
from selfloop.actors.weights.receipt import tensor_hash
from selfloop.workflows.errors import EngineError, SelfloopError
from selfloop.workflows.flow.asks import Ask, Reply
from selfloop.workflows.models.facts import read_facts, tensor_names

if TYPE_CHECKING:
    from torch import Tensor
    from vllm import SamplingParams
    from vllm.outputs import RequestOutput

__all__ = ["VllmEngine"]

T = TypeVar("T")
MOST_LABELS = 128  # vLLM's own limit a request


class VllmEngine:
    """See `Engine`. `spec.options` are arguments of vLLM's EngineArgs."""

    def __init__(self, spec: EngineSpec, version: int = 0):
        self.spec = spec
        self.version = version
        trusted = bool(spec.options.get("trust_remote_code", False))
        self.facts = read_facts(spec.model, spec.max_model_len, trusted)
        self.names = tensor_names(spec.model)
        self.inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.waiting: dict[str, tuple[Batch, int]] = {}
        self.numbers = itertools.count()
        self.broken: str | None = None
        self.asleep = False
        started: Future[None] = Future()
        self.thread = threading.Thread(target=self.live, args=(started,), name="vllm-engine", daemon=True)
        self.thread.start()
        started.result()

    # ---- callers

    async def sample(self, asks: Sequence[Ask]) -> list[Reply]:
        """One reply an ask, in order. Temperatures below 0.01 are raised to it, other than 0, which is greedy."""
        problems = [ask_problem(ask, self.facts) for ask in asks]
        requests = [
            (list(ask.prompt_ids), self.sampling(ask))
            for ask, problem in zip(asks, problems, strict=True)
            if problem is None
        ]
        results = iter(await self.serve(requests))
        return [
            Reply(finish="error", error=problem) if problem is not None else reply_of(next(results))
            for problem in problems
        ]

    async def logprobs(
        self, contexts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Without the prefix cache, so they depend neither on the order of calls nor on what was sampled before.

        A row is empty when its tokens do not fit the model.
        """
        whole = [[*context, *target] for context, target in zip(contexts, targets, strict=True)]
        fits = [
            bool(context) and bool(target) and ids_problem(ids, self.facts) is None
            for context, target, ids in zip(contexts, targets, whole, strict=True)
        ]
        params = self.parameters(prompt_logprobs=0, max_tokens=1, temperature=0.0)
        served = await self.serve([(ids, params) for ids, fit in zip(whole, fits, strict=True) if fit])
        results = iter(served)
        return [
            prompt_values(next(results))[len(context) - 1 :] if fit else []
            for context, fit in zip(contexts, fits, strict=True)
        ]

    async def label_logprobs(
        self, prompts: Sequence[Sequence[int]], labels: Sequence[int]
    ) -> list[list[float]]:
        """Normalised over the whole vocabulary. A row is empty when its prompt does not fit the model."""
        if not labels or min(labels) < 0 or max(labels) >= self.facts.vocabulary:
            raise EngineError(
                f"labels must be tokens of the model's vocabulary of {self.facts.vocabulary}: {labels}"
            )
        cuts = [list(labels[start : start + MOST_LABELS]) for start in range(0, len(labels), MOST_LABELS)]
        choices = [self.parameters(logprob_token_ids=cut, max_tokens=1, temperature=0.0) for cut in cuts]
        fits = [ids_problem(prompt, self.facts) is None for prompt in prompts]
        requests = [
            (list(ids), choice) for ids, fit in zip(prompts, fits, strict=True) if fit for choice in choices
        ]
        results = iter(await self.serve(requests))
        return [
            [value for cut in cuts for value in label_values(next(results), len(cut))] if fit else []
            for fit in fits
        ]

    def load(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
        """Replace the weights (Hugging Face names). EngineError while requests run, or if tensors are missing."""
        return self.call(partial(self.replace_weights, version, tensors))

    def sleep(self) -> None:
        """Give the GPU's memory back (weights wait in main memory). On CPU nothing happens."""
        self.call(self.fall_asleep)

    def wake(self) -> None:
        """Take the GPU's memory again; `load` does it by itself."""
        self.call(self.wake_up)

    def close(self) -> None:
        """Stop the thread and free the engine; waiting callers get an EngineError."""
        if self.thread.is_alive():
            self.inbox.put(None)
            self.thread.join(timeout=60)

    # ---- on the event loop's thread

    def sampling(self, ask: Ask) -> SamplingParams:
        params = ask.params
        return self.parameters(
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            seed=ask.seed & 0x7FFF_FFFF_FFFF_FFFF,
            max_tokens=params.max_tokens,
            stop=list(params.stop),
            detokenize=bool(params.stop),
            logprobs=0,  # of the sampled token alone
        )

    def parameters(self, **more: Any) -> SamplingParams:
        """vLLM's sampling parameters of one request, made for speed: flat log-probs, no text, one output at the end."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        fixed = {
            "stop_token_ids": list(self.facts.ends),
            "output_kind": RequestOutputKind.FINAL_ONLY,
            "flat_logprobs": True,
            "skip_clone": True,
        }
        return SamplingParams(**{"detokenize": False, **fixed, **more})

    async def serve(self, requests: Sequence[tuple[list[int], SamplingParams]]) -> list[RequestOutput | str]:
        """Run the requests beside all others. A result is vLLM's output, or why it refused the request."""
        if not requests:
            return []
        batch = Batch(requests)
        self.inbox.put(partial(self.add, batch))
        try:
            return await batch.future
        except asyncio.CancelledError:
            self.inbox.put(partial(self.abort, batch))
            raise

    def call(self, function: Callable[[], T]) -> T:
        """Run a function on the engine's thread and wait for it."""
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(function())
            except BaseException as error:
                done.set_exception(error)

        if not self.thread.is_alive():
            raise EngineError(self.broken or "the vLLM engine is closed; start another")
        self.inbox.put(run)
        return done.result()

    # ---- on the engine's thread

    def live(self, started: Future[None]) -> None:
        """The thread's life: start vLLM, then serve the inbox and step while there are requests."""
        try:
            self.engine = start_engine(self.spec, self.facts)
        except BaseException as error:
            self.broken = start_problem(self.spec.model, error)
            started.set_exception(EngineError(self.broken))
            return
        started.set_result(None)
        while (item := self.next_item()) is not None:
            item()
        self.fail_all("the engine was closed")
        self.engine.engine_core.shutdown()
        del self.engine

    def next_item(self) -> Callable[[], None] | None:
        """The next thing to do: what is in the inbox first, else a step; asleep while there is neither."""
        if not self.waiting:
            return self.inbox.get()
        try:
            return self.inbox.get_nowait()
        except queue.Empty:
            return self.step

    def add(self, batch: Batch) -> None:
        if self.broken or self.asleep:
            batch.fail(EngineError(self.broken or "the engine sleeps; load or wake it before asking"))
            return
        for place, (ids, params) in enumerate(batch.requests):
            name = str(next(self.numbers))
            try:
                self.engine.add_request(name, {"type": "token", "prompt_token_ids": ids}, params)
            except (ValueError, TypeError) as error:  # vLLM's own checks of one request
                batch.put(place, f"vLLM refused the prompt: {error}")
            except Exception as error:
                self.break_down(error)
                batch.fail(EngineError(self.broken or ""))
                return
            else:
                batch.names.append(name)
                self.waiting[name] = (batch, place)

    def abort(self, batch: Batch) -> None:
        left = [name for name in batch.names if self.waiting.pop(name, None)]
        if left and not self.broken:
            self.engine.abort_request(left)

    def step(self) -> None:
        try:
            outputs = self.engine.step()
        except BaseException as error:
            self.break_down(error)
            return
        for output in outputs:
            if output.finished and (owner := self.waiting.pop(output.request_id, None)):
                batch, place = owner
                batch.put(place, output)  # type: ignore[arg-type]

    def break_down(self, error: BaseException) -> None:
        """Nothing can be trusted after vLLM raised inside a step: fail all, and refuse all that comes."""
        self.fail_all(f"vLLM broke while {len(self.waiting)} requests ran: {type(error).__name__}: {error}")

    def fail_all(self, why: str) -> None:
        self.broken = f"{why}. The engine must be started again"
        for batch in {id(batch): batch for batch, _ in self.waiting.values()}.values():
            batch.fail(EngineError(self.broken))
        self.waiting.clear()

    def replace_weights(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
        if self.broken:
            raise EngineError(self.broken)
        if self.waiting:
            raise EngineError(
                f"version {version} cannot be loaded while {len(self.waiting)} requests run on version {self.version}: "
                "their tokens would be of both; wait for them first"
            )
        receipt: dict[str, str] = {}
        try:
            self.wake_up()
            iterator = recorded(tensors, receipt)
            self.engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iterator})
            if self.spec.device == "cpu":
                self.engine.apply_model(repack_head)
            missing = self.missing_tensors(receipt)
            if missing:  # vLLM keeps the old values of what did not come, and says nothing
                raise EngineError(f"{len(missing)} tensors did not come, among them {missing[0]}")
            if not self.engine.reset_prefix_cache():
                raise EngineError("the prefix cache could not be cleared")
        except BaseException as error:
            self.fail_all(f"version {version} could not be loaded: {error}")
            raise error if isinstance(error, SelfloopError) else EngineError(self.broken) from error
        self.version = version
        return receipt

    def missing_tensors(self, receipt: dict[str, str]) -> list[str]:
        tied = {"lm_head.weight"} if self.facts.config.get("tie_word_embeddings") else set()
        return sorted(self.names - set(receipt) - tied)

    def fall_asleep(self) -> None:
        if self.waiting:
            raise EngineError(f"the engine cannot sleep while {len(self.waiting)} requests run")
        if self.spec.device == "cuda" and not self.asleep:
            self.engine.sleep(level=1)
            self.asleep = True

    def wake_up(self) -> None:
        if self.asleep:
            self.engine.wake_up()
            self.asleep = False


def start_problem(model: str, error: BaseException) -> str:
    """Why vLLM did not start, with the way out where it is known."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "vllm":
        return (
            "vLLM is not installed: `pip install 'selfloop[cpu]'`, or 'selfloop[gpu]' on a machine with GPUs"
        )
    return f"vLLM could not start on {model}: {type(error).__name__}: {error}"


def recorded(tensors: Iterable[tuple[str, Tensor]], receipt: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    """Hash each tensor as it passes into vLLM."""
    for name, tensor in tensors:
        receipt[name] = tensor_hash(tensor)
        yield name, tensor
