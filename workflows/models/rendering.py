"""One way from messages to tokens: what a chat template writes may be control tokens, what a user or a model wrote never is.

A tokenizer finds the spelling of a special token anywhere in a text. So content that spells one is shown to the template with
stand-ins for these spellings, and the rendered text is encoded, with the spellings back in their places, by a twin of the
tokenizer whose special tokens have names that no text can spell. All else of the twin is the same, so tokens, merges and
prefixes are those of the tokenizer. Content that spells none goes through `apply_chat_template` as it is.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from selfloop.workflows.data.schema import Message

__all__ = ["Rendering", "Turn"]

WORD = "selfloop"
STAND_INS = range(0xF0000, 0xFFFFE)  # a private use area: no tokenizer knows these, no template strips them


@dataclass(frozen=True)
class Turn:
    """How a template writes an assistant's turn.

    header: what stands before it, from the last special token on. lead: whitespace between header and content.
    left, right: whether content keeps its own whitespace there. ending: all after the content through the end token; empty
    where the template writes none, and the turn ends with the tokenizer's own. end: that token; None if there is none at all.
    """

    header: str
    lead: str
    left: bool
    right: bool
    ending: str
    end: int | None


class Rendering:
    """A tokenizer with its chat template. `special`: the tokens that are control."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        added = list(tokenizer.added_tokens_decoder.values())
        self.special = {token.content for token in added if token.special}
        words = sorted((token.content for token in added), key=len, reverse=True)  # the longest match counts
        self.pattern = re.compile("|".join(map(re.escape, words)) or "(?!)")
        self.heads = {word[:end] for word in self.special for end in range(1, len(word))}
        self.tails = {word[start:] for word in self.special for start in range(1, len(word))}
        backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        normal = backend is not None and backend.normalizer is not None
        # Such a token is also found where a text spells it only once it is normalised.
        self.folds = normal and any(token.special and token.normalized for token in added)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of the messages with the header of the assistant's turn behind them."""
        hidden: dict[str, str] = {}
        free = stand_ins([text for message in messages for text in message.values()])
        shown = [
            {
                name: text if name == "role" else self.hide(text, hidden, free)
                for name, text in message.items()
            }
            for message in messages
        ]
        render = self.tokenizer.apply_chat_template
        if not hidden and not self.folds:
            return render(list(messages), add_generation_prompt=True, tokenize=True, return_dict=False)
        return self.encode(render(shown, add_generation_prompt=True, tokenize=False), hidden)

    def text(self, text: str) -> list[int]:
        """Tokens of a text that stands alone, none of them control."""
        hidden: dict[str, str] = {}
        return self.encode(self.hide(text, hidden, stand_ins([text])), hidden)

    def response(self, text: str, ended: bool = True) -> list[int]:
        """Tokens of an assistant's content as they stand behind the header, through the end of the turn if it has ended."""
        turn, hidden = self.turn, dict[str, str]()
        text = text if turn.left else text.lstrip()
        text = text if turn.right or not ended else text.rstrip()
        said = turn.lead + self.hide(text, hidden, stand_ins([text])) + (turn.ending if ended else "")
        ids, head = self.encode(turn.header + said, hidden), self.encode(turn.header)
        if (
            ids[: len(head)] != head
        ):  # its first characters melt with the header, whose tokens the model was given
            anchor = self.tokenizer.eos_token or ""
            ids, head = self.encode(anchor + said, hidden), self.encode(anchor)
        own = [turn.end] if ended and not turn.ending and turn.end is not None else []
        return ids[len(head) :] + own

    @cached_property
    def turn(self) -> Turn:
        """How the template writes an assistant's turn, seen on a short conversation."""
        ask, said = {"role": "user", "content": "1"}, {"role": "assistant", "content": f"\t\n{WORD}\n\t"}
        own = self.tokenizer.eos_token_id
        try:
            header: str = self.tokenizer.apply_chat_template(
                [ask], add_generation_prompt=True, tokenize=False
            )
            whole: str = self.tokenizer.apply_chat_template([ask, said], tokenize=False)
        except (
            Exception
        ):  # no template, or one that refuses this conversation: a program of the model's author
            return Turn("", "", True, True, "", own)
        before, word, after = whole.rpartition(WORD)
        if not word:
            return Turn("", "", True, True, "", own)
        left, right = before.endswith("\t\n"), after.startswith("\n\t")
        lead = before.removesuffix("\t\n").removeprefix(header) if before.startswith(header) else ""
        found = self.pattern.search(after := after.removeprefix("\n\t"))
        last = max((one.start() for one in self.pattern.finditer(header)), default=0)
        return Turn(
            header[last:],
            "" if lead.strip() else lead,  # a text (an empty thought) is not the response's own
            left,
            right,
            after[: found.end()] if found else "",
            self.tokenizer.convert_tokens_to_ids(found[0]) if found else own,
        )

    def hide(self, text: str, hidden: dict[str, str], free: Iterator[str]) -> str:
        """The text with stand-ins for the special tokens that it spells, and for what may become one beside other text: the
        beginning of one at its end, the end of one at its beginning. hidden: what each stand-in stands for."""

        def stand_in(words: str) -> str:
            place = next((place for place, known in hidden.items() if known == words), None) or next(free)
            hidden[place] = words
            return place

        text = self.pattern.sub(
            lambda found: stand_in(found[0]) if found[0] in self.special else found[0], text
        )
        core = text.rstrip()
        if size := longest(core, self.heads, lambda words, size: words[-size:]):
            text = core[:-size] + stand_in(core[-size:]) + text[len(core) :]
        core = text.lstrip()
        if size := longest(core, self.tails, lambda words, size: words[:size]):
            text = text[: len(text) - len(core)] + stand_in(core[:size]) + core[size:]
        return text

    def encode(self, rendered: str, hidden: Mapping[str, str] | None = None) -> list[int]:
        """Tokens of a rendered text, whose special tokens are control; what `hidden` stands for is text."""
        if not hidden and not self.folds:
            return self.tokenizer.encode(rendered, add_special_tokens=False)
        text = self.pattern.sub(lambda found: self.names.get(found[0], found[0]), rendered)
        for place, words in (hidden or {}).items():
            text = text.replace(place, words)
        return self.twin.encode(text, add_special_tokens=False).ids

    @cached_property
    def names(self) -> dict[str, str]:
        """Names of the special tokens in the twin: drawn, so no text can spell them; they never reach the tokens."""
        nonce = secrets.token_hex(16)
        return {word: f"\ue000{nonce}.{place}\ue001" for place, word in enumerate(sorted(self.special))}

    @cached_property
    def twin(self) -> Any:
        """The same tokenizer with these names. ValueError where there is none."""
        from tokenizers import Tokenizer

        if not self.tokenizer.is_fast:
            raise ValueError(
                f"the text spells a special token, and {type(self.tokenizer).__name__} cannot encode that as text: it is no "
                "fast tokenizer (tokenizer.json). Convert the tokenizer, or leave such rows out"
            )
        made = json.loads(self.tokenizer.backend_tokenizer.to_str())
        return Tokenizer.from_str(json.dumps(renamed(made, self.names)))


def renamed(made: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A tokenizer's JSON in which special tokens have other names and the same ids, and which no merge and no piece of the
    vocabulary can give."""
    model, added = made["model"], made["added_tokens"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # Unigram: a piece's id is its place
        size = max((token["id"] + 1 for token in added), default=0)
        lowest = min(score for _, score in vocabulary)
        vocabulary += [[f"\ue002{place}", lowest] for place in range(len(vocabulary), size)]
    for token in added:
        name = names.get(token["content"], token["content"])
        if isinstance(vocabulary, list):
            vocabulary[token["id"]][0] = name
        else:
            vocabulary.pop(token["content"], None)
            vocabulary[name] = token["id"]
        token["content"] = name
    if "merges" in model:
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        model["merges"] = [pair for pair in pairs if names.keys().isdisjoint((*pair, "".join(pair)))]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    return {**made, "post_processor": None, "truncation": None, "padding": None}


def stand_ins(texts: Sequence[str]) -> Iterator[str]:
    """Characters that are in none of these texts."""
    used = set[str]().union(*texts)
    return (sign for sign in map(chr, STAND_INS) if sign not in used)


def longest(text: str, known: set[str], cut: Any) -> int:
    """Characters of the longest cut of a text that is known; 0: none is."""
    most = min(len(text), max(map(len, known), default=0))
    return next((size for size in range(most, 0, -1) if cut(text, size) in known), 0)
