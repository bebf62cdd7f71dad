"""Content keys: what a node's rows depend on, and nothing else, as one hash.

Resume compares it with what was committed, `reuse` takes finished nodes of another run by it.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from types import CodeType
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

if TYPE_CHECKING:
    from selfloop.workflows.flow.graph import Node

__all__ = ["content_key", "identity", "source_hash"]


def content_key(
    node: Node, inputs: Mapping[str, str], models: Mapping[str, str], run: Mapping[str, Any]
) -> str:
    """What this node's rows depend on, and nothing else.

    inputs: content key of each input. models: hash of weights, tokenizer and template of each model used. run: seed,
    iteration, and of the actor that runs the node its settings and package versions.
    """
    known = {
        "verb": node.verb,
        "name": node.name,
        "settings": node.settings,
        "inputs": [inputs[name] for name in node.inputs],
        "models": {model.name: models[model.name] for model in node.models},
        "run": dict(run),
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:32]


def identity(value: Any) -> Any:
    """What a content key knows of a setting: functions and judges by their source, everything else by its value."""
    if isinstance(value, BaseModel):
        return [type(value).__qualname__, source_hash(type(value)), json.loads(value.model_dump_json())]
    if inspect.ismethod(value):  # a recipe's own: its settings count
        return [identity(value.__self__), value.__qualname__, source_hash(value.__func__)]
    if callable(value):
        return [getattr(value, "__qualname__", type(value).__qualname__), source_hash(value)]
    if isinstance(value, dict):
        return {str(name): identity(item) for name, item in sorted(value.items())}
    if isinstance(value, set | frozenset):
        return sorted((identity(item) for item in value), key=str)
    if isinstance(value, list | tuple):
        return [identity(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def source_hash(thing: Any) -> str:
    """Hash of the source of a function or class, and of all functions and classes of its own package that it names."""
    return hash_of(thing if inspect.isfunction(thing) or inspect.isclass(thing) else type(thing))


@functools.lru_cache(maxsize=1024)
def hash_of(target: Any) -> str:
    found: dict[str, str] = {}
    collect(target, home(target), found)
    text = "\x1f".join(f"{name}\x1f{found[name]}" for name in sorted(found))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def home(target: Any) -> str:
    return str(getattr(target, "__module__", "")).split(".")[0]


def collect(target: Any, package: str, found: dict[str, str]) -> None:
    """The sources that `target` reaches within the package, by name."""
    name = f"{target.__module__}.{target.__qualname__}"
    if name in found:
        return
    try:
        found[name] = inspect.getsource(target)
    except (OSError, TypeError):
        found[name] = name
    for other in named(target):
        if home(other) == package:
            collect(other, package, found)


def named(target: Any) -> Iterator[Any]:
    """Functions and classes that a function's code, or a class's bases and methods, name."""
    if inspect.isclass(target):
        yield from target.__bases__
        functions = [getattr(one, "__func__", one) for one in vars(target).values()]
    else:
        functions = [target]
    for function in functions:
        if inspect.isfunction(function) and home(function) == home(target):
            for word in words(function.__code__):
                value = function.__globals__.get(word)
                if inspect.isfunction(value) or inspect.isclass(value):
                    yield value


def words(code: CodeType) -> Iterator[str]:
    """Every global name in a function's code, with those of the functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from words(constant)
