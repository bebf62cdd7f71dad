"""Sentences for wrong settings: what was found, what it must be, and the nearest thing that exists."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from selfloop.workflows.config.settings import Config, Prompts, Section
from selfloop.workflows.errors import nearest

__all__ = ["describe", "first_line", "in_short"]

# What people type who come from other trainers.
SYNONYMS = {
    "dataset": "prompts.source",
    "epochs": "settings.epochs",
    "learning_rate": "trainer.lr",
    "max_new_tokens": "generator.max_tokens",
    "max_steps": "iterations",
    "method": "recipe",
    "model_name": "model",
    "model_name_or_path": "model",
    "num_gpus": "generator.gpus",
    "num_iterations": "iterations",
    "steps": "iterations",
    "verifier": "judge",
}

TYPES = {
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "dict": "a group of settings",
    "model": "a group of settings",
    "tuple": "a list",
    "list": "a list",
}


def describe(item: Any, top: type[BaseModel], prefix: str = "", whose: str = "") -> tuple[str, str]:
    """(key, sentence) of one pydantic error."""
    loc = [str(part) for part in item["loc"]]
    key = ".".join([prefix, *loc] if prefix else loc)
    kind, value, limits = item["type"], item.get("input"), item.get("ctx", {})
    if kind == "extra_forbidden":
        return key, unknown_key(key, loc, top, prefix, whose)
    if kind == "missing":
        return key, missing_key(key)
    if kind == "value_error":
        return key, str(limits.get("error", item["msg"]))
    if kind.startswith("model") and (key == "prompts" or loc[0] == "data"):
        return key, f"{key} is {show(value)}, and must be the name of a source or a group of settings"
    return key, f"{key} is {show(value)}, and must be {requirement(kind, value, limits, item['msg'])}"


def unknown_key(key: str, loc: list[str], top: type[BaseModel], prefix: str, whose: str) -> str:
    section, above = section_at(top, loc[:-1])
    known = list(section.model_fields) if section else []
    head = ".".join([prefix, *above] if prefix else above)
    if "." in loc[-1]:
        group, _, rest = loc[-1].partition(".")
        return f"{key} is one key with a dot in it, and a file nests groups. Write {group}: {{{rest}: …}}"
    full = [f"{head}.{name}" if head else name for name in known]
    guess = nearest(loc[-1], known)
    best = f"{head}.{guess}" if guess and head else guess
    if best is None and not prefix:
        best = SYNONYMS.get(loc[-1]) or elsewhere(loc[-1])
    way = f"Did you mean {best}?" if best else f"Known here: {', '.join(full) or 'nothing'}"
    return f"{key} is not a setting{whose}. {way}"


def elsewhere(word: str) -> str | None:
    """A key of another group with this last name, or one much like it."""
    paths = list(all_keys(Config))
    leaf = {path.rsplit(".", 1)[-1]: path for path in reversed(paths)}
    guess = nearest(word, list(leaf), 0.75)
    return leaf[guess] if guess else nearest(word, paths)


def all_keys(section: type[BaseModel], head: str = "") -> Iterator[str]:
    """Dotted paths of all keys of a section."""
    for name, info in section.model_fields.items():
        yield f"{head}{name}"
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from all_keys(kind, f"{head}{name}.")


def section_at(top: type[BaseModel], loc: Sequence[str]) -> tuple[type[BaseModel] | None, list[str]]:
    """The section that a location lies in, e.g. Prompts at data.NAME."""
    section: type[BaseModel] | None = top
    for part in loc:
        info = section.model_fields.get(part) if section else None
        kinds = [info.annotation, *get_args(info.annotation)] if info else [Prompts]
        section = next(
            (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None
        )
    return section, list(loc)


def missing_key(key: str) -> str:
    if key == "recipe":
        return "recipe is missing. Name a method, e.g. recipe: self-rewarding (`selfloop methods` lists them)"
    return f"{key} is missing. Set it, e.g. {key}=VALUE"


def requirement(kind: str, value: Any, limits: Mapping[str, Any], message: str) -> str:
    """What a value must be, in words."""
    words = {
        "greater_than_equal": "at least {ge}",
        "greater_than": "greater than {gt}",
        "less_than_equal": "at most {le}",
        "less_than": "less than {lt}",
        "bool_parsing": "true or false",
        "bool_type": "true or false",
        "finite_number": "a finite number",
        "string_too_short": "text of at least {min_length} character",
        "too_long": "a list of {max_length} values",
    }
    if kind in words:
        return words[kind].format(**limits)
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", str(limits.get("expected", "")))
        guess = nearest(str(value), choices)
        tail = f". Did you mean {guess}?" if guess else ""
        return f"{'one of ' if len(choices) > 1 else ''}{', '.join(choices) or limits.get('expected')}{tail}"
    return next(
        (text for start, text in TYPES.items() if kind.startswith(start)), f"something else: {message}"
    )


def show(value: Any) -> str:
    text = (
        "empty"
        if value is None
        else "''"
        if value == ""
        else str(value)
        if not isinstance(value, str)
        else repr(value)
    )
    return text if len(text) <= 60 else f"{text[:57]}…"


def first_line(error: BaseException) -> str:
    """What an error says first, without its last full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def in_short(error: BaseException) -> str:
    """An error as one line; of a refused object its first wrong setting."""
    if not isinstance(error, ValidationError):
        return first_line(error)
    item = error.errors()[0]
    where = ".".join(str(part) for part in item["loc"])
    return f"{error.title} does not take {where}={show(item.get('input'))} ({item['msg']})"
