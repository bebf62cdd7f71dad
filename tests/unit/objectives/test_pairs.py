"""The cards' "Must hold" lines of the losses on preference pairs. Test names: card, then the line in short."""

from __future__ import annotations

import math

import pytest
import torch

from selfloop.workflows.objectives import ASFT, CPO, DPO, LNDPO, ORPO, SFT, SimPO
from selfloop.workflows.objectives.maths import log1mexp
from selfloop.workflows.objectives.odds import log_odds
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

# --- dpo ------------------------------------------------------------------------------------------------------------


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


# --- simpo, ln-dpo, cpo ---------------------------------------------------------------------------------------------


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


def test_cpo_nll_is_a_mean_over_all_tokens() -> None:
    chosen = torch.tensor([[-1.0, 0, 0], [-1.0, -1.0, -1.0]]).double()
    batch = pair(chosen, torch.full((2, 1), -5000.0).double())
    batch["chosen.mask"] = torch.tensor([[1.0, 0, 0], [1.0, 1.0, 1.0]]).double()
    (slope,) = gradients(CPO(), batch, "chosen.logprobs")
    assert slope[batch["chosen.mask"] > 0].tolist() == [about(-0.25)] * 4


def test_cpo_reads_no_reference() -> None:
    assert not CPO().needs_reference


def test_cpo_simpo_is_simpo() -> None:
    batch = random_batch(CPO(), seed=5)
    same = CPO(beta=2, gamma=1, nll_coefficient=0, length_normalized=True)
    assert total(same, batch) == total(SimPO(), batch)


# --- orpo, asft -----------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("logprob", [-1e-7, -1e-9, 0.0])
def test_orpo_gradient_signs_hold_for_sure_tokens(logprob: float) -> None:
    chosen, rejected = gradients(
        ORPO(), pair(one(logprob), one(logprob)), "chosen.logprobs", "rejected.logprobs"
    )
    assert float(chosen) < 0 < float(rejected)


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
