"""Fine-tuning on a fixed data set."""

from __future__ import annotations

import difflib
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError, model_validator

from selfloop import OBJECTIVES, Iteration, Model, Objective, Recipe, load_class
from selfloop.workflows.objectives.heldout import OwnMetrics
from selfloop.workflows.recipes.imitation.given import given_rows, served

__all__ = ["SERVED", "Finetune"]

SERVED = tuple(slug for slug, one in OBJECTIVES.items() if served(one()))


class Finetune(Recipe):
    """Fine-tuning with any objective on given responses, the offline baseline: DPO (Rafailov et al. 2023, arXiv 2305.18290)
    unless `objective` says otherwise. Nothing is sampled to learn from.

    Pair objectives learn from chosen and rejected, label objectives (KTO, BCO) from completions with a label or from both
    sides of pairs, SFT from completions, else chosen sides, else answers. On the rows of `test` the objective's own loss and
    rewards are measured, of the new policy and of the initial one. An iteration is one pass over the slice it takes.

    Differs from the paper:
    1. The optimizer is AdamW; DPO's official code uses RMSprop.
    2. KTO's mismatched pairs are drawn over an iteration's rows; its official code takes them from the batch.
    3. Chosen responses are not first learned by SFT: start from an SFT model, or run `objective: sft` before.
    """

    title: ClassVar[str] = "Fine-tuning on a fixed data set"
    paper: ClassVar[str] = "arXiv 2305.18290"
    kind: ClassVar[str] = "offline"

    objective: str = Field(
        default="dpo", description=f"one of {', '.join(SERVED)}, or one of your own as module:Class"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="the objective's own settings")
    train: str = Field(default="train", description="named source to learn from (data.NAME)")
    test: str | None = Field(default="test", description="named source that is only measured; null: none")
    take: int | None = Field(default=None, ge=1, description="rows an iteration; null: all")
    epochs: float = Field(default=1.0, gt=0, description="an iteration (DPO's official configs: 1 in all)")
    reference: Literal["initial", "policy"] = Field(
        default="initial", description="the initial policy (paper), or where each iteration starts"
    )
    optimizer: Literal["fresh", "continued"] = Field(
        default="continued", description="from the last iteration"
    )

    @model_validator(mode="after")
    def fits_the_data(self) -> Finetune:
        """The objective is known, takes its options, and needs no more than given responses."""
        known = self.kind_of_loss
        close = [] if known else difflib.get_close_matches(self.objective, SERVED, 1)
        way = f"Did you mean {close[0]}?" if close else f"Choose one of {', '.join(SERVED)}"
        if known is None:
            raise ValueError(f"objective {self.objective!r} is not known. {way}")
        try:
            loss = self.loss
        except ValidationError as error:
            wrong = "; ".join(
                f"options.{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()
            )
            names = ", ".join(known.model_fields)
            raise ValueError(f"{wrong}. The options of {self.objective} are {names}") from None
        if not served(loss):
            raise ValueError(f"objective {self.objective!r} learns from more than given responses. {way}")
        return self

    @property
    def kind_of_loss(self) -> type[Objective] | None:
        own = ":" in self.objective
        return (
            load_class(self.objective, "settings.objective", Objective)
            if own
            else OBJECTIVES.get(self.objective)
        )

    @property
    def loss(self) -> Objective:
        """The objective with its options."""
        assert self.kind_of_loss is not None
        return self.kind_of_loss(**self.options)

    def iteration(self, it: Iteration) -> Model:
        rows = given_rows(it, self.train, self.loss, self.take)
        against = it.initial if self.reference == "initial" else it.policy
        reference = against if self.loss.needs_reference else None
        made = it.policy.train(
            rows, self.loss, reference=reference, optimizer=self.optimizer, epochs=self.epochs
        )
        if self.test is not None:
            told = given_rows(it, self.test, self.loss)
            for who, model in (("initial", it.initial), ("policy", made)):
                for view in self.loss.views:
                    column = f"{view}_{who}"
                    told = told.measure(model, under=view, column=column, name=f"{self.test}-{view}-{who}")
            told.report(OwnMetrics(objective=self.loss), name="own-metrics")
        return made
