"""Methods from outside: a class that a config names as `module:Class`, or an entry point of an installed package."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError

from selfloop.workflows.errors import InputError
from selfloop.workflows.flow.recipe import Recipe
from selfloop.workflows.outside.load import load

__all__ = ["GROUP", "find_in", "installed_methods", "origin_of"]

GROUP = "selfloop.recipes"
"""Entry points of this group name methods: `my-method = "package.module:Class"`."""


def find_in(shipped: Mapping[str, type[Recipe]], name: str) -> type[Recipe] | None:
    """The method of a slug or at `module:Class`; None for an unknown slug. Raises InputError for one that cannot be had."""
    if ":" in name:
        return checked(load(name, "recipe"), name)
    points = installed_methods().get(name, [])
    if len(points) + (name in shipped) > 1:
        own = (
            [f"{shipped[name].__module__}:{shipped[name].__name__} (Selfloop's own)"]
            if name in shipped
            else []
        )
        several = " and ".join([*own, *(f"{one.value} ({origin_of(one)})" for one in points)])
        raise InputError(
            f"recipe is {name!r}, and several methods have that name: {several}. Write the one you mean as module:Class, "
            "or uninstall the other's package"
        )
    return checked(load(points[0].value, "recipe"), points[0].value) if points else shipped.get(name)


def installed_methods() -> dict[str, list[EntryPoint]]:
    """What installed packages give, by slug; several of one name are told apart by whoever asks for it."""
    found: dict[str, list[EntryPoint]] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda one: (one.name, one.value)):
        found.setdefault(point.name, []).append(point)
    return found


def origin_of(point: EntryPoint) -> str:
    """The package that an entry point comes from, with its version."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"


def checked(found: Any, path: str) -> type[Recipe]:
    """What was loaded, if it is a method."""
    named = f"recipe={path}"
    if not isinstance(found, type) or not issubclass(found, Recipe):
        what = f"the class {found.__name__}" if isinstance(found, type) else f"a {type(found).__name__}"
        raise InputError(
            f"{named} is {what}, and no Recipe. A method is a class like `class Mine(Recipe)` with "
            f"`iteration(self, it)`.{other_recipes(path)}"
        )
    if found.iteration is Recipe.iteration:
        raise InputError(
            f"{named} has no iteration(self, it), which makes the graph of an iteration.{other_recipes(path)}"
        )
    try:
        found.model_rebuild()
    except (PydanticUndefinedAnnotation, PydanticUserError) as error:
        said = str(error).splitlines()[0]
        raise InputError(
            f"{named}: the type of a setting cannot be read: {said}. Import it in the module itself, not under TYPE_CHECKING"
        ) from error
    return found


def other_recipes(path: str) -> str:
    """ " Did you mean …?" with a method of the same module; empty without one."""
    import sys

    module = path.partition(":")[0]
    there = [
        name for name, thing in vars(sys.modules[module]).items()
        if isinstance(thing, type) and issubclass(thing, Recipe) and thing.iteration is not Recipe.iteration
    ]  # fmt: skip
    return f" Did you mean {module}:{there[0]}?" if there else ""
