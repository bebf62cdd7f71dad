r"""Content keys: what a node's rows depend on, and nothing else, as one hash.

Resume compares it with what was committed, `reuse` takes finished nodes of another run by it. A function counts by its
source, by what it carries (constants that it names, defaults, closure) and by the code that it names, installed packages
aside; an object by its type and its fields. Where code lives does not count: no module path, no import statement. Nothing
here may differ between two processes: no address, no order of a set.

An example. Of `rule_of("a")`, with this file and `texts.py` beside it,

    from texts import clean

    LEAST = 3

    def rule_of(mark):
        def longest(rows, rng, most=2):
            return [row for row in rows if clean(row).count(mark) >= LEAST][:most]
        return longest

the key knows this JSON, an entry for each function that is reached: its tag, its source, the tags that its names stand for,
and what it carries, which is [constants, defaults, keyword defaults, closure, what it wraps].

    [["clean#0",
      "def clean(row):\n    return row[\"response\"].strip()\n",
      {},
      [{}, null, null, {}, null]],
     ["rule_of.<locals>.longest#0",
      "def longest(rows, rng, most=2):\n    return [row for row in rows if clean(row).count(mark) >= LEAST][:most]\n",
      {"clean": "clean#0"},
      [{"LEAST": 3}, [2], null, {"mark": "a"}, null]]]

A tag is a name, and which one of that name it is in the order in which they are reached, so two functions `f` of two
modules are `f#0` and `f#1`.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any, Protocol

from pydantic import BaseModel

from selfloop.workflows.store.canonical import (
    CACHED,
    CONSTANTS,
    Canonical,
    home,
    installed,
    is_constant,
    label,
)
from selfloop.workflows.store.code import (
    functions_of,
    global_names,
    has_own_code,
    imported,
    members_of,
    source_of,
    unwritten,
)

__all__ = ["Work", "content_key", "identity", "source_hash"]


class Work(Protocol):
    """A node of a graph, as a key sees it."""

    @property
    def name(self) -> str: ...
    @property
    def verb(self) -> str: ...
    @property
    def settings(self) -> dict[str, Any]: ...
    @property
    def inputs(self) -> tuple[str, ...]: ...
    @property
    def models(self) -> tuple[Any, ...]:
        """Every model it needs; each has a `name`."""
        ...


def content_key(
    node: Work, inputs: Mapping[str, str], models: Mapping[str, str], run: Mapping[str, Any]
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


def source_hash(thing: Any, owner: type[Any] | None = None) -> str:
    """The hash of a function or class (of an object's): of the entries of all that it reaches.

    owner: the class of the object whose method the function is; what it names of that class is followed too.
    """
    return hash_of(thing if inspect.isfunction(thing) or inspect.isclass(thing) else type(thing), owner)


@functools.lru_cache(maxsize=1024)
def hash_of(target: Any, owner: type[Any] | None = None) -> str:
    known = [json.dumps(entry, sort_keys=True) for entry in entries(target, owner)]
    return hashlib.sha256("\x1f".join(sorted(known)).encode()).hexdigest()[:16]


def entries(target: Any, owner: type[Any] | None = None) -> list[Any]:
    """An entry for everything that a function or class reaches, itself first."""
    reached = Reached(home(target), owner)
    reached.follow(target)
    return [reached.describe(thing) for thing in reached.things]  # which grows on the way


SETTINGS = Canonical(source_hash)


class Reached:
    """The functions and classes of one's own code that one of them reaches, each under a tag."""

    def __init__(self, package: str, owner: type[Any] | None):
        self.package = package
        self.owner = owner
        self.things: list[Any] = []
        self.tags: dict[int, str] = {}
        self.counts: dict[str, int] = {}
        self.values = Canonical(self.tag)

    def is_own(self, module: str) -> bool:
        """Whether a module's code is followed: of the same package, a local one beside it, or Selfloop's."""
        return module.partition(".")[0] == self.package or not installed(module)

    def tag(self, thing: Any, owner: type[Any] | None = None) -> str:
        """What is said of a function or class that is carried: it is followed unless it is another's, installed."""
        return self.follow(thing) if self.is_own(str(thing.__module__)) else label(thing)

    def follow(self, thing: Any) -> str:
        """Its tag; when it is reached for the first time, it joins `things`."""
        if id(thing) not in self.tags:
            name = label(thing)
            count = self.counts[name] = self.counts.get(name, -1) + 1
            self.tags[id(thing)] = f"{name}#{count}"
            self.things.append(thing)
        return self.tags[id(thing)]

    def describe(self, thing: Any) -> list[Any]:
        """The entry of a function or class: its tag, its source, the tags that its names stand for, and what it carries."""
        names = {name: self.follow(code) for name, code in self.code_named(thing)}
        if inspect.isfunction(thing):
            return [self.follow(thing), source_of(thing), names, self.carried(thing)]
        carried = {name: self.carried(function) for name, function in functions_of(thing)}
        return [self.follow(thing), source_of(thing), names, carried, self.attributes(thing)]

    def code_named(self, thing: Any) -> Iterator[tuple[str, Any]]:
        """The functions and classes of one's own that a function names; of a class its bases, and what its functions name."""
        named: list[tuple[str, Any]] = []
        if inspect.isclass(thing):
            named += [(f"base {place}", base) for place, base in enumerate(thing.__bases__)]
        for function in [one for _, one in functions_of(thing)] if inspect.isclass(thing) else [thing]:
            named += self.named(function)
        for name, value in named:
            code = value.__wrapped__ if isinstance(value, CACHED) else value
            if (inspect.isfunction(code) or inspect.isclass(code)) and self.is_own(str(code.__module__)):
                yield name, code

    def named(self, function: FunctionType) -> Iterator[tuple[str, Any]]:
        """The names in a function's code with what they stand for: its module's, those that it imports itself, `texts.clean`
        of a module of one's own, `self.most` of the owner."""
        words = list(dict.fromkeys(global_names(function.__code__)))
        known = {word: function.__globals__[word] for word in words if word in function.__globals__}
        for name, value in (known | dict(imported(function, self.is_own))).items():
            yield name, value
            if self.is_own_module(value):
                yield from ((f"{name}.{word}", vars(value)[word]) for word in words if word in vars(value))
        if self.owner is not None:
            yield from self.members(function, words, self.owner)

    def is_own_module(self, value: Any) -> bool:
        return isinstance(value, ModuleType) and self.is_own(value.__name__)

    def members(
        self, function: FunctionType, words: list[str], owner: type[Any]
    ) -> Iterator[tuple[str, Any]]:
        """Of the names in a function's code, those of the owner: its functions, if this is one of them, and its constants."""
        functions = members_of(owner)
        is_member = function in functions.values()
        for word in words:
            if is_member and word in functions:
                yield f"self.{word}", functions[word]
            held = inspect.getattr_static(owner, word, owner)
            if is_constant(held):
                yield f"self.{word}", held

    def carried(self, function: FunctionType) -> list[Any]:
        """What a function carries: its constants, its defaults, what its closure holds, and what it wraps."""
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        closure = {name: cell.cell_contents for name, cell in cells if is_filled(cell)}
        wrapped = getattr(function, "__wrapped__", None)
        values = (function.__defaults__, function.__kwdefaults__, closure, wrapped)
        constants = self.constants(function) if has_own_code(function) else {}
        return [CONSTANTS.of(constants), *map(self.values.of, values)]

    def constants(self, function: FunctionType) -> dict[str, Any]:
        """The plain data that a function names, but for what Python sets (`__file__`) and what functions write to."""
        named = list(self.named(function))
        constants = {
            name: value
            for name, value in named
            if is_constant(value) and not name.startswith("__") and ".__" not in name
        }
        modules = [value.__name__ for _, value in named if self.is_own_module(value)]
        return unwritten(constants, [str(function.__globals__.get("__name__")), *modules])

    def attributes(self, kind: type[Any]) -> Any:
        """Constants of a class, and the defaults of its fields."""
        found = {name: value for name, value in vars(kind).items() if name[:2] != "__" and is_constant(value)}
        found = unwritten(found, [kind.__module__])
        if issubclass(kind, BaseModel):
            found |= {name: field.default for name, field in kind.model_fields.items()}
        return CONSTANTS.of(found)


def is_filled(cell: Any) -> bool:
    """Whether a variable of a closure has been set."""
    try:
        cell.cell_contents  # noqa: B018  # pyright: ignore[reportUnusedExpression]
    except ValueError:
        return False
    return True
