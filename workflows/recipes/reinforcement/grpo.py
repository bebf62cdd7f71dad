"""Group relative policy optimisation: GRPO, Dr. GRPO, DAPO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from selfloop import GRPO, Advantages, Groups, Iteration, Model, Recipe, Rewards, Stream, Truncated

__all__ = ["VARIANTS", "GroupRelative"]

VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dr-grpo": {"samples": 8, "scale": False, "aggregation": "dr_grpo", "kl": 0.0, "truncated": "wrong"},
    "dapo": {"samples": 16, "epsilon_high": 0.28, "dual_clip": 10.0, "aggregation": "dapo", "kl": 0.0,
             "rewards": (-1.0, 1.0), "length_share": 0.2, "rounds": 10},
    "gspo": {"ratio": "gspo", "epsilon": 3e-4, "epsilon_high": 4e-4, "kl": 0.0},
}  # fmt: skip


class GroupRelative(Recipe):
    """GRPO (Shao et al. 2024, arXiv 2402.03300), Dr. GRPO (2503.20783), DAPO (2503.14476), GSPO (2507.18071) by `variant`.

    A group of answers a prompt, a verifier's reward, the group's mean as the baseline, a clipped token loss on the
    trainer's own old log-probs. `variant` fills in the settings that are not given. An iteration is one rollout step.

    Differs from the paper:
    1. DAPO's dynamic sampling takes `prompts.per_iteration` prompts a round, its script three times as many as needed.
    2. DAPO's length penalty and Dr. GRPO's constant follow from `generator.max_tokens`, the longest answer.
    3. Rows that the verifier broke on are left out of their group; a group of which one answer is left is not learned
       from (verl takes that answer's reward as its advantage, though nothing is there to compare it with).
    4. GSPO's group size is not in its paper: GRPO's is taken.
    """

    title: ClassVar[str] = "RL with verifiable rewards (GRPO, Dr. GRPO, DAPO, GSPO)"
    paper: ClassVar[str] = "arXiv 2402.03300"
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = VARIANTS

    variant: Literal["grpo", "dr-grpo", "dapo", "gspo"] = "grpo"
    samples: int = Field(default=64, ge=2, description="G, answers a prompt")
    scale: bool = Field(default=True, description="divide by the group's standard deviation")
    ratio: Literal["token", "sequence", "gspo"] = Field(
        default="token", description="pi / pi_old of each token; or of each response, whole or by its length"
    )
    epsilon: float = Field(
        default=0.2, ge=0, description="lower clip, and upper where epsilon_high is not given"
    )
    epsilon_high: float | None = Field(default=None, ge=0, description="upper clip")
    dual_clip: float | None = Field(default=None, gt=1, description="c, floor for negative advantages")
    aggregation: Literal["grpo", "dapo", "dr_grpo"] = Field(
        default="grpo", description="how tokens are averaged"
    )
    rewards: tuple[float, float] = Field(default=(0.0, 1.0), description="of a wrong and a right answer")
    truncated: Truncated = Field(default="judged", description="what an answer is that was cut")
    length_share: float = Field(
        default=0.0, ge=0, le=1, description="share of max_tokens where the penalty grows"
    )
    rounds: int = Field(
        default=0,
        ge=0,
        description="at most, of dynamic sampling; 0: prompts that are all right or all wrong stay",
    )
    kl: float = Field(default=0.04, ge=0, description="weight of the KL to the reference; 0: no reference")
    reference_every: int | None = Field(
        default=None, ge=1, description="iterations a reference stays; None: all"
    )
    importance_cap: float | None = Field(
        default=None, gt=0, description="cap of pi_old / pi_sampler; None: off"
    )
    epochs: float = Field(default=1.0, gt=0, description="mu, passes over an iteration's samples")

    @property
    def cut_answers(self) -> str:
        return {"judged": "judged like others", "wrong": "counted as wrong", "left-out": "left out"}[
            self.truncated
        ]

    def iteration(self, it: Iteration) -> Model:
        groups = (
            it.grow(self.judged, until=it.prompt_count, rounds=self.rounds)
            if self.rounds
            else self.judged(it)
        )
        rewards = Rewards(values=self.rewards, truncated=self.truncated,
                          longest=it.max_tokens, share=self.length_share)  # fmt: skip
        rewarded = groups.score(rewards, column="reward", name="reward")
        rows = rewarded.score(Advantages(scale=self.scale), column="advantages", name="advantages")
        objective = GRPO(ratio=self.ratio, epsilon=self.epsilon, epsilon_high=self.epsilon_high,
                         delta=self.dual_clip, loss=self.aggregation, max_length=it.max_tokens, beta=self.kl,
                         importance_cap=self.importance_cap)  # fmt: skip
        old = it.earlier((it.index - 1) % self.reference_every) if self.reference_every else it.initial
        return it.policy.train(rows, objective, reference=old if self.kl else None, optimizer="continued",
                               epochs=self.epochs)  # fmt: skip

    def judged(self, it: Iteration) -> Stream:
        """The groups that are learned from, of one round of prompts."""
        answers = it.prompts().sample(it.policy, n=self.samples).judge(it.verifier())
        return answers.keep(Groups(dynamic=self.rounds > 0, truncated=self.truncated))
