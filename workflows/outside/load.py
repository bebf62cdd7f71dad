"""What a config names as `module:Name`: imported from the folder where the command is started, or from an installed package."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from selfloop.workflows.errors import InputError, blamed, nearest

__all__ = ["NAMED", "load"]

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


def meant(word: str, known: Sequence[str], start: str = "", end: str = "") -> str:
    """ " Did you mean …?", or what is known."""
    if close := nearest(word, known):
        return f" Did you mean {start}{close}{end}?"
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
