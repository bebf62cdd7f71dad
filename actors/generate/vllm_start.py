"""Starting vLLM (0.32) in this process: environment, arguments, and what is switched off to start fast.

On CPU the choices below make fp32 sampling batch-invariant on one thread: the tokens and log-probs of a seeded ask do
not depend on what else runs, on batch size, order, or the prefix cache.
"""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from selfloop.actors.generate.spec import EngineSpec
from selfloop.workflows.models.facts import ModelFacts

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from vllm.v1.engine.llm_engine import LLMEngine

__all__ = ["engine_arguments", "prepare_environment", "repack_head", "start_engine"]

GIB = 2**30
CACHE_DEFAULT = GIB  # bytes; touching fresh memory costs up to 3 s a GiB on virtual machines
PREFILL_TOKENS = 4096  # tokens a step on CPU
BLOCK_TOKENS = 32  # of the prefix cache on CPU, where vLLM has 128: samples of one prompt share more of it


def prepare_environment(spec: EngineSpec) -> None:
    """Set what vLLM reads from the environment. Must run before the first import of vllm in this process."""
    always = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # the engine core lives in this process
    default = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_PLUGINS": "",
        "VLLM_HOST_IP": "127.0.0.1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    if spec.device == "cpu":
        always |= {
            "VLLM_CPU_ATTN_SPLIT_KV": "0",  # splitting the cache makes attention depend on the batch
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(spec.threads),
        }
        default |= {
            "TORCHDYNAMO_DISABLE": "1"
        }  # nothing is compiled, and compiling took 20 s at the first request
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # would overrule `memory`
    os.environ.update(always)
    for name, value in default.items():
        os.environ.setdefault(name, value)
    logging.getLogger("vllm").setLevel(
        os.environ["VLLM_LOGGING_LEVEL"]
    )  # it warns before it reads the variable


def engine_arguments(spec: EngineSpec, facts: ModelFacts) -> dict[str, Any]:
    """Arguments of vLLM's EngineArgs; `spec.options` overrule them."""
    arguments: dict[str, Any] = {
        "model": spec.model,
        "dtype": spec.dtype,
        "seed": 0,
        "max_model_len": facts.longest,
        "max_num_seqs": spec.max_num_seqs,
        "enable_prefix_caching": True,
        "logprobs_mode": "raw_logprobs",  # before temperature and top-p
        "load_format": "safetensors",
        "use_tqdm_on_load": False,
        "disable_log_stats": True,
    }
    if spec.device == "cpu":
        arguments |= {
            "enforce_eager": True,
            "enable_chunked_prefill": False,  # a split prompt rewinds its generator, which CPU generators cannot
            "max_num_batched_tokens": max(PREFILL_TOKENS, facts.longest, spec.max_num_seqs),
            "block_size": BLOCK_TOKENS,
            "kv_cache_memory_bytes": cache_bytes(spec, facts),
        }
    else:
        arguments |= {"enable_sleep_mode": True}
        if spec.memory is not None:
            arguments |= {"gpu_memory_utilization": spec.memory}
    return arguments | spec.options


def cache_bytes(spec: EngineSpec, facts: ModelFacts) -> int:
    """Key-value cache on CPU: what all sequences at full length need, at most 1 GiB unless `memory` says more.

    With less than that vLLM sets requests aside and computes them again later: slower, with the same tokens.
    """
    if spec.memory is not None:
        return int(spec.memory * GIB)
    token = facts.cache_bytes(spec.dtype)
    if token is None:
        return CACHE_DEFAULT
    whole = token * (facts.longest + BLOCK_TOKENS)  # a sequence at full length
    return max(min(whole * spec.max_num_seqs, CACHE_DEFAULT), 2 * whole)


def start_engine(spec: EngineSpec, facts: ModelFacts) -> LLMEngine:
    """Import vLLM and start its engine on the calling thread, which must then make every call to it."""
    prepare_environment(spec)
    with quiet_heap():
        import torch
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        import_model_class(facts)
    set_threads = torch.set_num_threads
    if spec.device == "cpu":
        set_threads(spec.threads)  # of this thread: OpenMP keeps the number for each thread apart
        skip_ranks()
    try:
        return LLMEngine.from_engine_args(EngineArgs(**engine_arguments(spec, facts)))
    finally:
        torch.set_num_threads = set_threads  # vLLM's CPU worker replaces it by a function that does nothing


@contextmanager
def quiet_heap() -> Generator[None]:
    """Import without garbage collections, and keep what was imported out of later ones: 2 of 9 seconds of a start."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\.")
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def import_model_class(facts: ModelFacts) -> None:
    """Import the model's class here; vLLM would start a second process just to look at it (10 to 20 s)."""
    from vllm.model_executor.models.registry import ModelRegistry

    for name in facts.config.get("architectures") or []:
        known = ModelRegistry.models.get(name)
        if type(known).__name__ == "_LazyRegisteredModel":
            ModelRegistry.register_model(name, known.load_model_cls())  # type: ignore[union-attr]


def skip_ranks() -> None:
    """vLLM counts the rank of every sampled token, which nobody here reads: 4 % of a step, and a compilation."""
    import torch
    from vllm.v1.sample import sampler

    def no_ranks(logprobs: Tensor, values: Tensor) -> Tensor:
        return torch.zeros(logprobs.shape[0], dtype=torch.int64)

    setattr(sampler, "batched_count_greater_than", no_ranks)  # noqa: B010 (a name that vLLM does not export)


def repack_head(model: Module) -> None:
    """Make the output head read the embedding's new weights.

    On CPU a linear layer computes with a packed copy of its weights. `reload_weights` renews the copies of the layers
    whose tensors came; a head that is tied to the embedding gets no tensor and would go on with the old ones.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for layer in model.modules():
        if isinstance(layer, ParallelLMHead):
            layer.quant_method.process_weights_after_loading(layer)
