"""PPO with a reward model and a critic of its own, and best-against-worst pairs by a reward model as the judge."""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa

from selfloop import (
    DPO,
    PPO,
    BradleyTerry,
    Iteration,
    Model,
    Recipe,
    ScalarHead,
    Stream,
    ValueLoss,
    best_against_worst,
)
from selfloop.workflows.objectives.advantages import gae, token_rewards, whiten

TOKENS = {name: pa.list_(pa.float32()) for name in ("advantages", "returns")}


class ProximalPolicy(Recipe):
    """The first iteration trains the reward model on checked answers; every iteration makes one PPO step of the policy and
    one of the critic. The score stands at the last token, the KL to the initial policy at every one."""

    samples: int = 4
    kl: float = 0.05
    gamma: float = 1.0
    lam: float = 0.95
    epochs: int = 4

    def iteration(self, it: Iteration) -> dict[str, Model]:
        first = it.index == 1
        answers = it.prompts().sample(it.policy, n=self.samples)
        reward = reward_model(it, answers) if first else it.model("reward")
        critic = it.policy.adapt(ScalarHead()) if first else it.model("critic")
        known = answers.measure(reward, "rewards", column="score", name="scored").measure(
            critic, "values", column="old_values", name="valued")  # fmt: skip
        known = known.measure(it.policy, column="old", name="old").measure(
            it.initial, column="reference", name="reference"
        )
        rows = known.gather(self.advantages, reads=("old", "reference", "old_values", "score"), adds=TOKENS)
        policy = it.policy.train(rows, PPO(), reference=None, optimizer="continued", epochs=self.epochs,
                                 name="actor")  # fmt: skip
        critic = critic.train(rows, ValueLoss(), reference=None, optimizer="continued", epochs=self.epochs,
                              role="critic", name="critic")  # fmt: skip
        return {"policy": policy, "critic": critic, "reward": reward}

    def advantages(self, table: pa.Table, rng: random.Random) -> pa.Table:
        """GAE a row, whitened over all tokens; rows without a score are left out."""
        import torch

        table = table.filter(pa.array([state == "score" for state in table["score_state"].to_pylist()]))
        columns = [table[name].to_pylist() for name in ("old", "reference", "old_values")]
        mask = padded([[1.0] * len(row) for row in columns[0]])
        old, reference, values = (padded(column) for column in columns)
        score = torch.tensor(table["score"].to_pylist())
        rewards = token_rewards(score, (old - reference) * mask, mask, self.kl)
        advantages, returns = gae(rewards, values, mask, gamma=self.gamma, lam=self.lam)
        made = {"advantages": whiten(advantages, mask), "returns": returns}
        for name, kind in TOKENS.items():
            lists = [row[: len(ids)].tolist() for row, ids in zip(made[name], columns[0], strict=True)]
            table = table.append_column(name, pa.array(lists, kind))
        return table


class RewardJudged(Recipe):
    """DPO on pairs that a reward model judged: its reward is the score that the rules read."""

    def iteration(self, it: Iteration) -> dict[str, Model]:
        answers = it.prompts().sample(it.policy, n=4)
        reward = reward_model(it, answers) if it.index == 1 else it.model("reward")
        pairs = answers.measure(reward, "rewards", column="score", name="scored").pair(best_against_worst)
        policy = it.policy.train(pairs, DPO(), reference=it.policy, optimizer="fresh", name="actor")
        return {"policy": policy, "reward": reward}


def reward_model(it: Iteration, answers: Stream) -> Model:
    """Trained on right against wrong answers."""
    pairs = answers.judge(it.verifier(), name="checked").pair(right_against_wrong, name="comparisons")
    start = it.policy.adapt(ScalarHead())
    return start.train(
        pairs,
        BradleyTerry(),
        reference=None,
        optimizer="fresh",
        epochs=3,
        lr=1e-3,
        role="reward",
        name="reward",
    )


def right_against_wrong(rows: list[Any], rng: random.Random) -> list[tuple[Any, Any]]:
    """Every right answer against every wrong one of the prompt."""
    right, wrong = ([row for row in rows if row["score"] == value] for value in (1.0, 0.0))
    return [(one, other) for one in right for other in wrong]


def padded(rows: list[list[float]]) -> Any:
    import torch

    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
