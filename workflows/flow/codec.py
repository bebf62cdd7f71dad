"""Messages to tokens and back, with the model's own tokenizer and chat template."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfloop.workflows.data.schema import Message

__all__ = ["Codec", "codec_of"]


class Codec:
    """The tokenizer of a model folder. `hash` names the tokenizer and the template together."""

    def __init__(self, model: str | Path, trust_remote_code: bool = False):
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from transformers import AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(str(model), trust_remote_code=trust_remote_code)
        template = self.tokenizer.chat_template or ""
        vocabulary = (
            self.tokenizer.backend_tokenizer.to_str() if self.tokenizer.is_fast else str(self.tokenizer)
        )
        self.hash = hashlib.sha256(f"{template}\x1f{vocabulary}".encode()).hexdigest()[:16]

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of the messages with the header of the assistant's turn at the end.

        One message of the role `plain` is text for a base model to go on with: no template, no header.
        """
        if len(messages) == 1 and messages[0]["role"] == "plain":
            return self.tokenizer.encode(messages[0]["content"], add_special_tokens=False)
        return self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
        )

    def encode_response(self, text: str) -> list[int]:
        """Tokens of a response that was written elsewhere (a demonstration), with the end token."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return [*ids, self.tokenizer.eos_token_id]

    def token(self, label: str) -> int:
        """The single token of a label; ValueError when it has more than one."""
        ids = self.tokenizer.encode(label, add_special_tokens=False)
        if len(ids) != 1:
            raise ValueError(f"the label {label!r} is {len(ids)} tokens in this tokenizer, and must be one")
        return ids[0]

    def decode(self, responses: Sequence[Sequence[int]]) -> list[str]:
        """Texts of responses, without special tokens."""
        return self.tokenizer.batch_decode(list(responses), skip_special_tokens=True) if responses else []


@functools.lru_cache(maxsize=4)
def codec_of(folder: str) -> Codec:
    """The codec of a model folder, made once a process."""
    return Codec(folder)
