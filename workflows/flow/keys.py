"""Content keys: what a node's rows depend on, and nothing else, as one hash.

Resume compares it with what was committed, `reuse` takes finished nodes of another run by it. A function counts by its
source, the values it carries (defaults, closure, the constants it names) and the code of its own package that it
names; an object by its type and its fields. Nothing here may differ between two processes: no address, no order of a set.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from selfloop.workflows.flow.words import (
    CACHED,
    CONSTANTS,
    Words,
    as_text,
    constant,
    home,
    installed,
    qualified,
)

if TYPE_CHECKING:
    from selfloop.workflows.flow.graph import Node

__all__ = ["content_key", "identity", "source_hash"]

CHANGES = frozenset({"add", "append", "clear", "discard", "extend", "insert", "pop", "popitem", "remove",
                     "setdefault", "update"})  # fmt: skip


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
    """What a content key knows of a setting, as JSON: code by its hash, objects by type and fields, data by its value."""
    return SETTINGS.of(value)


def source_hash(thing: Any) -> str:
    """Hash of a function or class: its source, the values it carries, and the same of all that it names in its package."""
    return hash_of(thing if inspect.isfunction(thing) or inspect.isclass(thing) else type(thing))


@functools.lru_cache(maxsize=1024)
def hash_of(target: Any) -> str:
    found = Found(home(target))
    found.add(target)
    known = sorted(json.dumps(found.told(thing), sort_keys=True) for thing in found.things)
    return hashlib.sha256("\x1f".join(known).encode()).hexdigest()[:16]


SETTINGS = Words(source_hash)


class Found:
    """The functions and classes that one reaches within its package, each under a tag that is the same in every process."""

    def __init__(self, package: str):
        self.package = package
        self.things: list[Any] = []
        self.tags: dict[int, str] = {}
        self.counts: dict[str, int] = {}
        self.carried = Words(self.tag)

    def add(self, thing: Any) -> str:
        """Its tag: the name, and which one of that name it is (closures share theirs)."""
        if id(thing) not in self.tags:
            name = qualified(thing)
            count = self.counts[name] = self.counts.get(name, -1) + 1
            self.tags[id(thing)] = f"{name}#{count}"
            self.things.append(thing)
        return self.tags[id(thing)]

    def tag(self, thing: Any) -> str:
        """What is said of a function or class that is carried: it is followed unless it is another's, installed."""
        if home(thing) == self.package or not installed(str(thing.__module__)):
            return self.add(thing)
        return qualified(thing)

    def told(self, thing: Any) -> list[Any]:
        """Its tag, source and values; what it names joins `things`."""
        for other in named(thing):
            if home(other) == self.package:
                self.add(other)
        if not inspect.isclass(thing):
            return [self.add(thing), source_of(thing), self.values(thing)]
        held = {name: self.values(function) for name, function in functions_of(thing)}
        return [self.add(thing), source_of(thing), held, self.attributes(thing)]

    def values(self, function: FunctionType) -> list[Any]:
        """Its constants, its defaults, and what its closure holds."""
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        held = {name: cell.cell_contents for name, cell in cells if filled(cell)}
        carried = (
            function.__defaults__,
            function.__kwdefaults__,
            held,
            getattr(function, "__wrapped__", None),
        )
        found = constants(function) if own(function) else {}
        return [CONSTANTS.of(found), *map(self.carried.of, carried)]

    def attributes(self, kind: type[Any]) -> Any:
        """Constants of a class, and the defaults of its fields."""
        found = {name: value for name, value in vars(kind).items() if name[:2] != "__" and constant(value)}
        found = unwritten(found, [kind.__module__]) if found else found
        if issubclass(kind, BaseModel):
            found |= {name: field.default for name, field in kind.model_fields.items()}
        return CONSTANTS.of(found)


def filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018  # pyright: ignore[reportUnusedExpression]
    except ValueError:
        return False
    return True


def own(function: FunctionType) -> bool:
    """Whether a function's code is of the package it says; a wrapper made by a library says that of what it wraps."""
    return str(function.__globals__.get("__name__")).partition(".")[0] == home(function)


def named(target: Any) -> Iterator[Any]:
    """Functions and classes that a function's code, or a class's bases and methods, name."""
    if inspect.isclass(target):
        yield from target.__bases__
    functions = [one for _, one in functions_of(target)] if inspect.isclass(target) else [target]
    for function in functions:
        for word in global_names(function.__code__):
            value = function.__globals__.get(word)
            value = value.__wrapped__ if isinstance(value, CACHED) else value
            if inspect.isfunction(value) or inspect.isclass(value):
                yield value


def functions_of(kind: type[Any]) -> Iterator[tuple[str, FunctionType]]:
    """The functions of a class's own package among its attributes: methods, and what properties call."""
    for name, held in vars(kind).items():
        for part in ("", "__func__", "fget", "fset", "func", "function"):
            function = getattr(held, part, None) if part else held
            if inspect.isfunction(function) and home(function) == home(kind):
                yield f"{name}.{part}", function


def constants(function: FunctionType) -> dict[str, Any]:
    """The plain data that a function's code names, in its module or in a module of its package, by name.

    What functions write to is no constant, nor is what Python sets (`__file__`).
    """
    names = [word for word in global_names(function.__code__) if word[:2] != "__"]
    known = {name: function.__globals__[name] for name in names if name in function.__globals__}
    found, modules = {name: value for name, value in known.items() if constant(value)}, list[str]()
    for name, module in known.items():
        if isinstance(module, ModuleType) and module.__name__.partition(".")[0] == home(function):
            modules.append(module.__name__)
            held = {word: vars(module).get(word, module) for word in names}
            found |= {f"{name}.{word}": value for word, value in held.items() if constant(value)}
    return unwritten(found, [function.__globals__["__name__"], *modules]) if found else found


def unwritten(found: dict[str, Any], modules: list[str]) -> dict[str, Any]:
    """Without the names that functions of these modules write to: what they hold depends on when one looks."""
    written = frozenset[str]().union(*map(written_in, modules))
    return {name: value for name, value in found.items() if name.rpartition(".")[2] not in written}


def global_names(code: CodeType) -> Iterator[str]:
    """Every global name in a function's code, with those of the functions inside it."""
    yield from code.co_names
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from global_names(one)


def source_of(thing: Any) -> str:
    """The source of a function or class; the name where there is none. A lambda's line may hold several: bytecode, too."""
    if inspect.isclass(thing):
        return read_source(thing, "") or qualified(thing)
    if not own(thing):
        return qualified(thing)
    text = read_source(thing.__code__, thing.__code__.co_filename)
    return text if text and thing.__name__ != "<lambda>" else text + as_text(bytecode(thing.__code__))


@functools.lru_cache(maxsize=8192)
def read_source(thing: Any, file: str) -> str:
    """file: codes of two files can be equal."""
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        return ""


def bytecode(code: CodeType) -> list[Any]:
    inner = [bytecode(one) if isinstance(one, CodeType) else CONSTANTS.of(one) for one in code.co_consts]
    return [code.co_code.hex(), code.co_names, inner]


@functools.cache
def written_in(module: str) -> frozenset[str]:
    """The globals and attributes that functions of a module rebind, or whose items they change."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (KeyError, OSError, TypeError, SyntaxError):  # typed in, or without a file
        return frozenset()
    functions = [one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    return frozenset(name for one in functions for inner in ast.walk(one) for name in written_by(inner))


def written_by(one: ast.AST) -> list[str]:
    match one:
        case ast.Global(names=names):
            return names
        case ast.Attribute(value=ast.Name(id=owner), attr=name, ctx=ast.Store()) if owner != "self":
            return [name]
        case ast.Call(func=ast.Attribute(value=held, attr=change)) if change in CHANGES:
            return [last_name(held)]
        case ast.Subscript(value=held, ctx=ast.Store() | ast.Del()):
            return [last_name(held)]
        case _:
            return []


def last_name(held: ast.AST) -> str:
    return getattr(held, "id", "") or getattr(held, "attr", "")
