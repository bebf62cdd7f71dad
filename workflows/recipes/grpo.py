"""Group relative policy optimisation: GRPO, Dr. GRPO, DAPO."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from selfloop.workflows.objectives.advantages import group_normalized, informative, length_penalty
from selfloop.workflows.objectives.policy_gradient import GRPO
from selfloop.workflows.recipes.base import Recipe
from selfloop.workflows.recipes.rules import Row, Rule

if TYPE_CHECKING:
    from selfloop.workflows.flow.stream import Iteration, Model

__all__ = ["VARIANTS", "Advantages", "GroupRelative", "Groups", "Rewards"]

VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dr-grpo": {"scale": False, "aggregation": "dr_grpo", "kl": 0.0, "truncated": "wrong"},
    "dapo": {"epsilon_high": 0.28, "dual_clip": 10.0, "aggregation": "dapo", "kl": 0.0, "rewards": (-1.0, 1.0),
             "length_share": 0.2, "dynamic": True},
}  # fmt: skip


class Groups(Rule):
    """Keeps the judged rows of a prompt, at least two; with `dynamic` only if some are right and some wrong."""

    dynamic: bool = False
    truncated: Literal["judged", "wrong", "left-out"] = "judged"

    def __call__(self, rows: Sequence[Row], rng: random.Random) -> list[Row]:
        judged = [row for row in rows if row["score_state"] != "failed"]
        judged = [row for row in judged if self.truncated != "left-out" or row["finish"] != "length"]
        useful = not self.dynamic or informative([right(row, self.truncated) for row in judged])
        return judged if useful and len(judged) > 1 else []


class Rewards(Rule):
    """The reward of a wrong or right answer, and DAPO's penalty over the last `share` of the longest length."""

    values: tuple[float, float] = (0.0, 1.0)
    truncated: Literal["judged", "wrong", "left-out"] = "judged"
    longest: int
    share: float = 0.0

    def __call__(self, rows: Sequence[Row], rng: random.Random) -> list[float]:
        cache = round(self.share * self.longest)
        lengths = [len(row["response_ids"]) for row in rows]
        return [self.values[right(row, self.truncated)] + length_penalty(length, limit=self.longest, cache=cache)
                for row, length in zip(rows, lengths, strict=True)]  # fmt: skip


class Advantages(Rule):
    """What each reward is above its prompt group's mean, in standard deviations (n - 1) where `scale`."""

    scale: bool = True

    def __call__(self, rows: Sequence[Row], rng: random.Random) -> list[float]:
        return group_normalized([row["reward"] for row in rows], scale=self.scale)


def right(row: Row, truncated: str) -> bool:
    """Accuracy, whatever the reward is; an answer that cannot be read is wrong."""
    return (row["score"] or 0.0) >= 0.5 and not (truncated == "wrong" and row["finish"] == "length")


class GroupRelative(Recipe):
    """GRPO (Shao et al. 2024, arXiv 2402.03300), Dr. GRPO (2503.20783) and DAPO (2503.14476) by `variant`.

    A group of answers a prompt, a verifier's reward, the group's mean as the baseline, a clipped token loss on the
    trainer's own old log-probs. `variant` fills in the settings that are not given. An iteration is one rollout step.

    Differs from the paper:
    1. DAPO's prompts that are all right or all wrong are dropped; the paper samples others until the batch is full.
    2. DAPO's length penalty and Dr. GRPO's constant follow from `generator.max_tokens`, the longest answer.
    3. Rows that the verifier broke on are left out of their group.
    """

    title: ClassVar[str] = "RL with verifiable rewards (GRPO, Dr. GRPO, DAPO)"
    paper: ClassVar[str] = "arXiv 2402.03300"

    variant: Literal["grpo", "dr-grpo", "dapo"] = "grpo"
    samples: int = Field(64, ge=2, description="G, answers a prompt (GRPO 64, Dr. GRPO 8, DAPO 16)")
    scale: bool = Field(True, description="divide by the group's standard deviation")
    epsilon: float = Field(0.2, ge=0, description="lower clip, and upper where epsilon_high is not given")
    epsilon_high: float | None = Field(None, ge=0, description="upper clip")
    dual_clip: float | None = Field(None, gt=1, description="c, floor for negative advantages")
    aggregation: Literal["grpo", "dapo", "dr_grpo"] = Field("grpo", description="how tokens are averaged")
    rewards: tuple[float, float] = Field((0.0, 1.0), description="of a wrong and a right answer")
    truncated: Literal["judged", "wrong", "left-out"] = Field("judged", description="what a cut answer is")
    length_share: float = Field(0.0, ge=0, le=1, description="share of max_tokens where the penalty grows")
    dynamic: bool = Field(False, description="leave out prompts all right or all wrong")
    kl: float = Field(0.04, ge=0, description="weight of the KL to the reference; 0: no reference")
    reference_every: int | None = Field(None, ge=1, description="iterations a reference stays; None: all")
    importance_cap: float | None = Field(None, gt=0, description="cap of pi_old / pi_sampler; None: off")
    epochs: float = Field(1.0, gt=0, description="mu, passes over an iteration's samples")

    @model_validator(mode="before")
    @classmethod
    def filled(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """The variant's settings under those that are given."""
        return {**VARIANTS.get(str(given.get("variant", "grpo")), {}), **given}

    def iteration(self, it: Iteration) -> Model:
        answers = it.prompts().sample(it.policy, n=self.samples)
        groups = answers.judge(it.verifier()).keep(Groups(dynamic=self.dynamic, truncated=self.truncated))
        rewards = Rewards(values=self.rewards, truncated=self.truncated,
                          longest=it.max_tokens, share=self.length_share)  # fmt: skip
        rewarded = groups.score(rewards, column="reward", name="reward")
        rows = rewarded.score(Advantages(scale=self.scale), column="advantages", name="advantages")
        objective = GRPO(epsilon=self.epsilon, epsilon_high=self.epsilon_high, delta=self.dual_clip,
                         loss=self.aggregation, max_length=it.max_tokens, beta=self.kl,
                         importance_cap=self.importance_cap)  # fmt: skip
        old = it.earlier((it.index - 1) % self.reference_every) if self.reference_every else it.initial
        return it.policy.train(rows, objective, reference=old if self.kl else None, optimizer="continued",
                               epochs=self.epochs)  # fmt: skip
