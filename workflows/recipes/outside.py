"""Methods from outside: a class that a config names as `module:Class`, or an entry point of an installed package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points

from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError

from selfloop.workflows.errors import InputError
from selfloop.workflows.flow.recipe import Recipe
from selfloop.workflows.outside.load import load_class

__all__ = ["GROUP", "clashes", "find_in", "installed_methods", "load_method", "origin_of"]

GROUP = "selfloop.recipes"
"""Entry points of this group name methods: `my-method = "package.module:Class"`."""


def find_in(shipped: Mapping[str, type[Recipe]], name: str) -> type[Recipe] | None:
    """The method of a slug or at `module:Class`; None for an unknown slug. Raises InputError for one that cannot be had."""
    if ":" in name:
        return load_method(name)
    points = installed_methods().get(name, [])
    if wrong := clashes(shipped, name, points):
        raise InputError(f"recipe is {name!r}, and {wrong}")
    return load_method(points[0].value) if points else shipped.get(name)


def clashes(shipped: Mapping[str, type[Recipe]], name: str, points: Sequence[EntryPoint]) -> str | None:
    """What is wrong with a slug that several methods have."""
    if len(points) + (name in shipped) < 2:
        return None
    own = [f"{shipped[name].__module__}:{shipped[name].__name__} (Selfloop's own)"] if name in shipped else []
    several = " and ".join([*own, *(f"{one.value} ({origin_of(one)})" for one in points)])
    return f"several methods have that name: {several}. Write the one you mean as module:Class, or uninstall the other's package"


def installed_methods() -> dict[str, list[EntryPoint]]:
    """What installed packages give, by slug; several of one name are told apart by whoever asks for it."""
    found: dict[str, list[EntryPoint]] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda one: (one.name, one.value)):
        found.setdefault(point.name, []).append(point)
    return found


def origin_of(point: EntryPoint) -> str:
    """The package that an entry point comes from, with its version."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"


LIKE = " A method is a class like `class Mine(Recipe)` with `iteration(self, it)`."


def load_method(path: str) -> type[Recipe]:
    """The method at `module:Class`. Raises InputError."""
    found = load_class(path, "recipe", Recipe, LIKE)
    if found.iteration is Recipe.iteration:
        raise InputError(
            f"recipe={path} has no iteration(self, it), which makes the graph of an iteration. Write it, or name a class "
            "that has it"
        )
    try:
        found.model_rebuild()
    except (PydanticUndefinedAnnotation, PydanticUserError) as error:
        said = str(error).splitlines()[0]
        raise InputError(
            f"recipe={path}: the type of a setting cannot be read: {said}. Import it in the module itself, not under "
            "TYPE_CHECKING"
        ) from error
    return found
