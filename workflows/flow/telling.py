"""Words for what a node did to the rows of a prompt: what ops are told, and how they name values and follow rows."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

__all__ = ["Seen", "Told", "by_place", "counted", "named", "number", "same_rows", "settings_of"]

Seen = dict[str, Any]  # a stored row, read again


@dataclass(frozen=True)
class Told:
    """A node, and what became of some rows of a prompt there: as they came, as they are now, all rows of the prompt, and
    rows of prompts that were made from it. complete: whether the node has ended. origin: where a named source is from."""

    node: str
    inputs: tuple[str, ...]
    model: str
    before: list[Seen]
    rows: list[Seen]
    group: list[Seen]
    opened: list[Seen]
    complete: bool
    evaluation: bool
    origin: Callable[[str], str]


def named(value: Any, everything: bool = False) -> str:
    """A judge, rule, objective or function in words: its name, with those of its settings that are no defaults (or all)."""
    if isinstance(value, BaseModel):
        settings = settings_of(value.model_dump(exclude_defaults=not everything))
        return f"{type(value).__name__}({settings})" if settings else type(value).__name__
    owner = getattr(value, "__self__", None)
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return f"{name} of {type(owner).__name__}" if owner is not None else name


def settings_of(settings: Mapping[str, Any]) -> str:
    """Settings or metrics in a line."""
    return ", ".join(f"{name}={number(value)}" for name, value in settings.items())


def number(value: Any) -> str:
    """Four digits of a float; anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def counted(rows: list[Seen], what: str = "row") -> str:
    """3 rows, 1 row."""
    return f"{len(rows)} {what}{'' if len(rows) == 1 else 's'}"


def identity(row: Seen) -> Hashable:
    """What stays the same of a row from node to node: its pair's tokens, or which sample it is of the node that made it."""
    if "chosen_ids" in row:
        return tuple(row["chosen_ids"] or ()), tuple(row["rejected_ids"] or ())
    if row.get("node") is None:
        return None
    return row["node"], row["seed"] if row.get("seed") is not None else tuple(row["response_ids"] or ())


def same_rows(before: list[Seen], group: list[Seen]) -> list[Seen]:
    """Those of a prompt group that are the same rows as some before."""
    known = {identity(row) for row in before}
    return [row for row in group if None in known or identity(row) in known]


def by_place(before: list[Seen], among: list[Seen], group: list[Seen]) -> list[Seen]:
    """The responses to some of the rows of a prompt group: each row has as many, in the order of the rows."""
    each = len(group) // max(len(among), 1)
    known = {identity(row) for row in before}
    places = [place for place, row in enumerate(among) if identity(row) in known]
    return [row for place in places for row in group[place * each : (place + 1) * each]]
