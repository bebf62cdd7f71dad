"""Do the rows that are given fit the model? Their lengths in tokens, and whether its chat template takes their messages.

The tokenizer is loaded for rows that may be too long, and for messages of other roles than one user's: that takes seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from selfloop.workflows.config import Config, Prompts
from selfloop.workflows.data.schema import Message
from selfloop.workflows.models.codec import Codec, codec_of
from selfloop.workflows.models.lengths import positions_of, sampled_limit, trained_limit
from selfloop.workflows.run.setup import Setup
from selfloop.workflows.sources import heldout_spec, iter_prompts

__all__ = ["Trouble", "fitting"]

BUDGET = 16_000_000  # bytes; about ten seconds
TEMPLATE = 256  # tokens: more than a chat template writes by itself
TURN = 32  # tokens: more than it writes around a message
GIVEN = ("chosen", "rejected", "completion")


@dataclass(frozen=True)
class Trouble:
    """Rows of a source that do not fit. first: where the first one stands, and what it has."""

    what: str
    first: str
    rows: int
    of: int
    way: str

    def __str__(self) -> str:
        return f"{self.rows:,} of {self.of:,} {self.what}, the first at {self.first}. {self.way}"


@dataclass
class Ruler:
    """Lengths in tokens, and what a model's chat template makes of messages."""

    folder: Path
    trusted: bool
    template: str | None = None
    shapes: dict[tuple[str, ...], str] = field(default_factory=dict)

    @cached_property
    def codec(self) -> Codec:
        return codec_of(str(self.folder), self.trusted, self.template)

    def refusal(self, messages: list[Message]) -> str:
        """Why the template refuses messages of these roles, or leaves one of them out; empty where it takes them."""
        roles = tuple(turn["role"] for turn in messages)
        if roles == ("user",):
            return ""
        if roles not in self.shapes:
            self.shapes[roles] = self.look(messages)
        return self.shapes[roles]

    def look(self, messages: list[Message]) -> str:
        try:
            text = self.codec.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program of the model's author
            at = getattr(error, "lineno", None)
            line = f", line {at}" if at else ""
            return f"{type(error).__name__}{line}: {getattr(error, 'message', None) or error}"
        for turn in messages:
            said = turn["content"].strip()
            # earlier answers may lose their reasoning, and some templates write what a tool said as JSON
            if turn["role"] != "assistant" and said not in text and json.dumps(said)[1:-1] not in text:
                return f"it leaves out the message of role {turn['role']}"
        return ""

    def length(self, messages: list[Message], responses: list[str]) -> int:
        """Tokens of the prompt with the longest of the responses, or with the one token that a response has at least."""
        longest = max((len(self.codec.encode_response(text)) for text in responses), default=1)
        return len(self.codec.encode(messages)) + longest


def fitting(setup: Setup, folder: Path, budget: int = BUDGET) -> tuple[list[str], list[str]]:
    """(problems, notes): sources with rows that the model in `folder` cannot take, more of them than may fail, or fewer.

    budget: bytes of text whose tokens are counted, dealt to the sources alike; the longest rows come first.
    """
    config = setup.config
    ruler = Ruler(folder, config.trust_remote_code, config.prompts.template)
    problems: list[str] = []
    notes: list[str] = []
    for name in setup.sources:
        for trouble in (
            *refused(setup, name, ruler),
            *long(setup, name, ruler, budget // len(setup.sources), notes),
        ):
            if trouble.rows > config.max_failed_rows * trouble.of:
                way = f"or raise max_failed_rows (now {config.max_failed_rows:g}), so that they are left out"
                problems.append(f"{trouble}, {way}")
            else:
                notes.append(f"{trouble}. Until then they are left out and counted")
    return problems, notes


def refused(setup: Setup, name: str, ruler: Ruler) -> Iterator[Trouble]:
    """Prompts of a source whose roles the chat template does not take."""
    config, table = setup.config, setup.sources[name]
    found: dict[str, list[str]] = {}
    for prompt, messages in zip(table["prompt_id"].to_pylist(), table["prompt"].to_pylist(), strict=True):
        if words := ruler.refusal(messages):
            found.setdefault(words, []).append(prompt)
    for words, rows in found.items():
        yield Trouble(
            f"rows of {spoken(config, name)} are not taken by the chat template of {config.model} ({words})",
            place_of(config, name, rows[0]), len(rows), table.num_rows, "Take such messages out, take another model"
        )  # fmt: skip


def long(setup: Setup, name: str, ruler: Ruler, budget: int, notes: list[str]) -> Iterator[Trouble]:
    """Rows of a source that are longer than the model takes: prompts, or prompts with their given responses."""
    config, table = setup.config, setup.sources[name]
    given = name in config.data
    limit, why = limit_of(config, ruler.folder, sampled=not given)
    if limit is None:
        return
    told = [column for column in GIVEN if column in table.column_names] or ["answer"] if given else []
    values = [list(map(text_of, table[column].to_pylist())) for column in told]
    prompts: list[list[Message]] = table["prompt"].to_pylist()
    rows = [(messages, [column[row] for column in values]) for row, messages in enumerate(prompts)]
    sizes = {row: size for row, one in enumerate(rows) if (size := most_tokens(*one)) > limit}
    found: dict[int, int] = {}
    for seen, row in enumerate(sorted(sizes, key=lambda row: -sizes[row])):
        budget -= sizes[row]
        if budget < 0:
            notes.append(
                f"the {seen:,} longest of the {table.num_rows:,} rows of {spoken(config, name)} were measured: what else does "
                "not fit is left out and counted when it is used"
            )
            break
        if not ruler.refusal(rows[row][0]) and (tokens := ruler.length(*rows[row])) > limit:
            found[row] = tokens
    if found:
        first = min(found)
        place = place_of(config, name, table["prompt_id"][first].as_py())
        yield Trouble(
            f"rows of {spoken(config, name)} are longer than the {limit:,} tokens of {why}",
            f"{place} with {found[first]:,}", len(found), table.num_rows,
            "Shorten or delete them, raise generator.max_model_len where the model has positions for them",
        )  # fmt: skip


def most_tokens(messages: list[Message], responses: list[str]) -> int:
    """More tokens than a row has, if one holds at least a byte."""
    texts = [turn["content"] for turn in messages]
    longest = max((len(text.encode()) for text in responses), default=0)
    return sum(len(text.encode()) for text in texts) + longest + TURN * len(messages) + TEMPLATE


def text_of(value: list[Message] | str | None) -> str:
    """A given response's text, from messages that end with it or from an answer."""
    if isinstance(value, list):
        return value[-1]["content"]
    return value or ""


def limit_of(config: Config, folder: Path, sampled: bool) -> tuple[int | None, str]:
    """The most tokens of a row of a source, and what says so."""
    positions, setting = positions_of(folder), config.generator.max_model_len
    limit = sampled_limit(positions, setting) if sampled else trained_limit(positions, setting)
    if setting and limit == setting:
        return limit, "prompt and response (generator.max_model_len)"
    if limit and limit == positions:
        return limit, f"prompt and response that {config.model} has positions for"
    return limit, "prompt and response that are taken where generator.max_model_len is not set"


def spoken(config: Config, name: str) -> str:
    """A source as messages name it."""
    ours = {"prompts": "the prompts", "heldout": "the held-out prompts"}.get(name, f"data.{name}")
    return f"{ours} ({spec_of(config, name).source})"


def spec_of(config: Config, name: str) -> Prompts:
    if name == "heldout":
        return heldout_spec(config.prompts) or config.prompts
    return config.data.get(name, config.prompts)


def place_of(config: Config, name: str, prompt: str) -> str:
    """Where the prompt of this id stands, by file and line: the source is read again up to there."""
    spec = spec_of(config, name)
    if spec.source == "pocket":
        return f"prompt {prompt}"
    rows = iter_prompts(spec, responses=name in config.data)
    return next((where for where, row in rows if row["prompt_id"] == prompt), f"prompt {prompt}")
