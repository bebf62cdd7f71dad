"""The cards' "Must hold" lines of the losses inside iterative methods. Test names: card, then the line in short."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from selfloop.workflows.evaluation.ratings import kendall
from selfloop.workflows.objectives import CREAM, DNO, DPO, IREPO, IRPO, SPIN, RewardAugmentedDPO, ScPO
from selfloop.workflows.objectives.irepo import zermelo
from selfloop.workflows.objectives.relabel import goal_pairs, goal_reward
from tests.unit.objectives.batches import (
    LOG2,
    about,
    gradients,
    one,
    pair,
    random_batch,
    repeated,
    sums,
    total,
)

# --- spin, irpo, self-consistency-reward, reward-augmented-dpo ------------------------------------------------------


def test_spin_first_step_ln2() -> None:
    assert total(SPIN(), pair(one(-1, -2), one(-3), one(-1, -2), one(-3))) == about(0.6931, 1e-4)


def test_spin_value_and_hinge() -> None:
    assert total(SPIN(), sums(4, -6)) == about(0.3133, 1e-4)
    assert total(SPIN(loss="hinge"), sums(4, 0)) == about(0.6)


def test_spin_identical_pair_is_inert() -> None:
    """Both views are the same tokens of one model: z = 0 and the total gradient of the model is exactly 0."""
    w = torch.tensor([[-1.0, -2.0]], dtype=torch.float64, requires_grad=True)
    batch = pair(w, w, one(-0.5, -0.7), one(-0.5, -0.7))
    loss = SPIN()(batch).total()
    loss.backward()
    assert float(loss.detach()) == about(LOG2) and w.grad is not None and not w.grad.any()


@pytest.mark.parametrize(
    ("strength", "wanted"),
    [(1.0, (0.5, 0.3, 0.2)), (2.0, (0.3391, 0.3217, 0.3391)), (0.1, (0.99984, 0.00016, 3e-8))],
)
def test_spin_theorem_one_step_optimum(strength: float, wanted: tuple[float, ...]) -> None:
    """Theorem 5.4: minimising the expected loss gives p_t (p_data / p_t)^(1/lambda). Found here by descent."""
    data, old = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.3, 0.5]).double()
    logits = old.log().clone().requires_grad_()
    objective, pairs = SPIN(beta=strength), [(i, j) for i in range(3) for j in range(3)]
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-16)

    def closure() -> Tensor:
        optimizer.zero_grad()
        new = logits.log_softmax(-1)
        sides = [
            torch.stack([p[k[side]] for k in pairs])[:, None] for p in (new, old.log()) for side in (0, 1)
        ]
        batch = pair(sides[0], sides[1], sides[2], sides[3])
        batch["weight"] = torch.stack([data[i] * old[j] for i, j in pairs]) * len(pairs)
        loss = objective(batch).total()
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    assert logits.softmax(-1).tolist() == [pytest.approx(p, abs=6e-5) for p in wanted]


def test_spin_gradient_signs_and_weights() -> None:
    batch = pair(one(-1, -2), one(-3), one(-2, -2), one(-2))
    chosen, rejected = gradients(SPIN(), batch, "chosen.logprobs", "rejected.logprobs")
    z = 0.1 * (1 - (-1))
    weight = 0.1 / (1 + math.exp(z))
    assert chosen.tolist() == [[about(-weight)] * 2] and rejected.tolist() == [[about(weight)]]


def test_spin_expected_gradient_is_zero_at_the_data_distribution() -> None:
    data = torch.tensor([0.5, 0.3, 0.2]).double()
    logits = data.log().requires_grad_()
    new, pairs = logits.log_softmax(-1), [(i, j) for i in range(3) for j in range(3)]
    sides = [torch.stack([p[k[s]] for k in pairs])[:, None] for p in (new, data.log()) for s in (0, 1)]
    batch = pair(*sides) | {"weight": torch.stack([data[i] * data[j] for i, j in pairs])}
    SPIN()(batch).total().backward()
    assert logits.grad is not None and torch.allclose(logits.grad, torch.zeros(3).double(), atol=1e-15)


def test_irpo_value() -> None:
    chosen = torch.full((1, 100), -1.2, dtype=torch.float64)
    batch = pair(chosen, one(-5), chosen - 0.05, one(-5))
    assert total(IRPO(), batch) == about(1.6741, 1e-4)


def test_irpo_alpha_0_is_dpo_and_first_step_ln2() -> None:
    batch = random_batch(DPO(), seed=9)
    assert total(IRPO(nll_coefficient=0), batch) == total(DPO(), batch)
    start = pair(one(-1, -2), one(-3), one(-1, -2), one(-3))
    assert float(IRPO()(start).terms["preference"].sum()) == about(LOG2)


def test_irpo_nll_is_a_mean_while_d_is_a_sum() -> None:
    batch = pair(one(-1, -0.5), one(-1.2), one(-1.1, -0.3), one(-0.9))
    once, twice = IRPO()(batch).terms, IRPO()(repeated(batch)).terms
    assert torch.allclose(once["nll"].sum(), twice["nll"].sum())
    assert torch.allclose(twice["preference"].sum(), IRPO(beta=0.2)(batch).terms["preference"].sum())


@pytest.mark.parametrize(("alpha", "rises"), [(0.0, False), (1.0, True)])
def test_irpo_the_first_step_takes_the_chosen_answer_down_without_the_nll(alpha: float, rises: bool) -> None:
    """The rejected answer says four times what the chosen one says once."""
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    p = logits.log_softmax(-1)
    sides = [torch.stack([p[token] for token in tokens])[None] for tokens in ((0, 1), (0, 0, 0, 0, 2))]
    IRPO(nll_coefficient=alpha)(pair(*sides, *(side.detach() for side in sides))).total().backward()
    assert logits.grad is not None
    after = (logits - logits.grad).log_softmax(-1)
    assert bool(after[0] + after[1] > p[0] + p[1]) is rises


def test_irpo_nll_keeps_the_chosen_logprobs_up() -> None:
    """The paper's diagnostic, on a model whose chosen and rejected answers share a token."""

    def chosen_logprob(alpha: float) -> float:
        logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        reference = logits.detach().log_softmax(-1)
        optimizer = torch.optim.SGD([logits], lr=1.0)
        for _ in range(50):
            p = logits.log_softmax(-1)
            side = [torch.stack([q[0], q[k], q[k]])[None] for q in (p, reference) for k in (1, 2)]
            optimizer.zero_grad()
            IRPO(nll_coefficient=alpha)(pair(*side)).total().backward()
            optimizer.step()
        p = logits.detach().log_softmax(-1)
        return float(p[0] + 2 * p[1])

    start = 3 * math.log(0.25)
    assert chosen_logprob(1.0) > start and chosen_logprob(1.0) > chosen_logprob(0.0)


def test_scpo_value() -> None:
    batch = pair(one(-0.9), one(-1), one(-1.4), one(-1)) | {"weight": one(3 / 8)[0]}
    assert total(ScPO(beta=1), batch) == about(0.375 * 0.4741 + 0.375 * 0.9, 1e-4)
    assert total(ScPO(beta=1), batch) == about(0.5153, 1e-4)


def test_scpo_weight_1_is_irpo() -> None:
    batch = random_batch(IRPO(), seed=3)
    ones = {"weight": torch.ones(len(batch["chosen.mask"]))}
    assert total(ScPO(), {**batch, **ones}) == about(total(IRPO(beta=0.5), batch), 1e-12)


def test_reward_augmented_dpo_pair_becomes_two_rows() -> None:
    pairs = [{"prompt_id": "a", "chosen": "A", "rejected": "B", "chosen_score": 8.0, "rejected_score": 6.5}]
    first, second = goal_pairs(pairs)
    assert (first["goal"], first["chosen"], first["rejected"]) == ("8", "A", "B")
    assert (second["goal"], second["chosen"], second["rejected"]) == ("6.5", "B", "A")
    assert second["chosen_score"] == 6.5 and len(goal_pairs(pairs * 3)) == 6
    assert {n: v for n, v in first.items() if n == "prompt_id"} == {"prompt_id": "a"}


def test_reward_augmented_dpo_equal_scores_are_dropped() -> None:
    assert goal_pairs([{"chosen": "A", "rejected": "B", "chosen_score": 7, "rejected_score": 7}]) == []


def test_reward_augmented_dpo_rows_cancel_without_the_goal() -> None:
    w, v = (torch.tensor([[x]], dtype=torch.float64, requires_grad=True) for x in (-1.0, -2.0))
    objective = RewardAugmentedDPO()
    rows = [pair(w, v, w.detach(), v.detach()), pair(v, w, v.detach(), w.detach())]
    sum(objective(row).total() for row in rows).backward()  # type: ignore[union-attr]
    assert not w.grad.any() and not v.grad.any()  # type: ignore[union-attr]


def test_reward_augmented_dpo_goal_reward() -> None:
    assert goal_reward(6.5, 6.5) == 0 and goal_reward(8.0, 6.5) == -2.25


# --- dno, irepo, cream ----------------------------------------------------------------------------------------------


def _exact(z: float, margin: float) -> float:
    return total(DNO(beta=1, form="exact"), sums(z, 0) | {"margin": one(margin)[0]})


def test_dno_exact_values() -> None:
    assert [_exact(z, 0.5) for z in (0.0, 0.5, 1.0)] == [about(v, 1e-4) for v in (0.6931, 0.6628, 0.6908)]
    assert _exact(0.0, 0.0) < min(_exact(0.1, 0.0), _exact(-0.1, 0.0))


def test_dno_exact_swapping_changes_nothing() -> None:
    assert _exact(0.8, 0.3) == about(_exact(-0.8, -0.3), 1e-12)


def test_dno_exact_with_a_huge_margin_is_dpo() -> None:
    assert _exact(0.8, 50.0) == about(total(DPO(beta=1), sums(0.8, 0)), 1e-12)


def test_dno_practical_is_dpo() -> None:
    batch = random_batch(DPO(), seed=4)
    assert total(DNO(), batch) == total(DPO(), batch)
    assert total(DNO(), sums(4, -6)) == about(0.313262)


def test_dno_exact_gradient_is_0_where_the_margin_says() -> None:
    batch = sums(0.5, 0) | {"margin": one(0.5)[0]}
    assert float(gradients(DNO(form="exact", beta=1), batch, "chosen.logprobs")[0]) == about(0)


@pytest.mark.parametrize("soft", [{"kind": CREAM}, {"kind": DNO, "form": "exact"}])
def test_soft_labels_are_not_smoothed_again(soft: dict[str, object]) -> None:
    kind = soft.pop("kind")
    assert kind in (CREAM, DNO)
    with pytest.raises(ValueError, match="soft already"):
        (CREAM if kind is CREAM else DNO).model_validate({**soft, "label_smoothing": 0.1})


def test_dno_first_step_ln2() -> None:
    assert total(DNO(), pair(one(-1, -2), one(-3), one(-1, -2), one(-3))) == about(LOG2)


def _irepo(d: float, p: float, **settings: object) -> float:
    return total(IREPO.model_validate({"beta": 1, **settings}), sums(d, 0) | {"label": one(p)[0]})


def test_irepo_values() -> None:
    assert math.log(3) == about(1.0986, 1e-4) and _irepo(0, 0.75) == about(1.2069, 1e-4)
    assert total(IREPO(beta=0.1), sums(10.986, 0) | {"label": one(0.75)[0]}) == about(0, 1e-6)


def test_irepo_half_is_target_0_and_flipping_keeps_the_loss() -> None:
    assert _irepo(0, 0.5) == about(0) and _irepo(0, 0.3) == about(_irepo(0, 0.7), 1e-12)
    assert _irepo(0.4, 0.3) == about(_irepo(-0.4, 0.7), 1e-12)


@pytest.mark.parametrize(("d", "sign"), [(0.0, -1), (5.0, 1)])
def test_irepo_gradient_signs(d: float, sign: int) -> None:
    batch = sums(d, 0) | {"label": one(0.75)[0]}
    first, second = gradients(IREPO(beta=1), batch, "chosen.logprobs", "rejected.logprobs")
    assert math.copysign(1, float(first)) == sign and float(second) == -float(first)


@pytest.mark.parametrize(("p", "epsilon", "target"), [(1.0, 0.05, 2.944), (0.99, 0.01, 4.595)])
def test_irepo_unanimous_votes_have_a_finite_target(p: float, epsilon: float, target: float) -> None:
    assert _irepo(0, p, epsilon=epsilon) == about(target**2, 1e-2)


def test_irepo_constant_probability_pushes_every_pair_to_one_margin() -> None:
    for d in (-3.0, 0.0, 7.0):
        assert _irepo(d, 0.99, epsilon=0.001) == about((math.log(99) - d) ** 2, 1e-9)
    assert math.log(99) == about(4.595, 1e-3)


def test_irepo_zermelo() -> None:
    r = zermelo([[0, 3], [1, 0]], pseudo_wins=0)
    assert r[0] - r[1] == about(1.0986, 1e-4) and sum(r) == about(0)
    shifted = [s + 5 for s in r]
    assert 1 / (1 + math.exp(shifted[1] - shifted[0])) == about(0.75, 1e-4)
    assert all(math.isfinite(s) for s in zermelo([[0, 4, 4], [0, 0, 2], [0, 2, 0]]))


def test_irepo_logistic_is_soft_label_dpo_with_the_same_optimum() -> None:
    soft = total(CREAM(beta=1), sums(0.4, 0) | {"label": one(0.75)[0]})
    assert _irepo(0.4, 0.75, loss="logistic") == about(soft, 1e-12)
    batch = sums(math.log(3), 0) | {"label": one(0.75)[0]}
    for loss in ("squared", "logistic"):
        objective = IREPO.model_validate({"beta": 1, "loss": loss})
        assert float(gradients(objective, batch, "chosen.logprobs")[0]) == about(0, 1e-9)


def _cream(z: float, c: float) -> float:
    return total(CREAM(beta=1), sums(z, 0) | {"label": one(c)[0]})


def test_cream_agreement_of_rankings() -> None:
    assert [kendall([1, 2, 3, 4], other) for other in ([1, 3, 2, 4], [4, 3, 2, 1], [1, 2, 3, 4])] == [
        about(2 / 3),
        about(-1),
        about(1),
    ]


def test_cream_values() -> None:
    c = (kendall([1, 2, 3, 4], [1, 3, 2, 4]) + 1) / 2
    assert c == about(0.8333, 1e-4) and math.log(c / (1 - c)) == about(math.log(5), 1e-12)
    assert _cream(0, c) == about(0.6931, 1e-4) and _cream(math.log(5), c) == about(0.4506, 1e-4)


def test_cream_c_1_half_and_0() -> None:
    dpo = [total(DPO(beta=1), sums(z, 0)) for z in (0.7, -0.7)]
    assert _cream(0.7, 1.0) == about(dpo[0]) and _cream(0.7, 0.0) == about(dpo[1])
    assert _cream(0.7, 0.5) == about(_cream(-0.7, 0.5))
    half = sums(0, 0) | {"label": one(0.5)[0]}
    assert float(gradients(CREAM(beta=1), half, "chosen.logprobs")[0]) == about(0)


def test_cream_gradient_at_0() -> None:
    batch = sums(0, 0) | {"label": one(5 / 6)[0]}
    assert float(gradients(CREAM(beta=0.1), batch, "chosen.logprobs")[0]) == about(-0.03333, 1e-5)


def test_cream_equals_label_smoothing_1_minus_c() -> None:
    assert _cream(0.3, 0.8) == about(total(DPO(beta=1, label_smoothing=0.2), sums(0.3, 0)), 1e-12)


def test_cream_one_c_for_all_and_one_a_prompt_differ() -> None:
    batch = pair(torch.tensor([[1.0], [-1.0]]).double(), torch.zeros(2, 1).double())
    losses = [total(CREAM(beta=1), batch | {"label": torch.tensor(c)}) for c in ([0.75, 0.75], [0.9, 0.6])]
    assert losses[0] != about(losses[1])
