"""Messages to tokens and back, with the model's own tokenizer and chat template."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from selfloop.workflows.data.files import read_json
from selfloop.workflows.data.schema import Message
from selfloop.workflows.models.rendering import Rendering
from selfloop.workflows.models.templates import has_template, written

__all__ = ["ENCODING", "Codec", "codec_of", "listed_ends", "template_ends"]

ENCODING = 2
"""Raised when the same messages or responses give other tokens, so that rows of before are not taken for rows of now."""


class Codec:
    """The tokenizer of a model folder. `hash` names the tokenizer and the template together; `ends`: the tokens that end a
    response, which are what the template ends a turn with, the tokenizer's end token and the model's own list. template: takes
    the place of the folder's own."""

    def __init__(self, model: str | Path, trust_remote_code: bool = False, template: str | None = None):
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from transformers import AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(str(model), trust_remote_code=trust_remote_code)
        if template is not None:
            self.tokenizer.chat_template = written(template, self.tokenizer)
        text = self.tokenizer.chat_template or ""
        vocabulary = (
            self.tokenizer.backend_tokenizer.to_str() if self.tokenizer.is_fast else str(self.tokenizer)
        )
        self.hash = hashlib.sha256(f"{text}\x1f{vocabulary}".encode()).hexdigest()[:16]
        self.rendering = Rendering(self.tokenizer)
        found = listed_ends(model) | {self.rendering.turn.end, self.tokenizer.eos_token_id}
        self.ends: frozenset[int] = frozenset(end for end in found if end is not None)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of the messages with the header of the assistant's turn at the end. Text in them is never a control token.

        One message of the role `plain` is text for a base model to go on with: no template, no header.
        """
        if len(messages) == 1 and messages[0]["role"] == "plain":
            return self.text(messages[0]["content"])
        return self.rendering.prompt(messages)

    def text(self, text: str) -> list[int]:
        """Tokens of a text alone."""
        return self.rendering.text(text)

    def encode_response(self, text: str, ended: bool = True) -> list[int]:
        """Tokens of a response that was written elsewhere (a demonstration), without an end marker that it spells at its end,
        and with the end that the template writes unless it was cut (`ended` False)."""
        return self.rendering.response(self.without_end(text), ended)

    def without_end(self, text: str) -> str:
        """A response's text without end markers spelled at its end."""
        return self.markers.sub("", text)

    @cached_property
    def markers(self) -> re.Pattern[str]:
        words = [re.escape(word) for word in self.tokenizer.convert_ids_to_tokens(sorted(self.ends)) if word]
        return re.compile(rf"(?:(?:{'|'.join(words)})\s*)+\Z" if words else r"(?!)")

    def token(self, label: str) -> int:
        """The single token of a label; ValueError when it has more than one."""
        ids = self.tokenizer.encode(label, add_special_tokens=False)
        if len(ids) != 1:
            raise ValueError(f"the label {label!r} is {len(ids)} tokens in this tokenizer, and must be one")
        return ids[0]

    def decode(self, responses: Sequence[Sequence[int]]) -> list[str]:
        """Texts of responses, without special tokens and without the token that ended them."""
        said = [ids[:-1] if len(ids) and ids[-1] in self.ends else ids for ids in responses]
        return self.tokenizer.batch_decode(said, skip_special_tokens=True) if said else []


@functools.lru_cache(maxsize=4)
def codec_of(folder: str, trust_remote_code: bool = False, template: str | None = None) -> Codec:
    """The codec of a model folder, made once a process."""
    return Codec(folder, trust_remote_code, template)


def listed_ends(model: str | Path) -> set[int | None]:
    """The end tokens that a model folder lists: those of generation_config.json, else of config.json."""
    named: Any = None
    for content in (read_json(Path(model) / f"{name}.json") for name in ("config", "generation_config")):
        named = {**content, **content.get("text_config", {})}.get("eos_token_id", named)
    return set(named) if isinstance(named, list) else {named}


def template_ends(model: str, trust_remote_code: bool = False) -> set[int | None]:
    """What a model folder's chat template ends a turn with; nothing where it has no template."""
    if not has_template(Path(model)):
        return set()
    return {codec_of(model, trust_remote_code).rendering.turn.end}
