"""The cards' "Must hold" lines of GRPO, PPO, RLOO, REINFORCE++ and SAR's objective. Test names: card, then the line."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from selfloop.workflows.errors import ObjectiveError
from selfloop.workflows.objectives import GRPO, GSPO, PPO, SAR, Objective, ValueLoss
from selfloop.workflows.objectives.advantages import (
    adaptive_kl,
    gae,
    group_baseline,
    group_normalized,
    informative,
    kl_estimate,
    leave_one_out,
    length_penalty,
    rewards_to_go,
    token_rewards,
    whiten,
)
from tests.unit.objectives.batches import about, gradients, one, repeated, response, total


def lengths(advantages: list[float], tokens: list[int]) -> dict[str, Tensor]:
    """Responses of these lengths, ratio 1 everywhere."""
    mask = (torch.arange(max(tokens)) < torch.tensor(tokens)[:, None]).double()
    zeros = torch.full_like(mask, -0.5)
    return {
        "response.logprobs": zeros,
        "response.old_logprobs": zeros,
        "response.mask": mask,
        "advantages": torch.tensor(advantages).double(),
    }


def token(ratio: float, advantage: float) -> dict[str, Tensor]:
    """One token with this ratio."""
    batch = lengths([advantage], [1])
    return {**batch, "response.logprobs": batch["response.old_logprobs"] + math.log(ratio)}


def slope(objective: Objective, batch: dict[str, Tensor]) -> Tensor:
    return gradients(objective, batch, "response.logprobs")[0]


# --- grpo ----------------------------------------------------------------------------------------------------------


def test_grpo_group_advantages() -> None:
    assert group_normalized([1, 0, 0, 0]) == [about(v, 1e-5) for v in (1.5, -0.5, -0.5, -0.5)]
    population = group_normalized([1, 0, 0, 0], unbiased=False)
    assert population[:2] == [about(1.73, 5e-3), about(-0.58, 5e-3)]
    assert group_baseline([1, 0, 0, 0]) == [0.75, -0.25, -0.25, -0.25]
    assert group_normalized([1, 0, 0, 0], scale=False) == group_baseline([1, 0, 0, 0])


def test_grpo_equal_rewards_no_gradient_and_group_of_one() -> None:
    advantages = group_normalized([0.1, 0.1, 0.1])
    assert advantages == [0, 0, 0] and not slope(GRPO(), lengths(advantages, [2, 3, 1])).any()
    assert group_normalized([0.7]) == [0.7]


@pytest.mark.parametrize(
    ("loss", "value", "weights"),
    [("grpo", 0.0, (1 / 4, 1 / 16)), ("dapo", 0.6, (1 / 10, 1 / 10)), ("dr_grpo", 0.3, (1 / 20, 1 / 20))],
)
def test_grpo_three_ways_to_average(loss: str, value: float, weights: tuple[float, float]) -> None:
    objective = GRPO.model_validate({"loss": loss, "max_length": 10})
    batch = lengths([1, -1], [2, 8])
    assert total(objective, batch) == about(value)
    found = slope(objective, batch)
    assert found[0].tolist() == [about(-weights[0])] * 2 + [0] * 6
    assert found[1].tolist() == [about(weights[1])] * 8


@pytest.mark.parametrize(
    ("advantage", "ratio", "settings", "objective", "alive"),
    [
        (1, 1.4, {"epsilon_high": 0.28}, 1.28, False),
        (1, 1.4, {}, 1.2, False),
        (1, 1.25, {"epsilon_high": 0.28}, 1.25, True),
        (-1, 0.7, {}, -0.8, False),
        (-1, 1.4, {}, -1.4, True),
        (-1, 15, {"delta": 10}, -10, False),
        (-1, 9, {"delta": 10}, -9, True),
    ],
)
def test_grpo_clipping(
    advantage: float, ratio: float, settings: dict[str, float], objective: float, alive: bool
) -> None:
    grpo, batch = GRPO.model_validate(settings), token(ratio, advantage)
    assert total(grpo, batch) == about(-objective)
    assert bool(slope(grpo, batch).any()) is alive


def test_grpo_first_pass_is_reinforce_with_baseline() -> None:
    batch = lengths([0.75, -0.25], [1, 2])
    assert slope(GRPO(loss="dapo"), batch).tolist() == [[about(-0.75 / 3), 0], [about(0.25 / 3)] * 2]
    assert torch.equal(slope(GRPO(on_policy=True), batch), slope(GRPO(), batch))
    assert not GRPO()(batch).logs["clipped"].any()


@pytest.mark.parametrize(
    ("length", "penalty"), [(16384, 0), (17408, -0.25), (18432, -0.5), (20480, -1), (20481, -1)]
)
def test_grpo_length_penalty(length: int, penalty: float) -> None:
    assert length_penalty(length) == about(penalty)


@pytest.mark.parametrize(("gap", "k3"), [(0.5, 0.1487), (-0.5, 0.1065), (0.0, 0.0)])
def test_grpo_k3(gap: float, k3: float) -> None:
    assert float(kl_estimate(one(-1.0), one(-1.0 + gap))) == about(k3, 5e-5)
    assert float(kl_estimate(one(-1.0), one(-1.0 + gap), "k2")) == about(gap**2 / 2)
    batch = token(1, 0) | {"response.reference_logprobs": one(-0.5 + gap)}
    assert total(GRPO(beta=2.0), batch) == about(2 * k3, 1e-4)


def test_grpo_dynamic_sampling() -> None:
    assert [informative(c) for c in ([0, 0], [1, 1], [1, 0])] == [False, False, True]


def test_grpo_scaling_rewards() -> None:
    rewards = [1.0, 0.0, 0.3, 0.0]
    tenfold = [10 * r for r in rewards]

    def pull(advantages: list[float]) -> Tensor:
        return slope(GRPO(loss="dr_grpo"), lengths(advantages, [2, 1, 3, 2]))

    assert torch.allclose(pull(group_baseline(tenfold)), 10 * pull(group_baseline(rewards)))
    assert torch.allclose(pull(group_normalized(tenfold)), pull(group_normalized(rewards)), rtol=1e-4)


def test_grpo_reads_a_reference_only_for_the_kl() -> None:
    assert not GRPO().needs_reference and GRPO(beta=0.04).needs_reference


def test_grpo_truncated_importance_correction() -> None:
    batch = token(1, 1) | {"response.sampling_logprobs": one(-0.5 - math.log(5))}
    assert total(GRPO(importance_cap=2.0), batch) == about(-2.0)
    assert total(GRPO(importance_cap=9.0), batch) == about(-5.0)


def test_grpo_advantages_a_token() -> None:
    batch = lengths([1, -1], [2, 3])
    tokens = {**batch, "advantages": batch["advantages"][:, None].expand(2, 3).clone()}
    assert total(GRPO(), tokens) == total(GRPO(), batch)


# --- ppo, rloo, reinforce++ ----------------------------------------------------------------------------------------


def test_ppo_rloo_advantages() -> None:
    assert leave_one_out([1, 0, 0.5]) == [about(0.75), about(-0.75), about(0)]
    assert sum(leave_one_out([0.3, 0.9, 0.1, 0.4])) == about(0)
    with pytest.raises(ObjectiveError, match="at least 2"):
        leave_one_out([1.0])


MASK = one(1, 1, 1, 0)
REWARDS = token_rewards(one(1.0)[0], one(0.2, -0.1, 0.3, 9.0), MASK, 0.1)


def test_ppo_rewards_returns_and_gae() -> None:
    assert REWARDS.tolist() == [[about(-0.02), about(0.01), about(0.97), 0]]
    assert rewards_to_go(REWARDS, MASK).tolist() == [[about(0.96), about(0.98), about(0.97), 0]]
    advantages, returns = gae(REWARDS, one(0.5, 0.4, 0.3, 7.0), MASK, lam=0.95)
    assert advantages.tolist() == [[about(0.399175), about(0.5465), about(0.67), 0]]
    assert torch.allclose(returns, (advantages + one(0.5, 0.4, 0.3, 7.0)) * MASK)


def test_ppo_gae_limits_of_lambda() -> None:
    values = one(0.5, 0.4, 0.3, 7.0)
    full, _ = gae(REWARDS, values, MASK, lam=1.0)
    assert torch.allclose(full, (rewards_to_go(REWARDS, MASK) - values) * MASK)
    step, _ = gae(REWARDS, values, MASK, lam=0.0)
    assert step.tolist() == [[about(-0.02 + 0.4 - 0.5), about(0.01 + 0.3 - 0.4), about(0.97 - 0.3), 0]]
    reinforce, _ = gae(REWARDS, torch.zeros_like(values), MASK, lam=1.0)
    assert torch.allclose(reinforce, rewards_to_go(REWARDS, MASK))


def test_ppo_gae_steps_over_tokens_outside_the_mask() -> None:
    gap = one(1, 1, 0, 1)
    rewards, values = one(-0.02, 0.01, 5.0, 0.97), one(0.5, 0.4, 6.0, 0.3)
    advantages, _ = gae(rewards * gap, values, gap, lam=0.95)
    assert advantages.tolist() == [[about(0.399175), about(0.5465), 0, about(0.67)]]


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "alive"),
    [(1, 1.5, -1.2, False), (-1, 1.5, 1.5, True), (-1, 0.5, 0.8, False)],
)
def test_ppo_clipping(advantage: float, ratio: float, loss: float, alive: bool) -> None:
    assert total(PPO(), token(ratio, advantage)) == about(loss)
    assert bool(slope(PPO(), token(ratio, advantage)).any()) is alive


def test_ppo_first_update() -> None:
    batch = lengths([1.5, -0.5], [1, 3])
    assert slope(PPO(), batch).tolist() == [[about(-1.5 / 4), 0, 0], [about(0.5 / 4)] * 3]


def test_ppo_kl_estimators() -> None:
    torch.manual_seed(0)
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.3, 0.3, 0.4]).double()
    kl = float((p * (p / q).log()).sum())
    k1, k3 = (kl_estimate(p.log(), q.log(), kind) for kind in ("k1", "k3"))
    assert (k1 < 0).any() and (k3 >= 0).all()
    assert float((p * k1).sum()) == about(kl) and float((p * k3).sum()) == about(kl)
    assert not PPO().needs_reference


def test_ppo_padding_never_enters_whitening() -> None:
    values, mask = torch.randn(3, 4).double(), (torch.rand(3, 4) > 0.3).double()
    mask[:, 0] = 1
    padded = torch.cat([values, torch.full((3, 1), 99.0).double()], -1)
    white = whiten(padded, torch.cat([mask, torch.zeros(3, 1).double()], -1))
    assert torch.allclose(white[:, :4], whiten(values, mask)) and not white[:, 4].any()
    kept = white[:, :4][mask > 0]
    assert float(kept.mean()) == about(0) and float(kept.var(unbiased=False)) == about(1)
    unbiased = whiten(values, mask, unbiased=True)[mask > 0]
    assert float(unbiased.var(unbiased=True)) == about(1)


@pytest.mark.parametrize("kind", ["population", "unbiased"])
def test_ppo_whitening_in_the_loss_is_over_tokens(kind: str) -> None:
    batch = lengths([1.0, -0.5, 2.0], [2, 4, 1])
    advantages = batch["advantages"][:, None] * batch["response.mask"]
    outside = {**batch, "advantages": whiten(advantages, batch["response.mask"], unbiased=kind == "unbiased")}
    inside = PPO.model_validate({"whiten": kind})
    assert total(inside, batch) == about(total(PPO(), outside))
    assert torch.allclose(slope(inside, batch), slope(PPO(), outside))


def test_gspo_s_ratio_is_the_exponential_of_the_mean() -> None:
    """Two tokens with log-ratios 0.3 and 0.1: exp(0.2) a response, where RLOO takes exp(0.4) and GRPO one of each."""
    old = torch.tensor([[-1.3, -1.1], [-1.3, -1.1]], dtype=torch.float64)
    batch = {**response([-1.0, -1.0], [-1.0, -1.0], advantages=[2.0, -1.0]), "response.old_logprobs": old}
    free = {"epsilon": 9.0, "epsilon_high": 9.0}
    whole = math.exp(0.2)
    assert total(GRPO(ratio="gspo", **free), batch) == about(-(2 - 1) * whole / 2)
    assert total(GRPO(ratio="sequence", **free), batch) == about(-(2 - 1) * math.exp(0.4) / 2)
    assert total(GSPO(), batch) == about(
        -(2 * (1 + 4e-4) - whole) / 2
    )  # A > 0 is clipped above, A < 0 is not
    below = {**batch, "response.old_logprobs": old * 0}
    assert total(GSPO(), below) == about(-(2 * math.exp(-1) - (1 - 3e-4)) / 2)
    slope = gradients(GSPO(), batch, "response.logprobs")[0]
    assert not slope[0].any() and torch.allclose(slope[1], torch.full((2,), whole / 4, dtype=torch.float64))


def test_gspo_does_not_depend_on_length() -> None:
    batch = {
        **response([-1.0, -0.7], advantages=[1.0]),
        "response.old_logprobs": torch.tensor([[-1.1, -0.9]]),
    }
    mean, whole = (GRPO(ratio=kind, epsilon=9.0, epsilon_high=9.0) for kind in ("gspo", "sequence"))
    assert total(mean, repeated(batch)) == about(total(mean, batch))
    assert total(whole, repeated(batch)) != about(total(whole, batch))


def test_ppo_sequence_ratio_is_one_a_response() -> None:
    batch = lengths([2.0, -1.0], [2, 3])
    batch["response.logprobs"] = batch["response.old_logprobs"] + 0.05
    wanted = (-2 * math.exp(0.1) + math.exp(0.15)) / 2
    assert total(PPO(ratio="sequence"), batch) == about(wanted)


def test_ppo_value_loss() -> None:
    batch = {
        "response.mask": one(1, 1),
        "values": one(0.9, 0.0),
        "old_values": one(0.5, 0.0),
        "returns": one(1.0, 1.0),
    }
    clipped = 0.5 * (max(0.1**2, (0.7 - 1) ** 2) + 1) / 2
    assert total(ValueLoss(), batch) == about(clipped)
    assert total(ValueLoss(value_clip=None), batch) == about(0.5 * (0.01 + 1) / 2)


def test_ppo_shared_trunk_adds_the_value_loss() -> None:
    values = {"values": one(0.9), "old_values": one(0.5), "returns": one(1.0)}
    batch = token(1, 1) | values
    loss = PPO(vf_coefficient=0.1)(batch)
    assert float(loss.total()) == about(-1 + 0.1 * total(ValueLoss(), {**values, "response.mask": one(1)}))


@pytest.mark.parametrize(("kl", "factor"), [(6.0, 1.0), (60.0, 1.02), (0.0, 0.98), (6.6, 1.01)])
def test_ppo_adaptive_kl(kl: float, factor: float) -> None:
    assert adaptive_kl(0.1, kl, target=6.0, samples=1000, horizon=10000) == about(0.1 * factor)


# --- sar -----------------------------------------------------------------------------------------------------------


def test_sar_is_dr_grpo_with_a_small_kl() -> None:
    batch = lengths([1, -1], [2, 8]) | {"response.reference_logprobs": torch.full((2, 8), -0.7).double()}
    same = GRPO(loss="dr_grpo", beta=0.001, max_length=4096)
    assert total(SAR(), batch) == total(same, batch)


def test_sar_a_group_of_right_answers_is_no_longer_wasted() -> None:
    assert any(group_baseline([1.15, 0.9, 1.02]))
