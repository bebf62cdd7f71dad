"""Values as JSON that is the same in every process, for content keys: no address, no order of a set.

    {"b": (1, 2), "a": {3}}     {"a": [3], "b": [1, 2]}
    re.compile("a")             ["re.Pattern", "a", 32]
    rule                        ["rule", CODE]
    partial(rule, 1, k=2)       ["partial", ["rule", CODE], [1], {"k": 2}]
    Colour.RED                  ["Colour", CODE, "RED"]
    Judge(level=1)              ["Judge", CODE, {"level": 1}]
    Judge(level=1).parse        [{"level": 1}, "Judge.parse", CODE]
    object()                    ["object", CODE]

CODE is what is said of a function or of a class: in keys its hash.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from types import BuiltinFunctionType, MethodWrapperType, ModuleType
from typing import Any

import numpy as np
from pydantic import BaseModel

__all__ = ["CACHED", "CONSTANTS", "HERE", "Canonical", "as_text", "home", "installed", "is_constant", "label"]

DATA = (str, int, float, complex, bytes, re.Pattern, Enum, list, tuple, dict, set, frozenset, type(None))
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
HERE = __name__.partition(".")[0]
DEEPEST = 100  # containers and objects inside one another; what is deeper counts by its type


def home(target: Any) -> str:
    """The package of a function, class or object."""
    return str(getattr(target, "__module__", "")).partition(".")[0]


@functools.cache
def installed(module: str) -> bool:
    """Whether a module is Python's own or a package that was installed, Selfloop aside; the same before it is imported."""
    top = module.partition(".")[0]
    path = getattr(sys.modules.get(module), "__file__", None)
    if path is None:
        try:
            path = getattr(importlib.util.find_spec(top), "origin", None)
        except (ImportError, ValueError):  # a name that is no module's, or a module without a spec
            path = None
    path = path or ""
    return top in sys.stdlib_module_names or (top != HERE and bool(re.search("(site|dist)-packages", path)))


CACHED = type(installed)  # what functools.cache makes


@dataclass(frozen=True)
class Canonical:
    """Puts values into JSON that is the same in every process.

    code: what is said of a function or class (of a method, it is given the object's class too). objects: whether objects that
    can change are told by their fields.
    """

    code: Callable[..., str]
    objects: bool = True

    def of(self, value: Any, above: tuple[int, ...] = ()) -> Any:
        """above: the containers and objects that hold the value, outermost first, so that a circle ends."""
        if value is None or isinstance(value, str | int | float):
            return value
        if id(value) in above:
            return ["above", len(above) - above.index(id(value))]
        if len(above) > DEEPEST:
            return type(value).__qualname__
        above = (*above, id(value))
        if isinstance(value, list | tuple):
            return [self.of(item, above) for item in value]
        if isinstance(value, dict):
            return self.of_dict(value, above)
        if isinstance(value, set | frozenset):
            return sorted((self.of(item, above) for item in value), key=as_text)
        if isinstance(value, re.Pattern):  # its repr is cut
            return ["re.Pattern", self.of(value.pattern), value.flags]
        return self.of_callable(value, above) if callable(value) else self.of_object(value, above)

    def of_dict(self, value: Mapping[Any, Any], above: tuple[int, ...]) -> Any:
        """An object where all names are texts, else sorted pairs."""
        if all(isinstance(name, str) for name in value):
            return {name: self.of(item, above) for name, item in sorted(value.items())}
        pairs = ([self.of(name, above), self.of(item, above)] for name, item in value.items())
        return sorted(pairs, key=as_text)

    def of_callable(self, value: Any, above: tuple[int, ...]) -> Any:
        """A function, a class, a method with its object, a partial with its arguments, or an object that is called."""
        if inspect.isfunction(value) or inspect.isclass(value):
            return [value.__qualname__, self.code(value)]
        if inspect.ismethod(value):
            return self.of_method(value.__self__, value.__func__, above)
        if isinstance(value, functools.partial):
            return ["partial", *(self.of(part, above) for part in (value.func, value.args, value.keywords))]
        if isinstance(value, BuiltinFunctionType | MethodWrapperType):
            bound = None if isinstance(value.__self__, ModuleType) else self.of(value.__self__, above)
            return [value.__qualname__, getattr(value, "__module__", None), bound]
        if isinstance(value, CACHED):
            return self.of(value.__wrapped__, above)
        return self.of_object(value, above)

    def of_method(self, bound: Any, function: Any, above: tuple[int, ...]) -> Any:
        """A method by its object's fields (none of a class), and what it reaches of its class."""
        if inspect.isclass(bound):
            return [None, function.__qualname__, self.code(function, bound)]
        return [self.of(fields_of(bound), above), function.__qualname__, self.code(function, type(bound))]

    def of_object(self, value: Any, above: tuple[int, ...]) -> Any:
        """By type and fields; without any by a repr that holds no address; else by the type alone."""
        kind = type(value)
        if not self.objects and not keeps_fields(value):
            return label(kind)
        if isinstance(value, Enum):
            return [kind.__qualname__, self.code(kind), value.name]
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            content = hashlib.sha256(value.tobytes()).hexdigest()
            return ["ndarray", str(value.dtype), list(value.shape), content]
        if held := fields_of(value):
            return [kind.__qualname__, self.code(kind), self.of(held, above)]
        has_repr = not declares_fields(value) and kind.__repr__ is not object.__repr__
        if has_repr and not ADDRESS.search(text := repr(value)):
            return text
        return [kind.__qualname__, self.code(kind)]


def as_text(known: Any) -> str:
    """Such JSON as one string."""
    return json.dumps(known, sort_keys=True)


def label(thing: Any, *_: Any) -> str:
    """The name of a function or class, with its module where that is installed: what is one's own may move."""
    module = str(thing.__module__)
    return f"{module}.{thing.__qualname__}" if installed(module) else thing.__qualname__


CONSTANTS = Canonical(label, objects=False)


def is_constant(value: Any) -> bool:
    """Whether a global or an attribute of a class is plain data (or an object that keeps its fields)."""
    return isinstance(value, DATA) or keeps_fields(value)


def keeps_fields(value: Any) -> bool:
    """Whether the value declares its fields and they cannot change."""
    if isinstance(value, BaseModel):
        return bool(value.model_config.get("frozen"))
    return isinstance(value, Enum) or (declares_fields(value) and type(value).__dataclass_params__.frozen)


def declares_fields(value: Any) -> bool:
    return isinstance(value, BaseModel) or (is_dataclass(value) and not isinstance(value, type))


def fields_of(value: Any) -> Any:
    """The fields of an object; what would be pickled where it declares none. None for an object of an installed package,
    unless it is called: such a one may hold anything."""
    kind = type(value)
    if isinstance(value, BaseModel):
        content = getattr(value, "content", None)  # a model may say itself what counts
        if callable(content):
            return content()
        names = [name for name, field in kind.model_fields.items() if not field.exclude]
        return {name: getattr(value, name) for name in names} | (value.model_extra or {})
    if is_dataclass(value):
        return {field.name: getattr(value, field.name, None) for field in fields(value)}
    if home(kind) in sys.stdlib_module_names or (installed(str(kind.__module__)) and not callable(value)):
        return None
    try:
        state = value.__getstate__()
    except Exception:  # the user's own code: it may refuse
        return None
    if isinstance(state, tuple):  # of an object with slots: (what is in its dict, what is in its slots)
        return [without_cached(kind, part) for part in state]
    return without_cached(kind, state)


def without_cached(kind: type[Any], state: Any) -> Any:
    """A state without what its cached properties have found so far."""
    if not isinstance(state, dict):
        return state
    cached = functools.cached_property
    return {
        name: item for name, item in state.items() if not isinstance(getattr(kind, str(name), None), cached)
    }
