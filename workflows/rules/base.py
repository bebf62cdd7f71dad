"""Rules: which responses of a prompt are kept, and which form a preference pair.

A rule is a function of one prompt group: `rule(rows, rng)`. Keep rules return rows; pair rules return (chosen,
rejected) or (chosen, rejected, {more columns}). What they draw comes from `rng`, after sorting by sample number, so
a rule gives the same for the same group whatever the order of its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict

__all__ = ["Pair", "Row", "Rule", "reads"]

RuleFunction = TypeVar("RuleFunction", bound=Callable[..., Any])
Row = Mapping[str, Any]
"""One response: its columns by name (docs/reference.md)."""
Pair = tuple[Any, Any] | tuple[Any, Any, dict[str, Any]]
"""Chosen and rejected row, and what more columns their pair gets."""


class Rule(BaseModel):
    """A rule with settings. reads: columns without which it could not choose; the lint asks for them."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    reads: ClassVar[tuple[str, ...]] = ()


def reads(*columns: str) -> Callable[[RuleFunction], RuleFunction]:
    """Declares the `reads` of a rule that is a plain function."""

    def declare(rule: RuleFunction) -> RuleFunction:
        vars(rule)["reads"] = columns
        return rule

    return declare
