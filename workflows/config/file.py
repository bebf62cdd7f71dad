"""Config files and overrides: from sparse YAML and `key.sub=value` to a `Config`, with every mistake named and placed.

`load_config` gives a valid `Config`; `read_config` also gives what can be checked further when something is wrong.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from selfloop.workflows.config.sentences import describe, first_line
from selfloop.workflows.config.settings import Config
from selfloop.workflows.errors import InputError, nearest

__all__ = [
    "Draft",
    "config_names",
    "load_config",
    "read_again",
    "read_config",
]

KEY = re.compile(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*")


class Draft(BaseModel):
    """A config as far as it can be read. broken: the keys whose values were wrong and are left at their defaults."""

    model_config = ConfigDict(frozen=True)

    config: Config | None
    problems: list[str]
    broken: frozenset[str] = frozenset()


def find_config(name: str) -> tuple[str, str]:
    """(what to call it, its text) of a config: a file, the config.json of a run, or a name of `selfloop.configs`. Raises
    InputError."""
    path = Path(name).expanduser()
    if path.is_dir():
        raise InputError(f"{name} is a folder, and a config is a YAML file. Name the file in it")
    if path.is_file():
        try:
            return name, text_of(path)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{name} cannot be read as UTF-8 text ({error}). Name a YAML file of your own"
            ) from error
    packaged = resources.files("selfloop.configs").joinpath(f"{path.stem}.yaml")
    if path.parent.as_posix() in (".", "configs") and packaged.is_file():
        return name, packaged.read_text(encoding="utf-8")
    names = config_names()
    guess = nearest(path.stem, names)
    way = f"Did you mean {guess}?" if guess else "Give the path of a YAML file"
    raise InputError(
        f"there is no config {name}: no such file, and no config of that name. {way} Known names: {', '.join(names)}"
    )


def text_of(path: Path) -> str:
    """A config file's text; that of a run's config.json is what it holds, which YAML reads."""
    text = path.read_text(encoding="utf-8")
    if path.name == "config.json":
        with contextlib.suppress(json.JSONDecodeError):
            held = json.loads(text)
            if isinstance(held, dict) and held.keys() >= {"format", "config"}:
                return plain(held["config"])
    return text


def plain(held: Any) -> str:
    """A config as YAML in which nothing refers to anything: `${` of a text (a chat template's) is no reference."""
    text = json.dumps(held, indent=1, ensure_ascii=False)
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\\\${", text)


def config_names() -> list[str]:
    """Names of the configs that come with Selfloop."""
    files = resources.files("selfloop.configs").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


@dataclass
class Origin:
    """Where a key was written, for messages: a line of the file, or the command line."""

    file: str
    lines: dict[str, int] = field(default_factory=dict)
    overridden: set[str] = field(default_factory=set)

    def __call__(self, key: str, text: str) -> str:
        parts = key.split(".")
        above = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
        within = any(path.startswith(f"{key}.") for path in self.overridden)
        if within or any(path in self.overridden for path in above):
            return f"command line: {text}"
        line = next((self.lines[path] for path in above if path in self.lines), None)
        return f"{self.file}, line {line}: {text}" if line else f"{self.file}: {text}"


def load_config(name: str, overrides: Sequence[str] | None = None) -> Config:
    """The config of a YAML file (or of a name in `selfloop.configs`) with `key.sub=value` overrides.

    Raises InputError that holds every mistake at once.
    """
    draft = read_config(name, overrides)
    if draft.problems or draft.config is None:
        raise InputError.of(draft.problems)
    return draft.config


def read_config(name: str, overrides: Sequence[str] | None = None) -> Draft:
    """Like `load_config`, but mistakes are returned beside what is left, so that further checks can be reported too."""
    try:
        shown, text = find_config(name)
        origin = Origin(shown)
        raw, problems = merge(text, overrides or [], origin)
    except InputError as error:
        return Draft(config=None, problems=[str(error)])
    open_keys = [key for key, value in leaves(raw) if value == "???"]
    problems += [origin(key, f"{key} is left open (???). Give it, e.g. {key}=VALUE") for key in open_keys]
    broken = set(open_keys)
    for key in open_keys:
        remove(raw, key.split("."))
    config, more = validate(raw, origin, broken)
    return Draft(config=config, problems=problems + more, broken=frozenset(broken))


def read_again(config: Config, overrides: Sequence[str], shown: str) -> Draft:
    """A run's own config with overrides. shown: what messages call it."""
    from omegaconf import DictConfig, OmegaConf

    origin, broken = Origin(shown), set[str]()
    tree = OmegaConf.create(plain(config.model_dump(mode="json")))
    problems = override(tree, overrides, origin)
    raw = cast(dict[str, Any], OmegaConf.to_container(cast(DictConfig, tree), resolve=True))
    changed, more = validate(raw, origin, broken)
    return Draft(config=changed, problems=problems + more, broken=frozenset(broken))


def merge(text: str, overrides: Sequence[str], origin: Origin) -> tuple[dict[str, Any], list[str]]:
    """The file's mapping with the overrides set, and what is wrong with these. Raises InputError for bad YAML."""
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    tree = parse_yaml(text, origin)
    problems = override(tree, overrides, origin)
    try:
        raw = OmegaConf.to_container(cast(DictConfig, tree), resolve=True)
    except OmegaConfBaseException as error:
        raise InputError(
            f"{origin.file}: {first_line(error)}. Set what it refers to, or write the value itself"
        ) from error
    return cast(dict[str, Any], raw), problems


def override(tree: Any, overrides: Sequence[str], origin: Origin) -> list[str]:
    """Set `key.sub=value` in an OmegaConf tree; returns what is wrong with them."""
    from omegaconf import OmegaConf

    problems: list[str] = []
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals or not KEY.fullmatch(key):
            problems.append(
                f"command line: {item!r} is not a setting. Write key.sub=value, e.g. trainer.lr=1e-5"
            )
            continue
        problem = blocked(tree, key)
        if problem:
            problems.append(f"command line: {problem}")
            continue
        try:
            parsed: Any = OmegaConf.select(OmegaConf.from_dotlist([f"value={value}"]), "value")
        except Exception as error:  # the YAML of a value: PyYAML and OmegaConf raise many kinds
            problems.append(
                f"command line: the value of {key} is not YAML ({first_line(error)}). Quote it: '{key}=\"…\"'"
            )
            continue
        origin.overridden.add(key)
        OmegaConf.update(tree, key, shorthand(key, parsed), merge=False, force_add=True)
    return problems


def parse_yaml(text: str, origin: Origin) -> Any:
    """An OmegaConf tree of a YAML mapping, with its lines noted in `origin`."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        tree = OmegaConf.create(text) if text.strip() and node is not None else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        what = str(getattr(error, "problem", None) or first_line(error))
        twice = re.match(r"found duplicate key (.*)", what)
        text = (
            f"the key {twice[1]} is written twice. Keep one"
            if twice
            else f"this is not YAML: {what}. Mend the line"
        )
        raise InputError(f"{origin.file}{where}: {text}") from error
    except OmegaConfBaseException as error:
        raise InputError(
            f"{origin.file}: {first_line(error)}. Where a text is meant, write its ${{ as \\${{"
        ) from error
    if tree is None:
        raise InputError(f"{origin.file} is empty. A config needs at least: recipe: self-rewarding")
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{origin.file} must hold settings (key: value lines), and holds something else")
    origin.lines.update(key_lines(node))
    for key in ("prompts", "trainer.schedule", *(f"data.{name}" for name in names_under(tree, "data"))):
        value = OmegaConf.select(tree, key, throw_on_resolution_failure=False)
        if isinstance(value, str) and value != "???":
            OmegaConf.update(tree, key, shorthand(key, value), merge=False)
    return tree


def key_lines(node: Any, path: str = "") -> dict[str, int]:
    """The line of every key of a YAML mapping."""
    lines: dict[str, int] = {}
    for name, value in node.value:
        key = f"{path}.{name.value}" if path else str(name.value)
        lines[key] = name.start_mark.line + 1
        if type(value) is type(node):
            lines |= key_lines(value, key)
    return lines


def names_under(tree: Any, key: str) -> list[str]:
    from omegaconf import DictConfig, OmegaConf

    value = OmegaConf.select(tree, key, throw_on_resolution_failure=False)
    return [str(name) for name in value] if isinstance(value, DictConfig) else []


def shorthand(key: str, value: Any) -> Any:
    """`prompts=data.jsonl` means `prompts.source=data.jsonl` and nothing else of the old prompts."""
    if not isinstance(value, str):
        return value
    if key == "trainer.schedule":
        return {"kind": value}
    parts = key.split(".")
    names_source = parts == ["prompts"] or (len(parts) == 2 and parts[0] == "data")
    return {"source": value} if names_source else value


def blocked(tree: Any, key: str) -> str | None:
    """Why a key cannot be set: something above it is a value, not a group (OmegaConf would replace it silently)."""
    from omegaconf import DictConfig, OmegaConf

    parts = key.split(".")
    for count in range(1, len(parts)):
        above = ".".join(parts[:count])
        value = OmegaConf.select(tree, above, throw_on_resolution_failure=False)
        if value is not None and not isinstance(value, DictConfig):
            way = (
                f"Did you mean settings.{'.'.join(parts[1:])}?"
                if above == "recipe"
                else f"Set {above} itself"
            )
            return f"{key} cannot be set, because {above} is the value {value!r}, not a group. {way}"
    return None


def leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        key = f"{path}.{name}" if path else str(name)
        if isinstance(value, Mapping):
            yield from leaves(value, key)
        else:
            yield key, value


def validate(raw: dict[str, Any], origin: Origin, broken: set[str]) -> tuple[Config | None, list[str]]:
    """The config, with wrong values left at their defaults (their keys go to `broken`), and all problems."""
    from selfloop.workflows.recipes import find_method

    problems: list[str] = []
    recipe, found = raw.get("recipe"), None
    if isinstance(recipe, str):
        try:
            found = find_method(recipe)
            wrong = [] if found else [unknown_recipe(recipe)]
        except InputError as error:
            wrong = [str(error)]
        problems += [origin("recipe", text) for text in wrong]
        broken.update(["recipe"] if wrong else [])
    settings = raw.get("settings") or {}
    if found is not None and isinstance(recipe, str) and isinstance(settings, Mapping):
        settings, wrong = recipe_settings(found, dict(settings), recipe, origin)
        broken.update(["settings"] if wrong else [])
        raw = {**raw, "settings": settings}
        problems += wrong
    for _ in range(3):  # mending one mistake can uncover another, e.g. a rule across fields
        try:
            return Config.model_validate(raw), problems
        except ValidationError as error:
            raw = json.loads(json.dumps(raw, default=str))
            for item in error.errors():
                key, text = describe(item, Config)
                if key == "recipe" and item["type"] != "missing":
                    broken.add("recipe")
                problems.append(origin(key, text))
                broken.add(key)
                remove(raw, [str(part) for part in item["loc"]])
            raw.setdefault("recipe", "")
    return None, problems


def unknown_recipe(slug: str) -> str:
    from selfloop.workflows.recipes import RECIPES

    guess = nearest(slug, list(RECIPES), 0.4)
    way = f"Did you mean {guess}?" if guess else "`selfloop methods` lists them"
    return f"recipe is {slug!r}, and there is no such method. {way}"


def recipe_settings(
    recipe: type[BaseModel], settings: dict[str, Any], slug: str, origin: Origin
) -> tuple[dict[str, Any], list[str]]:
    """The settings in the recipe's own types (only those that were given), and what is wrong with them."""
    try:
        return recipe.model_validate(settings).model_dump(mode="json", exclude_unset=True), []
    except InputError as error:  # of a setting that names something of the user's own
        return {}, [origin("settings", str(error))]
    except ValidationError as error:
        found = [describe(item, recipe, "settings", f" of {slug}") for item in error.errors()]
        return {}, [origin(key, text) for key, text in found]


def remove(tree: dict[str, Any], path: Sequence[str]) -> None:
    """Drop a key, or for a rule across fields the group; a list as a whole."""
    if not path:
        tree.clear()
        return
    for part in path[:-1]:
        below = tree.get(part)
        if not isinstance(below, dict):
            break
        tree, path = below, path[1:]
    tree.pop(path[0], None)
