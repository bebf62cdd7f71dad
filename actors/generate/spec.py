"""What an engine is started with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["EngineSpec"]


@dataclass(frozen=True)
class EngineSpec:
    """What an engine needs to start. model: a Hugging Face folder. dtype: float32 or bfloat16."""

    engine: Literal["vllm", "transformers", "fake"]
    model: str
    dtype: str = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1
    max_model_len: int | None = None
    max_num_seqs: int = 256
    memory: float | None = None  # CPU: GiB of key-value cache; GPU: share of the device's memory
    options: dict[str, Any] = field(default_factory=dict)
