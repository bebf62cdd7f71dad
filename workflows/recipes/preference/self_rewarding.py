"""Self-Rewarding Language Models."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from selfloop import (
    DPO,
    Iteration,
    Model,
    PromptJudge,
    Recipe,
    best_against_worst,
    load_made,
    load_rule,
    own_or,
)
from selfloop.workflows.judges.prompts.rubric import AdditiveRubric

__all__ = ["SelfRewarding"]


class SelfRewarding(Recipe):
    """Self-Rewarding Language Models (Yuan et al. 2024, arXiv 2401.10020).

    The policy samples answers, scores each of its own answers several times with an additive rubric, and learns by DPO
    from its best against its worst answer. Samples, judgements and reference of an iteration come from the same weights;
    pairs of earlier iterations are not used again.

    Differs from the paper:
    1. It starts from an instruction-tuned model (M1); the SFT of M0 on seed and judging examples is not part of the loop.
    2. Prompts come from the configured source; the paper writes new ones with a fixed stronger chat model (section 2.2).
    3. The rubric's wording is ours, with the paper's five additive criteria, its order (rationale, then score) and label.
    4. No checkpoint is chosen inside an iteration by an external judge; the last step counts.
    5. Ties among equally scored answers are broken by the lower variance of their judgements, then by sample number.
    6. `judge=pocket` asks the pocket world's one-token question, whose verdict is a probability, once an answer.
    """

    title: ClassVar[str] = "Self-Rewarding Language Models"
    paper: ClassVar[str] = "arXiv 2401.10020"
    label_free: ClassVar[bool] = True

    samples: int = Field(default=4, ge=2, description="candidates a prompt (section 2.2, N = 4)")
    votes: int = Field(default=3, ge=1, description="judgements averaged an answer (section 3.1.2)")
    temperature: float = Field(default=0.7, gt=0, description="section 3.1.2")
    top_p: float = Field(default=0.9, gt=0, le=1, description="section 3.1.2")
    beta: float = Field(default=0.1, gt=0, description="section 3.1.3")
    epochs: float = Field(default=1.0, gt=0, description="ours: the paper chooses a checkpoint instead")
    judge: Annotated[str, own_or("rubric", "pocket")] = Field(
        default="rubric", description="rubric, pocket, or a PromptJudge of your own as module:name"
    )
    rule: Annotated[str, own_or("best-against-worst")] = Field(
        default="best-against-worst",
        description="which pairs: best-against-worst, or a rule of your own as module:name",
    )

    def iteration(self, it: Iteration) -> Model:
        answers = it.prompts().sample(
            it.policy, n=self.samples, temperature=self.temperature, top_p=self.top_p
        )
        scored = answers.judge(self.rubric(), by=it.policy, votes=self.votes)
        own = self.rule != "best-against-worst"
        pairs = scored.pair(load_rule(self.rule, "settings.rule") if own else best_against_worst)
        return it.policy.train(
            pairs, DPO(beta=self.beta), reference=it.policy, optimizer="fresh", epochs=self.epochs
        )

    def rubric(self) -> PromptJudge:
        if self.judge == "rubric":
            return AdditiveRubric(temperature=self.temperature, top_p=self.top_p)
        if self.judge != "pocket":
            return load_made(self.judge, "settings.judge", PromptJudge)
        from selfloop.workflows.pocket.roles import PocketPointJudge

        return PocketPointJudge()
