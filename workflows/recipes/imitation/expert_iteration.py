"""Expert iteration: ReST-EM."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from selfloop import SFT, Correct, Iteration, Model, Recipe

__all__ = ["ExpertIteration"]


class ExpertIteration(Recipe):
    """ReST-EM: Beyond Human Data (Singh et al. 2023, arXiv 2312.06585), the plain form of expert iteration.

    The last policy solves problems with known answers; solutions whose answer is right, at most `cap` a problem, are
    what the BASE model is fine-tuned on. Wrong samples have weight zero. Training restarts from the base every
    iteration, so its result depends on earlier policies only through the data they wrote.

    Differs from the paper:
    1. Prompts are zero-shot through the chat template; the paper prompts with few-shot examples.
    2. Which correct solutions stay under the cap is a seeded random draw (the paper does not say).
    3. Training runs for `epochs`; the paper stops when a validation reward stops rising.
    """

    title: ClassVar[str] = "Expert iteration (ReST-EM)"
    paper: ClassVar[str] = "arXiv 2312.06585"

    samples: int = Field(default=32, ge=1, description="solutions a problem (section 5, MATH)")
    temperature: float = Field(default=0.7, gt=0, description="section 5")
    top_k: int = Field(default=40, ge=0, description="section 5")
    cap: int = Field(default=10, ge=1, description="correct solutions kept a problem (section 5)")
    epochs: float = Field(default=1.0, gt=0, description="ours: not reported")
    start: Literal["initial", "policy"] = Field(
        default="initial", description="where training starts; the paper: the base model"
    )

    def iteration(self, it: Iteration) -> Model:
        answers = it.prompts().sample(
            it.policy, n=self.samples, temperature=self.temperature, top_k=self.top_k
        )
        solved = answers.judge(it.verifier()).keep(Correct(cap=self.cap))
        start = it.initial if self.start == "initial" else it.policy
        return start.train(solved, SFT(), reference=None, optimizer="fresh", epochs=self.epochs)
