"""The source of functions and classes, without what says where it lives, and the names in it: for content keys."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from selfloop.workflows.store.canonical import CONSTANTS, as_text, home, label

__all__ = [
    "functions_of",
    "global_names",
    "has_own_code",
    "imported",
    "imports",
    "members_of",
    "source_of",
    "unwritten",
]

CHANGES = frozenset({"add", "append", "clear", "discard", "extend", "insert", "pop", "popitem", "remove",
                     "setdefault", "update"})  # fmt: skip


# Functions


def has_own_code(function: FunctionType) -> bool:
    """Whether a function's code is of the package it says; a wrapper made by a library says that of what it wraps."""
    return str(function.__globals__.get("__name__")).partition(".")[0] == home(function)


def functions_of(kind: type[Any]) -> Iterator[tuple[str, FunctionType]]:
    """The functions of a class's own package among its attributes: methods, and what properties call."""
    for name, held in vars(kind).items():
        for part in ("", "__func__", "fget", "fset", "func", "function"):
            function = getattr(held, part, None) if part else held
            if inspect.isfunction(function) and home(function) == home(kind):
                yield f"{name}.{part}", function


def members_of(kind: type[Any]) -> dict[str, FunctionType]:
    """The same by name, with what the class inherits of its own package."""
    above = [one for one in reversed(kind.__mro__) if home(one) == home(kind)]
    return {name.partition(".")[0]: function for one in above for name, function in functions_of(one)}


def global_names(code: CodeType) -> Iterator[str]:
    """Every global name in a function's code, with those of the functions inside it."""
    yield from code.co_names
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from global_names(one)


# Sources


def source_of(thing: Any) -> str:
    """The source of a function or class without import statements; its name where there is none. Of a lambda the bytecode,
    too: its line may hold several."""
    if inspect.isclass(thing):
        return without_imports(read_source(thing, "")) or label(thing)
    if not has_own_code(thing):
        return label(thing)
    text = source_of_code(thing)
    if not text or thing.__name__ == "<lambda>":
        return text + as_text(bytecode(thing.__code__))
    return without_imports(text)


def source_of_code(function: FunctionType) -> str:
    return read_source(function.__code__, function.__code__.co_filename)


@functools.lru_cache(maxsize=8192)
def read_source(thing: Any, file: str) -> str:
    """file: codes of two files can be equal."""
    try:
        return textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):
        return ""


def bytecode(code: CodeType) -> list[Any]:
    inner = [bytecode(one) if isinstance(one, CodeType) else CONSTANTS.of(one) for one in code.co_consts]
    return [code.co_code.hex(), code.co_names, inner]


# Import statements


def imports(text: str) -> list[ast.Import | ast.ImportFrom]:
    """The import statements of a source; none where it is a piece that cannot be read alone (a lambda's line)."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return []
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def without_imports(text: str) -> str:
    """A source without its import statements, and without the lines that only held them."""
    lines = text.splitlines(keepends=True)
    for node in sorted(imports(text), key=lambda node: (-node.lineno, -node.col_offset)):  # the last first
        first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
        before = lines[first].encode()[: node.col_offset].decode()  # columns count bytes
        after = lines[last].encode()[node.end_col_offset :].decode()
        left = f"{before}{after}"
        lines[first : last + 1] = [left] if left.strip() else []
    return "".join(lines)


def imported(function: FunctionType, is_own: Callable[[str], bool]) -> Iterator[tuple[str, Any]]:
    """What the import statements inside a function bind, of modules that are one's own."""
    text = source_of_code(function)
    for node in imports(text) if "import " in text else ():
        if isinstance(node, ast.ImportFrom):
            path = absolute(node, str(function.__globals__.get("__package__") or ""))
            if is_own(path):
                yield from imported_from(path, node.names)
            continue
        for name in node.names:
            if is_own(name.name):
                module, top = load(name.name), name.name.partition(".")[0]
                yield (name.asname, module) if name.asname else (top, load(top))


def imported_from(path: str, names: list[ast.alias]) -> Iterator[tuple[str, Any]]:
    """What `from path import names` binds: attributes of the module, else modules in it."""
    module = load(path)
    for name in names:
        held = vars(module).get(name.name) if module else None
        yield name.asname or name.name, load(f"{path}.{name.name}") if held is None else held


def absolute(node: ast.ImportFrom, package: str) -> str:
    """The module that `from … import` names, from a module of this package."""
    above = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
    return ".".join(filter(None, [above if node.level else "", node.module or ""]))


def load(name: str) -> ModuleType | None:
    """A module of one's own; None where it cannot be imported: the function that wants it will say so."""
    try:
        return importlib.import_module(name)
    except Exception:
        return None


# What code writes to


def unwritten(found: dict[str, Any], modules: list[str]) -> dict[str, Any]:
    """Without the names that functions of these modules write to: what they hold depends on when one looks."""
    written = frozenset[str]().union(*map(written_in, modules)) if found else frozenset[str]()
    return {name: value for name, value in found.items() if name.rpartition(".")[2] not in written}


@functools.cache
def written_in(module: str) -> frozenset[str]:
    """The globals and attributes that functions of a module rebind, or whose items they change."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (KeyError, OSError, TypeError, SyntaxError):  # typed in, or without a file
        return frozenset()
    functions = [one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    return frozenset(name for one in functions for inner in ast.walk(one) for name in written_by(inner))


def written_by(node: ast.AST) -> list[str]:
    """The names that a statement or expression writes to."""
    match node:
        case ast.Global(names=names):
            return names
        case ast.Attribute(value=ast.Name(id=owner), attr=name, ctx=ast.Store()) if owner != "self":
            return [name]
        case ast.Call(func=ast.Attribute(value=held, attr=change)) if change in CHANGES:  # SEEN.append(…)
            return [last_name(held)]
        case ast.Subscript(value=held, ctx=ast.Store() | ast.Del()):  # SEEN[…] = …
            return [last_name(held)]
        case _:
            return []


def last_name(held: ast.AST) -> str:
    return getattr(held, "id", "") or getattr(held, "attr", "")
