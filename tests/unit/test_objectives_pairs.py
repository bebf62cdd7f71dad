"""The cards' "Must hold" lines of SFT and the losses on preference pairs. Test names: card, then the line in short."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from selfloop.workflows.objectives import (
    ASFT,
    CPO,
    CREAM,
    DNO,
    DPO,
    IREPO,
    IRPO,
    LNDPO,
    ORPO,
    POFT,
    SFT,
    SPIN,
    Objective,
    RewardAugmentedDPO,
    ScPO,
    SimPO,
)
from selfloop.workflows.objectives.irepo import zermelo
from selfloop.workflows.objectives.maths import log1mexp
from selfloop.workflows.objectives.odds import log_odds
from selfloop.workflows.objectives.relabel import goal_pairs, goal_reward
from selfloop.workflows.objectives.sft import repeat_mask, unlikelihood
from tests.unit.objectives_batches import gradients, one, pair, random_batch

LOG2 = math.log(2)
NAN = float("nan")


def about(value: float, places: float = 1e-6) -> object:
    return pytest.approx(value, abs=places)


def total(objective: Objective, batch: dict[str, Tensor]) -> float:
    return float(objective(batch).total())


def sums(chosen: float, rejected: float) -> dict[str, Tensor]:
    """A pair whose log-ratios are these: one token each, references zero."""
    return pair(one(chosen), one(rejected))


def response(*rows: list[float], **columns: list[float]) -> dict[str, Tensor]:
    """Rows of log-probs, padded with nan."""
    width = max(map(len, rows))
    logprobs = torch.tensor([[*row, *[NAN] * (width - len(row))] for row in rows], dtype=torch.float64)
    batch = {"response.logprobs": logprobs, "response.mask": logprobs.isfinite().double()}
    return batch | {name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()}


def repeated(batch: dict[str, Tensor], times: int = 2) -> dict[str, Tensor]:
    """Every token twice, with the same log-probs."""
    return {n: c.repeat_interleave(times, -1) if "." in n else c for n, c in batch.items()}


# --- sft ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("normalizer", "loss"), [("token-mean", 1.75), ("sequence-mean", 1.5), ("sequence-sum", 3.5)]
)
def test_sft_three_normalizers(normalizer: str, loss: float) -> None:
    assert total(SFT.model_validate({"normalizer": normalizer}), response([-1], [-2, -2, -2])) == about(loss)


def test_sft_token_mean_needs_a_global_denominator() -> None:
    short, long = response([-1.0]), response([-2.0, -2.0, -2.0])
    losses = [SFT()(short).terms["nll"], SFT()(long).terms["nll"]]
    local = sum(float(term.sum() / term.count()) for term in losses) / 2
    globally = float(sum(t.sum() for t in losses) / sum(t.count() for t in losses))
    assert globally == about(1.75) and local == about(1.5)


def test_sft_prompt_and_padding_get_no_gradient() -> None:
    (slope,) = gradients(SFT(), response([-1], [-2, -2, -2]), "response.logprobs")
    assert slope.tolist() == [[-0.25, 0, 0], [-0.25, -0.25, -0.25]]


def test_sft_a_weight_of_zero_takes_a_row_out_but_not_out_of_the_divisor() -> None:
    batch = response([-1], [-2, -2, -2], weight=[0, 1])
    assert total(SFT(normalizer="sequence-mean"), batch) == about(1.0)


@pytest.mark.parametrize(
    ("p", "loss", "slope"), [(0.5, LOG2, 1.0), (0.9, -math.log(0.1), 9.0), (1e-12, 0.0, 0.0)]
)
def test_sft_unlikelihood_values_and_slopes(p: float, loss: float, slope: float) -> None:
    batch = response([math.log(p)], label=[0])
    assert total(SFT(unlikelihood="token"), batch) == about(loss)
    assert float(gradients(SFT(unlikelihood="token"), batch, "response.logprobs")[0]) == about(slope)


def test_sft_unlikelihood_stays_finite_at_p_1() -> None:
    assert float(unlikelihood(torch.zeros(1))) == about(-math.log(1e-5), 1e-3)


def test_sft_unlikelihood_of_marked_tokens_only() -> None:
    batch = response([math.log(0.5)] * 3, label=[0], **{"response.unlikely": [[0, 1, 0]]})  # type: ignore[dict-item]
    assert total(SFT(unlikelihood="token", normalizer="sequence-sum"), batch) == about(LOG2)


def test_sft_whole_sequence_forms() -> None:
    batch = response([math.log(0.5)] * 2, label=[0])
    assert total(SFT(unlikelihood="sequence"), batch) == about(-math.log(1 - 0.25))
    assert total(SFT(unlikelihood="mean"), batch) == about(LOG2)


def test_sft_repeat_mask_marks_a_repeat_that_ends_the_text() -> None:
    assert [i for i, bad in enumerate(repeat_mask((4, 9, 2, 4, 9, 2, 7), 2)) if bad] == [3, 4, 5]
    assert repeat_mask((1, 2, 1, 2), 2) == [False, False, True, True]


def test_sft_on_one_row_drives_its_loss_to_zero() -> None:
    assert _trained(SFT(), [1.0]) == about(0.0, 1e-2)


def test_sft_nll_and_unlikelihood_on_the_same_row_meet_at_one_half() -> None:
    assert _trained(SFT(unlikelihood="token"), [1.0, 0.0]) == about(2 * LOG2 / 2, 1e-4)


def _trained(objective: SFT, labels: list[float]) -> float:
    """The loss after training a one-parameter model (p = sigmoid(w)) on the same token under these labels."""
    w = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=0.1)
    loss = w
    for _ in range(300):
        batch = response(*[[-1.0]] * len(labels), label=labels)
        batch["response.logprobs"] = torch.nn.functional.logsigmoid(w).expand(len(labels), 1)
        loss = objective(batch).total()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


# --- dpo ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.05, 0.1, 2.0])
@pytest.mark.parametrize(
    "settings", [{}, {"label_smoothing": 0.2}, {"loss": "robust", "label_smoothing": 0.2}], ids=str
)
def test_dpo_policy_equals_reference_log2(beta: float, settings: dict[str, object]) -> None:
    batch = pair(one(-1, -2), one(-3), one(-1, -2), one(-3))
    assert total(DPO.model_validate({"beta": beta, **settings}), batch) == about(LOG2)


def test_dpo_policy_equals_reference_hinge_and_ipo() -> None:
    batch = pair(one(-1, -2), one(-3), one(-1, -2), one(-3))
    assert total(DPO(loss="hinge"), batch) == about(1)
    assert total(DPO(loss="ipo", tau=0.1), batch) == about(25)
    assert total(DPO(loss="ipo", beta=0.1), batch) == about(25)


def test_dpo_policy_equals_reference_gradient_is_not_zero() -> None:
    batch = pair(one(-1, -2), one(-3), one(-1, -2), one(-3))
    chosen, rejected = gradients(DPO(), batch, "chosen.logprobs", "rejected.logprobs")
    assert chosen.tolist() == [[about(-0.05), about(-0.05)]] and rejected.tolist() == [[about(0.05)]]


def test_dpo_value_and_gradient() -> None:
    batch = pair(one(0.1, 0.2), one(-0.2))
    assert total(DPO(), batch) == about(0.668460)
    assert gradients(DPO(), batch, "chosen.logprobs")[0].tolist() == [[about(-0.0487503)] * 2]


@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        ({}, 0.313262),
        ({"label_smoothing": 0.1}, 0.413262),
        ({"loss": "robust", "label_smoothing": 0.1}, 0.188262),
    ],
    ids=["dpo", "cdpo", "robust"],
)
def test_dpo_x_1_smoothing(settings: dict[str, object], loss: float) -> None:
    assert total(DPO.model_validate({"beta": 1, **settings}), sums(1, 0)) == about(loss)


def test_dpo_cdpo_gradient_is_zero_at_its_margin() -> None:
    batch = sums(math.log(9), 0)
    assert math.log(9) == about(2.197225)
    assert float(gradients(DPO(beta=1, label_smoothing=0.1), batch, "chosen.logprobs")[0]) == about(0)


def test_dpo_robust_gradient_never_vanishes() -> None:
    (slope,) = gradients(DPO(beta=1, loss="robust", label_smoothing=0.1), sums(60, 0), "chosen.logprobs")
    assert float(slope) == about(-0.1 / 0.8)


def test_dpo_constants_and_values_behind_the_mask_change_nothing() -> None:
    batch = random_batch(DPO(), seed=7)
    moved = {n: c + 0.37 if n.startswith("chosen.") and "mask" not in n else c for n, c in batch.items()}
    assert total(DPO(), moved) == about(total(DPO(), batch), 1e-12)
    hidden = {
        n: c.where(batch["chosen.mask"] > 0, 99.0) if n == "chosen.logprobs" else c for n, c in batch.items()
    }
    assert total(DPO(), hidden) == total(DPO(), batch)


def test_dpo_swapping_sides() -> None:
    x = 0.7
    assert total(DPO(beta=1), sums(x, 0)) - total(DPO(beta=1), sums(0, x)) == about(-x)


def test_dpo_gradients_equal_and_opposite_whatever_the_length() -> None:
    batch = pair(torch.full((1, 9), -0.1, dtype=torch.float64), one(-0.4))
    chosen, rejected = gradients(DPO(), batch, "chosen.logprobs", "rejected.logprobs")
    assert torch.allclose(chosen, -rejected.expand(1, 9))
    assert float(chosen.sum() / rejected.sum()) == about(-9)


def test_dpo_ipo_means_and_sums() -> None:
    batch = pair(one(0.5, 0.5), one(0.2))
    assert total(DPO(loss="ipo", tau=1), batch) == about((0.5 - 0.2 - 0.5) ** 2)
    assert total(DPO(loss="ipo", tau=1, ipo_average=False), batch) == about((1.0 - 0.2 - 0.5) ** 2)


def test_dpo_slic_needs_no_reference() -> None:
    batch = {n: c for n, c in pair(one(-1, -1), one(-1.5)).items() if "reference" not in n}
    assert total(DPO(loss="slic"), batch) == about(max(0, 1 + 2 - 1.5) + 0.1 * 2)
    assert not DPO(loss="slic").needs_reference and DPO().needs_reference


# --- simpo, ln-dpo, cpo --------------------------------------------------------------------------------------------


def test_simpo_value() -> None:
    batch = pair(one(-1.0), one(-1.2))
    assert total(SimPO(beta=2, gamma=0.5), batch) == about(0.744397)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_simpo_equal_averages(gamma: float) -> None:
    loss = total(SimPO(gamma=gamma), pair(one(-1, -1), one(-1)))
    assert loss == about(math.log1p(math.exp(gamma)))


def test_simpo_repeating_tokens_changes_nothing_but_doubles_dpo() -> None:
    batch = pair(one(-1, -0.5), one(-1.2))
    assert total(SimPO(), repeated(batch)) == about(total(SimPO(), batch), 1e-12)
    assert total(DPO(), repeated(batch)) == about(total(DPO(beta=0.2), batch), 1e-12)


def test_simpo_total_gradient_is_independent_of_length() -> None:
    batch = pair(one(-1, -1, -1, -1), one(-1.2))
    chosen, rejected = gradients(SimPO(), batch, "chosen.logprobs", "rejected.logprobs")
    assert float(chosen.sum()) == about(-float(rejected.sum()))
    assert chosen.tolist() == [[about(-float(rejected) / 4)] * 4]


def test_simpo_reads_no_reference_and_takes_one_token() -> None:
    assert not SimPO().needs_reference
    assert all(names == ("logprobs",) for names in SimPO().reads.values())


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_ln_dpo_policy_equals_reference(beta: float) -> None:
    batch = pair(one(-1, -2), one(-3), one(-1, -2), one(-3))
    assert total(LNDPO(beta=beta), batch) == about(LOG2)
    chosen, rejected = gradients(LNDPO(beta=beta), batch, "chosen.logprobs", "rejected.logprobs")
    assert chosen.tolist() == [[about(-beta / 4)] * 2] and rejected.tolist() == [[about(beta / 2)]]


def test_ln_dpo_value_against_dpo() -> None:
    batch = pair(torch.full((1, 8), 0.1, dtype=torch.float64), one(-0.1, -0.1))
    assert total(LNDPO(beta=1), batch) == about(0.598139)
    assert total(DPO(beta=1), batch) == about(0.313262)


def test_ln_dpo_repeating_tokens_changes_nothing() -> None:
    batch = pair(one(-1, -0.5), one(-1.2), one(-1.1, -0.3), one(-0.9))
    assert total(LNDPO(), repeated(batch)) == about(total(LNDPO(), batch), 1e-12)


def test_ln_dpo_equal_lengths_is_dpo_with_beta_over_n() -> None:
    batch = pair(one(-1, -0.5, -0.2), one(-1.2, -0.1, -0.7), one(-1.1, -0.3, -1), one(-0.9, -1, -0.2))
    assert total(LNDPO(beta=1.5), batch) == about(total(DPO(beta=0.5), batch), 1e-12)


def test_ln_dpo_swapping_sides() -> None:
    assert total(LNDPO(beta=1), sums(0.4, 0)) - total(LNDPO(beta=1), sums(0, 0.4)) == about(-0.4)


def test_cpo_value() -> None:
    batch = pair(one(-2, -3), one(-4, -3))
    assert float(CPO()(batch).terms["preference"].sum()) == about(0.598139)


def test_cpo_without_nll_is_dpo_with_zero_references() -> None:
    batch = random_batch(CPO(), seed=2)
    zeros = {
        f"{view}.reference_logprobs": torch.zeros_like(batch[f"{view}.mask"])
        for view in ("chosen", "rejected")
    }
    assert total(CPO(nll_coefficient=0), batch) == about(total(DPO(), {**batch, **zeros}), 1e-12)


def test_cpo_is_not_length_invariant() -> None:
    batch, cut = pair(one(-1), one(-1, -1)), pair(one(-1), one(-1))
    assert total(CPO(), batch) != about(total(CPO(), cut))
    assert total(CPO(), cut) == about(LOG2 + 1)


def test_cpo_nll_pulls_where_the_preference_is_saturated() -> None:
    batch = pair(one(-1, -1), one(-5000))
    (slope,) = gradients(CPO(), batch, "chosen.logprobs")
    assert slope.tolist() == [[about(-0.5), about(-0.5)]]


def test_cpo_reads_no_reference() -> None:
    assert not CPO().needs_reference


def test_cpo_simpo_is_simpo() -> None:
    batch = random_batch(CPO(), seed=5)
    same = CPO(beta=2, gamma=1, nll_coefficient=0, length_normalized=True)
    assert total(same, batch) == total(SimPO(), batch)


# --- orpo, asft ----------------------------------------------------------------------------------------------------


def test_orpo_values() -> None:
    batch = pair(one(-0.5), one(-1.0))
    odds = log_odds(torch.tensor([-0.5, -1.0], dtype=torch.float64))
    assert odds.tolist() == [about(0.432752), about(-0.541325)]
    assert float(ORPO()(batch).terms["odds"].sum() / 0.1) == about(0.320300)
    assert total(ORPO(), batch) == about(0.532030)


def test_orpo_lambda_0_is_sft_on_the_chosen_response() -> None:
    batch = random_batch(ORPO(), seed=4)
    chosen = {name.replace("chosen", "response"): c for name, c in batch.items() if name.startswith("chosen")}
    assert total(ORPO(beta=0), batch) == about(total(SFT(), chosen), 1e-12)
    averaged = ORPO(beta=0, nll_normalizer="sequence-mean")
    assert total(averaged, batch) == about(total(SFT(normalizer="sequence-mean"), chosen), 1e-12)


def test_orpo_equal_averages_log2() -> None:
    batch = pair(one(-0.7, -0.7), one(-0.7))
    assert float(ORPO(beta=1)(batch).terms["odds"].sum()) == about(LOG2)


def test_orpo_odds_part_is_length_invariant_and_reads_no_reference() -> None:
    batch = pair(one(-0.7, -0.2), one(-0.9))
    terms = [ORPO()(b).terms["odds"].sum() for b in (batch, repeated(batch))]
    assert torch.allclose(*terms)
    assert not ORPO().needs_reference


@pytest.mark.parametrize("m", [0.0, -1e-9, -1e-7, -100.0])
def test_orpo_stays_finite_in_float32(m: float) -> None:
    batch = pair(torch.full((1, 2), m), torch.full((1, 2), m))
    slopes = gradients(ORPO(), batch, "chosen.logprobs", "rejected.logprobs")
    assert ORPO()(batch).total().isfinite() and all(slope.isfinite().all() for slope in slopes)


def test_orpo_gradient_signs() -> None:
    for seed in range(20):
        batch = random_batch(ORPO(), seed=seed)
        chosen, rejected = gradients(ORPO(), batch, "chosen.logprobs", "rejected.logprobs")
        assert (chosen[batch["chosen.mask"] > 0] < 0).all() and (
            rejected[batch["rejected.mask"] > 0] > 0
        ).all()


def test_log1mexp_is_accurate_at_both_ends() -> None:
    x = torch.tensor([-1e-5, -0.5, -LOG2, -1.0, -50.0], dtype=torch.float64)
    exact = [math.log(-math.expm1(v)) for v in x.tolist()]
    assert log1mexp(x).tolist() == [pytest.approx(v, rel=1e-12) for v in exact]


def test_asft_values() -> None:
    batch = pair(one(-0.5), one(-1.0))
    terms = ASFT(beta=1)(batch).terms
    assert float(terms["chosen"].sum()) == about(0.5) and float(terms["rejected"].sum()) == about(0.458675)
    assert total(ASFT(beta=1), batch) == about(1.458675)


def test_asft_lambda_0_is_sft_per_example() -> None:
    batch = random_batch(ASFT(), seed=4)
    chosen = {name.replace("chosen", "response"): c for name, c in batch.items() if name.startswith("chosen")}
    assert total(ASFT(beta=0), batch) == about(total(SFT(normalizer="sequence-mean"), chosen), 1e-12)


def test_asft_chosen_and_rejected_never_interact() -> None:
    batch = random_batch(ASFT(), seed=1)
    swap = [1, 0, 2, 3, 4]
    swapped = {n: c[swap] if n.startswith("rejected") else c for n, c in batch.items()}
    before = gradients(ASFT(), batch, "chosen.logprobs", "rejected.logprobs")
    after = gradients(ASFT(), swapped, "chosen.logprobs", "rejected.logprobs")
    assert torch.equal(before[0], after[0]) and torch.equal(before[1][swap], after[1])


def test_asft_closed_form_equals_odds_form() -> None:
    m = torch.linspace(-5, -0.01, 50, dtype=torch.float64)
    softplus = torch.nn.functional.softplus
    assert torch.allclose(softplus(-log_odds(m)), -m, rtol=0, atol=1e-12)
    assert torch.allclose(softplus(log_odds(m)), -log1mexp(m), rtol=0, atol=1e-12)
    batch = random_batch(ASFT(), seed=8)
    nearly = ASFT(beta=1, temperature=1 + 1e-13)
    assert total(nearly, batch) == about(total(ASFT(beta=1), batch), 1e-12)


def test_asft_rejected_part_at_both_ends() -> None:
    far, near = pair(one(-1), one(-60)), pair(one(-1), one(-1e-9))
    assert float(ASFT(beta=1)(far).terms["rejected"].sum()) == about(0)
    assert float(gradients(ASFT(), far, "rejected.logprobs")[0]) == about(0)
    assert 10 < float(ASFT(beta=1)(near).terms["rejected"].sum()) < 20


def test_asft_bounds_orpo_from_above() -> None:
    for seed in range(20):
        batch = random_batch(ASFT(), seed=seed)
        asft, orpo = ASFT(beta=1)(batch).terms, ORPO(beta=1)(batch).terms
        assert orpo["odds"].sum() <= asft["chosen"].sum() + asft["rejected"].sum()


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


# --- dno, irepo, cream, poft -----------------------------------------------------------------------------------------


def _exact(z: float, margin: float) -> float:
    return total(DNO(beta=1, form="exact"), sums(z, 0) | {"margin": one(margin)[0]})


def test_dno_exact_values() -> None:
    assert [_exact(z, 0.5) for z in (0.0, 0.5, 1.0)] == [about(v, 1e-4) for v in (0.6931, 0.6628, 0.6908)]
    assert _exact(0.0, 0.0) < min(_exact(0.1, 0.0), _exact(-0.1, 0.0))


def test_dno_exact_swapping_changes_nothing() -> None:
    assert _exact(0.8, 0.3) == about(_exact(-0.8, -0.3), 1e-12)


def test_dno_exact_with_a_huge_margin_is_dpo() -> None:
    assert _exact(0.8, 50.0) == about(total(DPO(beta=1), sums(0.8, 0)), 1e-12)


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


def test_cream_values() -> None:
    c = (4 / 6 + 1) / 2  # tau = (5 - 1) / 6
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


def test_poft_values() -> None:
    batch = response([-1.0], score=[-0.8])
    assert total(POFT(), batch) == about(0.798139)
    assert float(gradients(POFT(), batch, "response.logprobs")[0]) == about(-0.549834)


def test_poft_equal_likelihoods_half_the_sft_gradient() -> None:
    batch = response([-1.0, -3.0], score=[-2.0])
    assert total(POFT(), batch) == about(LOG2)
    sft = gradients(SFT(normalizer="sequence-mean"), batch, "response.logprobs")[0]
    assert torch.allclose(gradients(POFT(), batch, "response.logprobs")[0], sft / 2)


def test_poft_gradient_is_parallel_to_sft_and_never_larger() -> None:
    last = 1.0
    for logprob in (-3.0, -1.0, -0.1):
        (slope,) = gradients(POFT(), response([logprob] * 2, score=[-1.0]), "response.logprobs")
        tau = float(-slope[0, 0] * 2)
        assert slope[0, 0] == slope[0, 1] and 0 < tau < 1 and tau < last
        last = tau


def test_poft_limits_of_rbar() -> None:
    low, high = response([-1.0, -2.0], score=[-80.0]), response([-1.0, -2.0], score=[80.0])
    assert total(POFT(), low) == about(0)
    sft = gradients(SFT(normalizer="sequence-mean"), high, "response.logprobs")[0]
    assert torch.allclose(gradients(POFT(), high, "response.logprobs")[0], sft)


def test_poft_reads_one_float_a_sample_of_the_aligned_models() -> None:
    """rbar is a column: a mean of log-likelihood means, made offline; no tokens of those models are read."""
    assert POFT().reads == {"response": ("logprobs",)} and POFT.columns == ("score",)
