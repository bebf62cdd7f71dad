"""The base of every recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

if TYPE_CHECKING:
    from selfloop.workflows.flow.iteration import Iteration
    from selfloop.workflows.flow.stream import Model

__all__ = ["Recipe"]


class Recipe(BaseModel):
    """A method. Fields are the method's own settings; `iteration` returns a small graph that ends in the new models.

    title, paper, kind: for `selfloop methods` and the docs. variants: what each value of the field `variant` changes of the
    defaults, where it is not given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    kind: ClassVar[str] = "loop"
    label_free: ClassVar[bool] = False
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @classmethod
    def variant_settings(cls, variant: str) -> dict[str, Any]:
        """All settings in which the variants differ, with this one's values."""
        changed = {name for settings in cls.variants.values() for name in settings}
        defaults = {name: field.default for name, field in cls.model_fields.items() if name in changed}
        return defaults | dict(cls.variants[variant])

    @model_validator(mode="before")
    @classmethod
    def filled(cls, given: Any) -> Any:
        """The variant's settings under those that are given."""
        if not isinstance(given, Mapping) or not cls.variants:
            return given
        chosen = given.get("variant", cls.model_fields["variant"].default)
        return {**(cls.variant_settings(chosen) if chosen in cls.variants else {}), **given}

    @property
    def cut_answers(self) -> str:
        """What the method does with answers that were cut at max_tokens, in a few words."""
        return "taken as they are"

    def iteration(self, it: Iteration) -> Model | dict[str, Model]:
        """The graph of iteration `it.index`, ending in the new policy (or in several roles)."""
        raise NotImplementedError

    def stop(self, history: Sequence[dict[str, Any]]) -> bool:
        """Whether to stop before the configured number of iterations, from the metrics of all iterations so far."""
        return False
