"""What a config names as `module:Name`: imported from the folder where the command is started, or from an installed package."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TypeVar

from pydantic import AfterValidator, ValidationInfo

from selfloop.workflows.errors import InputError, blamed, nearest

__all__ = ["NAMED", "load", "load_class", "load_made", "load_rule", "own_or"]

Kind = TypeVar("Kind")

NAMED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
UNTYPED = re.compile(r"A non-annotated attribute was detected: `(\w+) = (.*?)`")  # pydantic's words


def load(path: str, setting: str) -> Any:
    """The object at `path`, which is `module:Name`. setting: what names it, for messages. Raises InputError."""
    module, _, name = path.partition(":")
    if not NAMED.fullmatch(path):
        file = module.removesuffix(".py").strip("/").replace("/", ".")
        guess = f"{file}:{name}"
        way = f"Write {guess}" if guess != path and NAMED.fullmatch(guess) else "Write e.g. mine:Name"
        raise InputError(
            f"{setting}={path} is not module:Name, which names something in a module of Python. {way}"
        )
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # a console script does not look there
    found = import_module(module, name, f"{setting}={path}")
    if not hasattr(found, name):
        own = [word for word, thing in vars(found).items() if getattr(thing, "__module__", "") == module]
        raise InputError(
            f"{setting}={path}: module {module} has no {name!r}.{meant(name, own, module + ':')}"
        )
    return getattr(found, name)


def load_class(path: str, setting: str, base: type[Kind], like: str = "") -> type[Kind]:
    """The class at `path`, which must be one of `base`. like: how such a class looks. Raises InputError."""
    found = load(path, setting)
    if isinstance(found, type) and issubclass(found, base):
        return found
    raise InputError(
        f"{setting}={path} is {kind_in_words(found)}, and no {base.__name__}.{like}{others(path, base)}"
    )


def load_made(path: str, setting: str, base: type[Kind]) -> Kind:
    """The object of `base` at `path`, or one of a class there that needs no settings. Raises InputError."""
    found = load(path, setting)
    return found if isinstance(found, base) else made(load_class(path, setting, base), path, setting)


def load_rule(path: str, setting: str) -> Callable[..., Any]:
    """The function at `path`, or an object that is called like one, or one of a class there. Raises InputError."""
    found = load(path, setting)
    found = made(found, path, setting) if isinstance(found, type) else found
    if not callable(found):
        raise InputError(
            f"{setting}={path} is {kind_in_words(found)}, and a rule is a function of the rows of a prompt and rng"
        )
    return found


def own_or(*words: str) -> AfterValidator:
    """For a recipe's setting that takes one of these words, or `module:name` for something of the user's own."""

    def known(value: str, info: ValidationInfo) -> str:
        if value in words or NAMED.fullmatch(value):
            return value
        near = nearest(value, words)
        way = f". Did you mean {near}?" if near else ""
        known = ", ".join(words)
        raise ValueError(
            f"settings.{info.field_name} is {value!r}, and must be {known}, or module:name for one of your own{way}"
        )

    return AfterValidator(known)


def made(kind: type[Kind], path: str, setting: str) -> Kind:
    try:
        return kind()
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{setting}={path} is a class that cannot be made without settings ({' '.join(str(error).split())}). "
            f"Make one in its module, e.g. mine = {kind.__name__}(…), and name that"
        ) from error


def kind_in_words(found: Any) -> str:
    if isinstance(found, type):
        return f"the class {found.__name__}"
    name = type(found).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def others(path: str, base: type[Any]) -> str:
    """ " Did you mean …?" with a class of this kind that is defined in the same module; empty without one."""
    module = path.partition(":")[0]
    for name, thing in vars(sys.modules[module]).items():
        if isinstance(thing, type) and issubclass(thing, base) and thing.__module__ == module:
            return f" Did you mean {module}:{name}?"
    return ""


def import_module(module: str, name: str, named: str) -> ModuleType:
    """The module; what its import raises is told with its place in the user's file."""
    if module.endswith(".py"):
        raise InputError(f"{named}: a module is named without .py. Write {module.removesuffix('.py')}:{name}")
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing == module or module.startswith(f"{missing}."):
            raise InputError(
                f"{named}: module {module} cannot be imported ({error}); it must be installed, or lie in the folder "
                f"the command is started from ({os.getcwd()}).{meant_module(missing, module, name)}"
            ) from error
        raise InputError(
            f"{named}: module {module} cannot be imported: {error}{blamed(error)}. Install what is missing, or mend the name"
        ) from error
    except (Exception, SystemExit) as error:  # the user's module: it may raise anything
        raise InputError(f"{named}: {told(error, module)}") from error


def told(error: BaseException, module: str) -> str:
    """What went wrong in a module while it was imported, with file and line."""
    place = f" ({error.filename}, line {error.lineno})" if isinstance(error, SyntaxError) else blamed(error)
    said = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    if untyped := UNTYPED.match(said):
        setting, value = untyped.groups()
        return (
            f"the setting `{setting} = {value}`{place} has no type. Write {setting}: {kind_of(value)} = {value}, "
            f"or {setting}: ClassVar = {value} for what is no setting"
        )
    said = error.msg if isinstance(error, SyntaxError) else said
    return f"module {module} cannot be imported: {type(error).__name__}: {said}{place}. Mend it"


def kind_of(value: str) -> str:
    """The type that a value written in a class has, as far as it can be seen."""
    words = {r"-?\d+": "int", r"-?[\d.]+(e-?\d+)?": "float", "True|False": "bool", "['\"].*": "str"}
    return next((kind for pattern, kind in words.items() if re.fullmatch(pattern, value)), "TYPE")


def meant(word: str, known: Sequence[str], start: str = "") -> str:
    """ " Did you mean …?", or what is known."""
    if close := nearest(word, known):
        return f" Did you mean {start}{close}?"
    return f" It has {', '.join(sorted(known)[:8])}" if known else " Nothing is defined in it"


def meant_module(missing: str, module: str, name: str) -> str:
    """ " Did you mean …?" with the module of the nearest name beside the one that is missing; empty without one."""
    above, _, last = missing.rpartition(".")
    places = list(getattr(sys.modules.get(above), "__path__", [])) if above else [os.getcwd()]
    there = [one.name for one in pkgutil.iter_modules(places)]
    close = nearest(last, there)
    if close is None:
        return ""
    right = ".".join(filter(None, [above, close])) + module.removeprefix(missing)
    return f" Did you mean {right}:{name}?"
