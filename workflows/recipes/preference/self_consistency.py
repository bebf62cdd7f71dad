"""Self-Consistency Preference Optimization."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from selfloop import Iteration, Model, MostAgainstLeast, Recipe, ScPO
from selfloop.workflows.judges.votes import VoteShare
from selfloop.workflows.recipes.preference.per_iteration import Shares, of_iteration

__all__ = ["SelfConsistency"]


class SelfConsistency(Recipe):
    """ScPO: Self-Consistency Preference Optimization (Prasad et al. 2024, arXiv 2411.04109).

    Without any answer: the policy solves each problem k times, and a solution with the most frequent final answer is
    preferred to one with the least frequent, weighted by the margin of votes. Trained from the policy, against it.

    Differs from the paper:
    1. Prompts come from the configured source; the paper also lets the model write new ones.
    2. Rejected solutions come from the k voting samples; the paper adds k hotter samples for them.
    3. The threshold is a share of k; the paper's second one depends on the data (GSM8K 0.7, MATH 0.6), ours is GSM8K's.
    4. A response whose answer cannot be read has no vote and is in no pair; with `unparsed: lose` it is rejected first, as
       one without a vote (IRPO's rule, arXiv 2404.19733).
    """

    title: ClassVar[str] = "Self-Consistency Preference Optimization (ScPO)"
    paper: ClassVar[str] = "arXiv 2411.04109"
    label_free: ClassVar[bool] = True

    samples: int = Field(default=8, ge=2, description="k, votes a problem (section 3)")
    temperature: float = Field(default=0.7, gt=0, description="section 3")
    top_p: float = Field(default=0.9, gt=0, le=1, description="section 3")
    threshold: Shares = Field(
        default=(0.5, 0.7),
        min_length=1,
        description="least share of votes for the chosen answer, of each iteration, the last for all later ones (section 3)",
    )
    beta: float = Field(default=0.5, gt=0, description="section 3")
    nll: float = Field(
        default=1.0, ge=0, description="alpha, weight of the likelihood of the chosen solution (equation 3)"
    )
    epochs: float = Field(default=10.0, gt=0, description="section 3")
    extract: Literal["text", "number", "boxed", "choice"] = Field(
        default="text", description="how the final answer is read; answers that mean the same are one vote"
    )
    unparsed: Literal["exclude", "lose"] = Field(
        default="exclude", description="responses without a readable answer: in no pair, or rejected first"
    )

    def iteration(self, it: Iteration) -> Model:
        answers = it.prompts().sample(
            it.policy, n=self.samples, temperature=self.temperature, top_p=self.top_p
        )
        voted = answers.judge(VoteShare(extract=self.extract, unparsed=self.unparsed))
        threshold = of_iteration(self.threshold, it.index)
        pairs = voted.pair(MostAgainstLeast(threshold=threshold, extract=self.extract))
        objective = ScPO(beta=self.beta, nll_coefficient=self.nll)
        return it.policy.train(pairs, objective, reference=it.policy, optimizer="fresh", epochs=self.epochs)
