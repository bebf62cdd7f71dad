"""The run's configuration: what may be said, with types, ranges and defaults, checked by pydantic.

Unknown keys are refused with the nearest known one, values out of range with the range, and all mistakes at once.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from selfloop.workflows.models.templates import template_text
from selfloop.workflows.outside.load import NAMED

__all__ = [
    "Checkpoints",
    "Config",
    "Evaluation",
    "Generator",
    "Lora",
    "Prompts",
    "Schedule",
    "Section",
    "Trainer",
]

Share = Annotated[float, Field(ge=0, lt=1)]
JUDGES = ("exact", "number", "math", "choice")


class Section(BaseModel):
    """A group of settings: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def from_nothing(cls, value: Any) -> Any:
        """A group whose every line is commented out is an empty group."""
        return {} if value is None else value


class Prompts(Section):
    """Where prompts come from: a file (.jsonl .json .csv .parquet, also .gz), a Hugging Face data set, or `pocket`."""

    source: str = Field(default="pocket", description="a file, a name on the Hugging Face hub, or pocket")
    columns: dict[str, str] = Field(
        default_factory=dict, description="ours from theirs: {prompt: question, answer: answer}"
    )
    heldout: int = Field(default=256, ge=1, description="prompts kept apart for evaluation")
    heldout_source: str | None = Field(
        default=None, description="a source of its own for evaluation instead of a split"
    )
    heldout_split: str | None = Field(
        default=None, description="the named split of the source that evaluation uses"
    )
    per_iteration: int | None = Field(
        default=None, ge=1, description="prompts an iteration takes; default all"
    )
    split: str | None = Field(default=None, description="split of a Hugging Face data set; default train")
    system: str | None = Field(
        default=None, min_length=1, description="a system message put before prompts without one"
    )
    template: str | None = Field(
        default=None,
        description="chat template in the place of the model's own, which base models lack: chatml, plain, or a .jinja file",
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="of the source: {answer_after: '####'}; pocket: {kinds: [...], levels: [...], size: 2000}",
    )

    @model_validator(mode="before")
    @classmethod
    def from_name(cls, value: Any) -> Any:
        """`prompts: data.jsonl` is short for `prompts: {source: data.jsonl}`."""
        return {"source": value} if isinstance(value, str) else value

    @field_validator("template")
    @classmethod
    def text_of_template(cls, value: str | None) -> str | None:
        """A file's text takes the place of its path: the run keeps it, and a change of it is a change of the config."""
        return None if value is None else template_text(value)


class Generator(Section):
    """The engine that samples."""

    engine: Literal["vllm", "transformers", "fake"] = Field(default="vllm", description="fake: for tests")
    replicas: int = Field(default=1, ge=1, description="engines; they do not change the rows")
    gpus: float | None = Field(
        default=None, ge=0, description="GPUs per replica; default 1 where there are GPUs, else 0"
    )
    threads: int = Field(
        default=1, ge=1, description="CPU threads per replica; fixed, because sampled tokens depend on it"
    )
    dtype: Literal["float32", "bfloat16"] | None = Field(
        default=None, description="default float32 on CPU, bfloat16 on GPU"
    )
    max_tokens: int = Field(default=256, ge=1, description="longest response, tokens")
    max_model_len: int | None = Field(
        default=None, ge=8, description="prompt and response, tokens; default what the model allows"
    )
    max_num_seqs: int = Field(default=256, ge=1, description="sequences computed together")
    memory: float | None = Field(
        default=None,
        gt=0,
        description="CPU: GiB of key-value cache, default what is needed, at most 1; GPU: share of the device, default vLLM's",
    )
    patience: float = Field(
        default=600.0, gt=0, description="seconds without an answer after which a replica is replaced"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="passed to the engine as they are")

    @model_validator(mode="after")
    def room(self) -> Generator:
        if self.max_model_len is not None and self.max_tokens >= self.max_model_len:
            raise ValueError(
                f"generator.max_tokens is {self.max_tokens} and generator.max_model_len is {self.max_model_len}: "
                "no token is left for the prompt. Lower max_tokens or raise max_model_len"
            )
        return self


class Lora(Section):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685): the base stays as it is, engines get the merged weights."""

    rank: int = Field(default=16, ge=1, description="r, width of the adapters")
    alpha: float | None = Field(
        default=None, gt=0, description="the adapters count alpha / rank; default 2 x rank"
    )
    dropout: Share = Field(default=0.0, description="on what goes into the adapters")
    targets: str | tuple[str, ...] = Field(
        default="all-linear", description="names of the layers: [q_proj, v_proj]; default all linear ones"
    )

    @property
    def scale(self) -> float:
        """alpha, filled in."""
        return 2.0 * self.rank if self.alpha is None else self.alpha

    @field_validator("targets")
    @classmethod
    def inner_layers(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        named = (value,) if isinstance(value, str) and value != "all-linear" else value
        wrong = sorted({"lm_head", "embed_tokens", "score"} & set(named)) if named != "all-linear" else []
        if wrong or not named:
            raise ValueError(
                f"trainer.lora.targets is {value!r}, and the layers {', '.join(wrong) or 'are missing'}: name linear layers "
                "inside the model, such as q_proj, not its embedding or head. Leave it out for all linear layers"
            )
        return named


class Schedule(Section):
    """How the learning rate falls after the warm-up: `schedule: cosine` is short for `schedule: {kind: cosine}`."""

    kind: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="stays, or falls along a line or half a cosine"
    )
    floor: float = Field(default=0.0, ge=0, le=1, description="where it ends, as a share of the rate")
    over: Literal["node", "run"] = Field(
        default="node", description="each train node alone, or one curve over all iterations"
    )

    @model_validator(mode="before")
    @classmethod
    def from_kind(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value


class Trainer(Section):
    """The DeepSpeed group that learns."""

    ranks: int = Field(default=1, ge=1, description="processes that train together")
    zero: int = Field(
        default=0, ge=0, le=3, description="ZeRO stage: shards of optimizer (1), gradients (2), weights (3)"
    )
    gpus: float | None = Field(
        default=None, ge=0, description="GPUs per rank; default 1 where there are GPUs, else 0"
    )
    threads: int = Field(default=1, ge=1, description="CPU threads a rank")
    dtype: Literal["float32", "bfloat16"] | None = Field(
        default=None, description="default float32 on CPU, bfloat16 with float32 masters on GPU"
    )
    lr: float = Field(default=1e-6, gt=0, description="AdamW's learning rate")
    betas: tuple[Share, Share] = Field(default=(0.9, 0.95), description="AdamW's")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's")
    clip: float | None = Field(default=1.0, gt=0, description="largest norm of the gradient; null: none")
    schedule: Schedule = Schedule()
    warmup: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the steps that schedule.over spans, in which the rate rises",
    )
    dropout: Share = Field(
        default=0.0,
        description="wherever the architecture drops anything, while it learns; lora.dropout is another",
    )
    batch_size: int = Field(default=64, ge=1, description="examples per optimizer step, over all ranks")
    tokens_per_micro_batch: int = Field(
        default=8192, ge=8, description="of one forward; memory depends on it, the loss does not"
    )
    checkpoint_steps: int = Field(default=50, ge=1, description="optimizer steps that a death costs at most")
    gradient_checkpointing: bool = Field(
        default=False, description="less memory for a second forward of each layer"
    )
    lora: Lora | None = Field(default=None, description="train adapters instead of all weights: {rank: 16}")

    @model_validator(mode="after")
    def enough_examples(self) -> Trainer:
        if self.batch_size < self.ranks:
            raise ValueError(
                f"trainer.batch_size is {self.batch_size} and trainer.ranks is {self.ranks}: every rank needs an "
                "example of each step. Raise batch_size or lower ranks"
            )
        return self


class Evaluation(Section):
    """What is measured on the held-out prompts, and how often."""

    every: int = Field(default=1, ge=1, description="iterations; the last one is always measured")
    samples: int = Field(default=4, ge=1, description="sampled responses a held-out prompt")
    temperature: float = Field(default=1.0, ge=0, description="of those samples")
    top_p: float = Field(default=1.0, gt=0, le=1, description="of those samples")
    bootstrap: int = Field(default=1000, ge=100, description="draws for the intervals")


class Checkpoints(Section):
    """Which checkpoints stay."""

    keep: int | None = Field(
        default=None, ge=1, description="how many iterations' checkpoints stay; default all"
    )


class Config(Section):
    """Everything a run depends on. Only `recipe` has no default."""

    recipe: str = Field(description="a method of `selfloop methods`, or one of your own as module:Class")
    settings: dict[str, Any] = Field(default_factory=dict, description="the recipe's own fields")
    model: str = Field(default="pocket", min_length=1, description="a folder, a hub name, or pocket")
    prompts: Prompts = Prompts()
    data: dict[str, Prompts] = Field(
        default_factory=dict, description="named sources for recipes that ask for data(name)"
    )
    iterations: int = Field(default=3, ge=1, description="times the model is improved")
    seed: int = Field(default=0, ge=0, description="every other seed comes from it; held-out prompts too")
    generator: Generator = Generator()
    judge: str | None = Field(
        default=None,
        description="verifier of answers: exact, number, math, choice, or module:function; default exact for pocket, else number",
    )
    judge_model: str | None = Field(
        default=None, description="a model of its own for judging: refused, not built yet"
    )
    trainer: Trainer = Trainer()
    placement: Literal["separate", "colocated"] = Field(
        default="colocated", description="whether an engine and a rank share a device"
    )
    batch_size: int = Field(default=64, ge=1, description="prompts a batch; it does not change the rows")
    reuse: str | None = Field(
        default=None, description="a run whose finished nodes are taken over where keys match"
    )
    max_failed_rows: float = Field(
        default=0.01, ge=0, le=1, description="share of a node's rows that may fail before the run stops"
    )
    evaluation: Evaluation = Evaluation()
    checkpoints: Checkpoints = Checkpoints()
    trackers: tuple[Literal["tensorboard", "ray", "wandb", "mlflow"], ...] = Field(
        default=("tensorboard", "ray"), description="where metrics go beside metrics.jsonl"
    )
    trust_remote_code: bool = Field(default=False, description="run code that comes with a model")
    probe_limit: float | None = Field(
        default=None,
        gt=0,
        description="largest allowed log-prob gap, nats; default 1e-3 in float32, 0.25 in bfloat16",
    )

    @field_validator("data")
    @classmethod
    def one_template(cls, value: dict[str, Prompts]) -> dict[str, Prompts]:
        for name in (name for name, spec in value.items() if spec.template is not None):
            raise ValueError(
                f"data.{name}.template is set, and a run writes all messages with one template. Set prompts.template"
            )
        return value

    @field_validator("judge")
    @classmethod
    def known_judge(cls, value: str | None) -> str | None:
        if value is not None and value not in JUDGES and not NAMED.fullmatch(value):
            raise ValueError(
                f"judge is {value!r}, and must be {', '.join(JUDGES)}, or module:function for a checker of your own. "
                "Leave it out for the source's own"
            )
        return value
