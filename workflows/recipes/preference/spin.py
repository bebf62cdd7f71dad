"""Self-play fine-tuning."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from selfloop import SPIN, Iteration, Model, Pair, Recipe, Row
from selfloop.workflows.recipes.preference.per_iteration import Positives, of_iteration

__all__ = ["SelfPlay", "demonstration_against_sample"]


def demonstration_against_sample(rows: Sequence[Row], rng: random.Random) -> list[Pair]:
    """The demonstration (no weights wrote it) against each sample; an equal one is kept, since it moves nothing."""
    shown = [row for row in rows if row["version"] is None]
    return [(one, row) for one in shown for row in rows if row["version"] is not None]


class SelfPlay(Recipe):
    """SPIN: Self-Play Fine-Tuning (Chen et al. 2024, arXiv 2401.01335).

    The policy as it was when the iteration began, the opponent, answers the prompts of an SFT set. The policy learns to
    tell the demonstrations from the opponent's answers, by a logistic contrast of log-ratios to the opponent. From the
    second iteration on the last one's pairs are learned from once more, measured against the new opponent.

    Differs from the paper:
    1. The optimizer is AdamW; the paper uses RMSProp without weight decay.
    2. An opponent's answer that was cut gets no end token; the official code gives one to every answer, so that the
       model can win by length alone.
    3. One chat template for sampling and training; the official code samples with a plain layout of its own.
    4. The last step of each iteration counts; in the official scripts an early checkpoint is chosen by hand.
    5. Learning rates are those of the config (`trainer.lr`) unless `lr` lists the paper's, which are for 7 B.
    """

    title: ClassVar[str] = "Self-Play Fine-Tuning (SPIN)"
    paper: ClassVar[str] = "arXiv 2401.01335"

    samples: int = Field(default=1, ge=1, description="opponent answers a prompt (algorithm 1)")
    temperature: float = Field(default=1.0, gt=0, description="official vLLM script")
    top_p: float = Field(default=1.0, gt=0, le=1, description="official vLLM script")
    beta: Positives = Field(
        default=(0.1, 0.1, 0.1, 5.0),
        min_length=1,
        description="lambda of each iteration, the last for all later ones (section 6.1)",
    )
    lr: Positives = Field(
        default=(), description="of each iteration (section 6.1: 5e-7, 5e-7, 1e-7, 1e-7); empty: trainer.lr"
    )
    epochs: float = Field(default=2.0, gt=0, description="section 6.1")
    carried: int = Field(
        default=1, ge=0, description="earlier iterations whose pairs are used again (section 6.1)"
    )
    loss: Literal["sigmoid", "hinge"] = Field(default="sigmoid", description="l, logistic in the paper")
    demonstrations: str | None = Field(
        default=None, description="named source (data.NAME); default the prompts with their own answers"
    )

    def iteration(self, it: Iteration) -> Model:
        prompts = it.data(self.demonstrations) if self.demonstrations else it.prompts()
        answers = prompts.sample(it.policy, n=self.samples, temperature=self.temperature, top_p=self.top_p)
        both = answers.merge(prompts.demonstrate(it.initial))
        pairs = both.pair(demonstration_against_sample).save("pairs")
        earlier = it.saved("pairs", last=self.carried) if self.carried else None
        if earlier is not None:
            pairs = pairs.concat(earlier)
        return it.policy.train(
            pairs,
            SPIN(beta=of_iteration(self.beta, it.index), loss=self.loss),
            reference=it.policy,
            optimizer="fresh",
            epochs=self.epochs,
            lr=of_iteration(self.lr, it.index) if self.lr else None,
        )
