"""Selfloop, for those who write a method: what a recipe, a rule, a judge, an objective or a page of prompts is made of.

    from selfloop import Iteration, Model, Recipe, Stream

- A recipe: `Recipe`, its `Iteration`, the `Stream` and `Model` that its graph is made of, `ScalarHead`, and
  `RecipeError` for what its data cannot be used for.
- A rule (which rows are learned from): `Row`, `Pair`, `Rule`, `reads`; ready ones: `BestOfN`, `Correct`, `scored_rows`,
  `best_against_worst`, `MostAgainstLeast`, and for groups `Groups`, `Rewards`, `Advantages`, `Truncated`.
- A program that talks to models: `Player`, `Said`, `graded`, `VERDICT`.
- A judge: `Verifier`, `PromptJudge`, and `frame` with `conversation` for texts that others wrote. Prompts are lists of
  `Message`; `MESSAGES` is the type of their column.
- An objective (the loss): `Objective`, with `Batch`, `Term` and `Loss`; and every one that ships, from `SFT` and `DPO` on,
  by the name it has in docs/objectives.md; `OBJECTIVES` has them by slug.
- A setting that names something of the user's own as module:name: `own_or` in its type, and `load_class`, `load_made`
  or `load_rule` where it is used.

Not here: the judges that ship (`selfloop.workflows.judges`), the pocket world (`selfloop.workflows.pocket`), and what only
some methods share. docs/write-a-method.md goes through it from nothing. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfloop.names import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if name[:2] != "__" and name != "names":  # "names": Python asks for it before it imports the module
        names = importlib.import_module("selfloop.names")
        if name in names.__all__:
            return getattr(names, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(importlib.import_module("selfloop.names").__all__)
