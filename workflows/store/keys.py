"""Content keys: what a node's rows depend on, and nothing else, as one hash.

Resume compares it with what was committed, `reuse` takes finished nodes of another run by it. A function counts by its
source, the values it carries (defaults, closure, the constants it names) and the code of one's own that it names; an
object by its type and its fields. Where code lives does not count: no module path, no import statement. Nothing here may
differ between two processes: no address, no order of a set.

An example. Of this rule of a user's,

    from texts import clean            # a module beside it

    LEAST = 3

    def longest(rows, rng, *, most=2):
        return [row for row in rows if len(clean(row["response"])) >= LEAST][:most]

the key knows two things, each as [name, source, what its names stand for, [constants, defaults, keyword defaults, closure,
what it wraps]]:

    ["longest#0", "def longest(rows, …", {"clean": "clean#0"}, [{"LEAST": 3}, null, {"most": 2}, {}, null]]
    ["clean#0",   "def clean(text): …",  {},                   [{}, null, null, {}, null]]
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
    HERE,
    Words,
    constant,
    home,
    installed,
    label,
)
from selfloop.workflows.store.code import (
    functions_of,
    global_names,
    imported,
    members_of,
    own,
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
    """Hash of a function or class: its source, the values it carries, and the same of all of one's own that it names.

    owner: the class of the object whose method the function is; what it names of that class is followed too.
    """
    return hash_of(thing if inspect.isfunction(thing) or inspect.isclass(thing) else type(thing), owner)


@functools.lru_cache(maxsize=1024)
def hash_of(target: Any, owner: type[Any] | None = None) -> str:
    found = Found(home(target), owner)
    found.follow(target)
    known = sorted(json.dumps(found.describe(thing), sort_keys=True) for thing in found.things)
    return hashlib.sha256("\x1f".join(known).encode()).hexdigest()[:16]


SETTINGS = Words(source_hash)


class Found:
    """The functions and classes that one reaches among one's own code, each under a tag that is the same in every process."""

    def __init__(self, package: str, owner: type[Any] | None):
        self.package = package
        self.owner = owner
        self.things: list[Any] = []
        self.tags: dict[int, str] = {}
        self.counts: dict[str, int] = {}
        self.carried = Words(self.tag)

    def follow(self, thing: Any) -> str:
        """Its tag: the name, and which one of that name it is, in the order in which they are reached."""
        if id(thing) not in self.tags:
            name = label(thing)
            count = self.counts[name] = self.counts.get(name, -1) + 1
            self.tags[id(thing)] = f"{name}#{count}"
            self.things.append(thing)
        return self.tags[id(thing)]

    def is_own(self, module: str) -> bool:
        """Whether a module's code is followed: of the same package, or a local one beside it. Selfloop's, which others
        name, counts by its version."""
        top = module.partition(".")[0]
        return top == self.package or (top != HERE and not installed(module))

    def tag(self, thing: Any, owner: type[Any] | None = None) -> str:
        """What is said of a function or class that is carried: it is followed unless it is another's, installed."""
        return self.follow(thing) if not installed(str(thing.__module__)) else label(thing)

    def describe(self, thing: Any) -> list[Any]:
        """Its tag and source, what its names stand for, and its values; what it names joins `things`."""
        names = {word: self.follow(other) for word, other in self.named(thing)}
        if not inspect.isclass(thing):
            return [self.follow(thing), source_of(thing), names, self.values(thing)]
        held = {name: self.values(function) for name, function in functions_of(thing)}
        return [self.follow(thing), source_of(thing), names, held, self.attributes(thing)]

    def named(self, target: Any) -> Iterator[tuple[str, Any]]:
        """The functions and classes of one's own that code names: as globals, of modules, by imports inside functions; of a
        class its bases, of a method what it names of its object."""
        found: list[tuple[str, Any]] = []
        if inspect.isclass(target):
            found += [(f"base {place}", base) for place, base in enumerate(target.__bases__)]
        functions = [one for _, one in functions_of(target)] if inspect.isclass(target) else [target]
        for function in functions:
            found += self.reached(function)
        for word, value in found:
            value = value.__wrapped__ if isinstance(value, CACHED) else value
            if (inspect.isfunction(value) or inspect.isclass(value)) and self.is_own(str(value.__module__)):
                yield word, value

    def reached(self, function: FunctionType) -> Iterator[tuple[str, Any]]:
        """What a function's names stand for, whatever it is."""
        words = list(dict.fromkeys(global_names(function.__code__)))
        for name, value in self.scope(function, words).items():
            yield name, value
            if isinstance(value, ModuleType) and self.is_own(value.__name__):
                yield from ((f"{name}.{word}", vars(value)[word]) for word in words if word in vars(value))
        members = members_of(self.owner) if self.owner is not None else {}
        if function in members.values():
            yield from ((f"self.{word}", members[word]) for word in words if word in members)

    def scope(self, function: FunctionType, words: list[str]) -> dict[str, Any]:
        held = {word: function.__globals__[word] for word in words if word in function.__globals__}
        return held | dict(imported(function, self.is_own))

    def values(self, function: FunctionType) -> list[Any]:
        """Its constants, its defaults, what its closure holds, and what it wraps."""
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        held = {name: cell.cell_contents for name, cell in cells if filled(cell)}
        carried = (
            function.__defaults__,
            function.__kwdefaults__,
            held,
            getattr(function, "__wrapped__", None),
        )
        found = self.constants(function) if own(function) else {}
        return [CONSTANTS.of(found), *map(self.carried.of, carried)]

    def constants(self, function: FunctionType) -> dict[str, Any]:
        """The plain data that a function's code names, in its module, in a module of one's own, or of its object's class.

        What functions write to is no constant, nor is what Python sets (`__file__`).
        """
        names = [word for word in global_names(function.__code__) if word[:2] != "__"]
        known = self.scope(function, names)
        found, modules = {name: value for name, value in known.items() if constant(value)}, list[str]()
        for name, module in known.items():
            if isinstance(module, ModuleType) and self.is_own(module.__name__):
                modules.append(module.__name__)
                held = {word: vars(module).get(word, module) for word in names}
                found |= {f"{name}.{word}": value for word, value in held.items() if constant(value)}
        if self.owner is not None:
            held = {word: inspect.getattr_static(self.owner, word, self.owner) for word in names}
            found |= {f"self.{word}": value for word, value in held.items() if constant(value)}
        return unwritten(found, [function.__globals__["__name__"], *modules]) if found else found

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
