"""The run's configuration: sparse YAML plus `key.sub=value`, refused with the nearest known key when one is unknown."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Config"]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Prompts(Section):
    """Where prompts come from. source: a .jsonl/.csv/.parquet file (also .gz), a Hugging Face data set name, or `pocket`."""

    source: str = "pocket"
    columns: dict[str, str] = Field(
        default_factory=dict, description="ours from theirs: {prompt: question, answer: answer}"
    )
    heldout: int = Field(256, ge=1, description="prompts kept apart for evaluation")
    heldout_source: str | None = Field(
        None, description="a source of its own for evaluation instead of a split"
    )
    per_iteration: int | None = Field(None, ge=1, description="prompts an iteration takes; default all")
    split: str | None = Field(None, description="split of a Hugging Face data set")
    system: str | None = Field(None, description="a system message put before every prompt")
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="for sources that make prompts, e.g. pocket: {kinds: [...], levels: [...], size: 2000}",
    )


class Generator(Section):
    engine: Literal["vllm", "transformers", "fake"] = "vllm"
    replicas: int = Field(1, ge=1)
    gpus: float | None = Field(
        None, ge=0, description="GPUs per replica; default 1 where there are GPUs, else 0"
    )
    threads: int = Field(
        1, ge=1, description="CPU threads per replica; fixed, because sampled tokens depend on it"
    )
    dtype: Literal["float32", "bfloat16"] | None = Field(
        None, description="default float32 on CPU, bfloat16 on GPU"
    )
    max_tokens: int = Field(256, ge=1, description="longest response, tokens")
    max_model_len: int | None = Field(None, ge=8)
    max_num_seqs: int = Field(256, ge=1)
    memory: float | None = Field(
        None, gt=0, description="CPU: GiB of key-value cache; GPU: share of the device"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="passed to the engine as they are")


class Trainer(Section):
    ranks: int = Field(1, ge=1)
    zero: int = Field(0, ge=0, le=3)
    gpus: float | None = Field(
        None, ge=0, description="GPUs per rank; default 1 where there are GPUs, else 0"
    )
    threads: int = Field(1, ge=1)
    dtype: Literal["float32", "bfloat16"] | None = None
    lr: float = Field(1e-6, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(0.0, ge=0)
    clip: float | None = Field(1.0, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: float = Field(0.0, ge=0, le=1, description="share of the steps of a train node")
    batch_size: int = Field(64, ge=1, description="examples per optimizer step, over all ranks")
    tokens_per_micro_batch: int = Field(8192, ge=8)
    checkpoint_steps: int = Field(50, ge=1)
    gradient_checkpointing: bool = False
    lora: dict[str, Any] | None = None


class Evaluation(Section):
    every: int = Field(1, ge=1)
    samples: int = Field(4, ge=1, description="sampled responses a held-out prompt")
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    bootstrap: int = Field(1000, ge=100)


class Checkpoints(Section):
    keep: int | None = Field(None, ge=1, description="how many iterations' checkpoints stay; default all")


class Config(Section):
    recipe: str
    settings: dict[str, Any] = Field(default_factory=dict, description="the recipe's own fields")
    model: str = "pocket"
    prompts: Prompts = Prompts()
    data: dict[str, Prompts] = Field(
        default_factory=dict, description="named sources for recipes that ask for data(name)"
    )
    iterations: int = Field(3, ge=1)
    seed: int = Field(0, ge=0)
    generator: Generator = Generator()
    judge: str | None = Field(
        None,
        description="verifier of answers: exact, number, math, or module:function; default the source's own",
    )
    judge_model: str | None = Field(None, description="a model of its own for judging; default the policy")
    trainer: Trainer = Trainer()
    placement: Literal["separate", "colocated"] = "colocated"
    batch_size: int = Field(64, ge=1, description="prompts a batch")
    reuse: str | None = None
    max_failed_rows: float = Field(0.01, ge=0, le=1)
    evaluation: Evaluation = Evaluation()
    checkpoints: Checkpoints = Checkpoints()
    trust_remote_code: bool = False
    probe_limit: float | None = Field(
        None,
        gt=0,
        description="largest allowed log-prob gap, nats; default 1e-3 in float32, 0.25 in bfloat16",
    )
