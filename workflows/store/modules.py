"""The user's own modules: those that a config names as `module:Name`, with all that they import of local modules.

A run keeps a copy of them in `code/`, never of the working folder and never of an installed package. The copy is imported
where an original is gone, and by workers on machines without the working folder. Only import statements are followed, and
only `.py` files are copied: a file that a module reads, or a module that it imports by a computed name, is not.
"""

from __future__ import annotations

import ast
import importlib
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.machinery import ModuleSpec
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

from selfloop.workflows.outside.load import NAMED
from selfloop.workflows.store.canonical import HERE
from selfloop.workflows.store.code import imports
from selfloop.workflows.store.disk import storing
from selfloop.workflows.store.folder import RunFolder

__all__ = ["changed_modules", "code_of", "keep_modules", "local_modules", "reach_modules"]

LIBRARIES = {"site-packages", "dist-packages"}


def code_of(run: RunFolder) -> Path:
    """Where a run keeps its copy."""
    return run.path / "code"


def named_modules(value: Any) -> Iterator[str]:
    """The modules that a config, or a part of one, names as `module:Name`."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from named_modules(item)
    elif isinstance(value, str) and NAMED.fullmatch(value):
        yield value.partition(":")[0]


def local_modules(names: Iterable[str]) -> tuple[dict[str, Path], set[str]]:
    """(the file of each local module that these are or import, the modules that must be there and are not).

    Nothing is imported to find out.
    """
    files, missing, seen = dict[str, Path](), set[str](), set[str]()
    waiting = [
        (name, True) for name in names
    ]  # and whether it must be a module: `from a import b` may name a function
    while waiting:
        name, must = waiting.pop()
        spec = spec_of(name)
        if spec is None and must:
            missing.add(name)
        if spec is None or name in seen or not is_local(name, spec):
            continue
        seen.add(name)
        if "." in name:
            waiting.append((name.rpartition(".")[0], True))  # it is imported first
        if (spec.origin or "").endswith(".py"):
            files[name] = Path(str(spec.origin)).resolve()
            waiting += imported_by(name, spec)
    return files, missing


def spec_of(name: str) -> ModuleSpec | None:
    """Where a module would be imported from; unlike importlib's own way, its packages are not imported for that."""
    spec, parts = None, name.split(".")
    for count in range(1, len(parts) + 1):
        path = spec.submodule_search_locations if spec else None
        if spec is not None and path is None:  # no package
            return None
        asked = (finder.find_spec(".".join(parts[:count]), path, None) for finder in sys.meta_path)
        spec = next((found for found in asked if found is not None), None)
        if spec is None:
            return None
    return spec


def is_local(name: str, spec: ModuleSpec) -> bool:
    """Whether a module is neither Python's, nor Selfloop's, nor of an installed package."""
    top = name.partition(".")[0]
    return (
        top != HERE
        and top not in sys.stdlib_module_names
        and LIBRARIES.isdisjoint(Path(spec.origin or "").parts)
    )


def imported_by(name: str, spec: ModuleSpec) -> Iterator[tuple[str, bool]]:
    """What a module imports, wherever in its text, each with whether it must be a module."""
    package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
    text = Path(str(spec.origin)).read_text(encoding="utf-8", errors="replace")
    for node in imports(text):
        for one in node.names:
            if isinstance(node, ast.Import):
                yield one.name, True
                continue
            path = "." * node.level + (node.module or "")
            with suppress(ImportError):  # dots that lead out of the package: the import will say so
                above = resolve_name(path, package) if node.level else path
                yield above, True
                yield f"{above}.{one.name}", False


def place_of(name: str, file: Path) -> Path:
    """Where the copy of a module lies in `code/`."""
    parts = name.split(".")
    return Path(*parts, "__init__.py") if file.name == "__init__.py" else Path(*parts[:-1], f"{parts[-1]}.py")


def copied(code: Path) -> dict[str, Path]:
    """The modules in a run's copy by name, with their files."""
    files = {path.relative_to(code): path for path in sorted(code.rglob("*.py"))}
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__"): files[path] for path in files}


def is_used(code: Path) -> bool:
    """Whether this process imports the copy, because an original is gone."""
    return str(code) in sys.path


def keep_modules(run: RunFolder, config: Mapping[str, Any]) -> None:
    """Copy the modules that the config names as they are now; what the run last went on with is replaced."""
    code = code_of(run)
    files, _ = local_modules(named_modules(config))
    texts = {place_of(name, file): file.read_bytes() for name, file in files.items()}
    before = {path.relative_to(code): path.read_bytes() for path in code.rglob("*.py")}
    if is_used(code) or not texts or texts == before:
        return
    with storing(run.path, "code", sum(map(len, texts.values()))):
        fresh = code.with_name(".code.tmp")
        shutil.rmtree(fresh, ignore_errors=True)
        for place, text in texts.items():
            (fresh / place).parent.mkdir(parents=True, exist_ok=True)
            (fresh / place).write_bytes(text)
        shutil.rmtree(code, ignore_errors=True)
        fresh.rename(code)
    if before:
        run.event("code", modules=sorted(files))


def changed_modules(run: RunFolder, config: Mapping[str, Any]) -> list[str]:
    """The sentence for modules that are others than those which the run last went on with; none where it has no copy."""
    code = code_of(run)
    if is_used(code) or not code.is_dir():
        return []
    now, _ = local_modules(named_modules(config))
    other = [name for name, file in copied(code).items()
             if name not in now or now[name].read_bytes() != file.read_bytes()]  # fmt: skip
    if not other:
        return []
    return [
        (
            f"{', '.join(other)} changed since this run last went on ({code} has it as it was): what is complete stays, a node "
            "that was begun goes on where the functions that it uses are the same, and all else is made by the code of now"
        )
    ]


def reach_modules(run: RunFolder) -> list[str]:
    """Let the modules of a run be found: in the folder that it was started in, or where one of them is gone, all in the run's
    copy. Returns what is to be said of it."""
    code = code_of(run)
    if is_used(code) or not code.is_dir():
        return []
    start = run.started_in()
    here = start if start is not None and start.is_dir() else Path.cwd()
    if str(here) not in sys.path:
        sys.path.append(str(here))
    kept = copied(code)
    _, missing = local_modules(named_modules(run.config()))
    gone = sorted(missing & kept.keys())
    if not gone:
        return []
    sys.path.insert(0, str(code))  # before what is left of a package of which a part is gone
    importlib.invalidate_caches()
    what = (
        f"module {gone[0]} of this run is" if len(gone) == 1 else f"modules {', '.join(gone)} of this run are"
    )
    return [f"the {what} gone, so the copies in {code} are used"]
