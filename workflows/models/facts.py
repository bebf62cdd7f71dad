"""What must be known of a model folder, read from its small files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfloop.workflows.data.files import read_json
from selfloop.workflows.errors import InputError
from selfloop.workflows.models.codec import listed_ends, template_ends
from selfloop.workflows.models.lengths import positions_in, sampled_limit

__all__ = ["ModelFacts", "has_head", "read_facts", "tensor_names"]


@dataclass(frozen=True)
class ModelFacts:
    """vocabulary: ids are below it. longest: tokens of prompt and response together. ends: tokens that end one."""

    vocabulary: int
    longest: int
    ends: frozenset[int]
    config: dict[str, Any] = field(default_factory=dict)

    def cache_bytes(self, dtype: str) -> int | None:
        """Bytes of key-value cache a token needs, or None when the architecture does not say."""
        layers, heads = self.config.get("num_hidden_layers"), self.config.get("num_attention_heads")
        hidden = self.config.get("hidden_size")
        if not (layers and heads and hidden):
            return None
        pairs = self.config.get("num_key_value_heads") or heads
        width = self.config.get("head_dim") or hidden // heads
        return 2 * layers * pairs * width * (4 if dtype == "float32" else 2)


def read_facts(model: str, max_model_len: int | None = None, trust_remote_code: bool = False) -> ModelFacts:
    """Read a Hugging Face folder's small files. trust_remote_code: for its tokenizer. InputError when it is none."""
    config = read_json(Path(model) / "config.json")
    if not config:
        raise InputError(
            f"{model} has no config.json, so it is not a Hugging Face model folder; give the folder that "
            "`save_pretrained` wrote"
        )
    text = {**config, **config.get("text_config", {})}
    longest = sampled_limit(positions_in(config), max_model_len)
    return ModelFacts(text["vocab_size"], longest, end_tokens(model, trust_remote_code), text)


def end_tokens(model: str, trust_remote_code: bool) -> frozenset[int]:
    """The tokens that end a response: those of generation_config.json (else config.json), the tokenizer's own, and the one that
    the chat template ends a turn with."""
    ends = listed_ends(model) | template_ends(model, trust_remote_code)
    token = read_json(Path(model) / "tokenizer_config.json").get("eos_token")
    content = token.get("content") if isinstance(token, dict) else token
    ends |= {
        added["id"]
        for added in read_json(Path(model) / "tokenizer.json").get("added_tokens", [])
        if added["content"] == content
    }
    return frozenset(end for end in ends if end is not None)


def tensor_names(model: str) -> frozenset[str]:
    """The names of the tensors in a folder's safetensors files, without reading the tensors."""
    names: set[str] = set()
    for path in Path(model).glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        names |= set(header) - {"__metadata__"}
    return frozenset(names)


def has_head(folder: str) -> bool:
    """Whether a checkpoint folder holds a model with a scalar head."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or [])
