"""The cards' "Must hold" lines of reward-transform, infalign and SAR's reward. Test names: card, then the line."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from selfloop.workflows.judges.transforms import (
    TRANSFORMS,
    InfAlign,
    LogSigmoidCentred,
    beta_at_kl,
    calibrate,
    conjunction,
    inference_win_rate,
    optimal_transform,
    self_aligned_reward,
    tilt_kl,
)


def about(value: float, places: float = 1e-6) -> object:
    return pytest.approx(value, abs=places)


LSC = LogSigmoidCentred()


def test_transforms_are_listed_by_slug() -> None:
    assert {"reward-transform": LogSigmoidCentred, "infalign": InfAlign} == TRANSFORMS


@pytest.mark.parametrize("slug", list(TRANSFORMS))
def test_transforms_answer_in_kind(slug: str) -> None:
    transform, base = TRANSFORMS[slug](), [0.0, 1.0, 2.0, 3.0]
    number, numbers = transform(1.5, base), transform([1.5, 0.2], base)
    assert isinstance(number, float) and isinstance(numbers, list) and numbers[0] == about(number)
    tensor = transform(torch.tensor([1.5, 0.2]), base)
    assert isinstance(tensor, torch.Tensor) and tensor.tolist() == [about(v) for v in numbers]
    assert isinstance(transform(np.array([1.5]), base), np.ndarray)


# --- reward-transform ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gap", "u", "slope"),
    [(0, -0.693147, 0.5), (2, -0.126928, 0.119203), (-2, -2.126928, 0.880797), (-800, -800, 1)],
)
def test_reward_transform_values_and_slopes(gap: float, u: float, slope: float) -> None:
    assert LSC(gap, 0.0) == about(u)
    assert (LSC(gap + 1e-5, 0.0) - LSC(gap - 1e-5, 0.0)) / 2e-5 == about(slope, 1e-5)


def test_reward_transform_is_monotone() -> None:
    rewards = [random.Random(0).gauss(0, 3) for _ in range(50)]
    transformed = LSC(rewards, [0.0, 1.0, 2.0])
    assert np.argsort(rewards).tolist() == np.argsort(transformed).tolist()


def test_reward_transform_conjunction_prefers_the_balanced_answer() -> None:
    uneven, balanced = conjunction(LSC(2.0, 0.0), LSC(-2.0, 0.0)), conjunction(LSC(0.0, 0.0), LSC(0.0, 0.0))
    assert (uneven, balanced) == (about(-2.253856), about(-1.386294)) and balanced > uneven


def test_reward_transform_shifts() -> None:
    base = [0.0, 1.0, 2.0]
    assert LSC(1.3 + 5, [b + 5 for b in base]) == about(LSC(1.3, base))
    gaps = [LSC(1.3, base) - LSC(0.1, base), LSC(1.3, 4.0) - LSC(0.1, 4.0)]
    assert abs(gaps[0] - gaps[1]) > 0.1


def test_reward_transform_bounds_the_tilt() -> None:
    """With u <= 0 the optimum p0 e^u / Z is tilted by at most 1 / p0(G); raw rewards tilt without bound."""
    p0, rewards = np.full(4, 0.25), np.array([0.0, 1.0, 2.0, 300.0])
    good = np.exp(LSC(rewards, 0.0))
    tilt = good / (p0 * good).sum()
    assert tilt.max() <= 1 / (p0 * good).sum() + 1e-12 and tilt.max() < 2


def test_reward_transform_reference_quantiles() -> None:
    base = [float(v) for v in range(101)]
    assert LSC.reference(base) == about(85)
    normal = LogSigmoidCentred(fit="normal").reference(base)
    assert normal == about(50 + 1.036433 * float(np.std(base, ddof=1)), 1e-3)
    assert LSC.reference(0.7) == LogSigmoidCentred(fit="normal").reference([0.7]) == 0.7


# --- infalign ------------------------------------------------------------------------------------------------------


def test_infalign_increasing_changes_of_the_reward_change_nothing() -> None:
    base, rewards = [0.0, 1.0, 1.0, 2.0], [0.5, 1.0, 3.0]
    cubed = InfAlign()([r**3 for r in rewards], [b**3 for b in base])
    assert cubed == InfAlign()(rewards, base)


def test_infalign_ties_count_half() -> None:
    assert calibrate([1, 3], [0, 1, 1, 2]) == [0.5, 1.0]


def test_infalign_mean_over_base_samples_is_one_half() -> None:
    base = [random.Random(1).choice([0.0, 1.0, 2.0, 5.0]) for _ in range(300)]
    assert float(np.mean(calibrate(base, base))) == about(0.5)
    each = [calibrate(one, base[:place] + base[place + 1 :]) for place, one in enumerate(base)]
    assert float(np.mean(each)) == about(0.5)
    assert calibrate(9.0, base) == 1


IDENTITY = InfAlign(form="identity").phi
BEST = InfAlign(form="exponential", t=5).phi
WORST = InfAlign(form="exponential", t=-5).phi


def test_infalign_win_rates_of_the_identity() -> None:
    assert inference_win_rate(IDENTITY, 0.5) == about(0.656518)
    assert tilt_kl(IDENTITY, 0.5) == about(0.151596)
    assert inference_win_rate(IDENTITY, 0.5, 4) == about(0.687183)
    assert inference_win_rate(IDENTITY, 0.5, 4, worst=True) == about(0.723024)
    for worst in (False, True):
        assert inference_win_rate(IDENTITY, 1e9, 4, worst=worst) == about(0.5)
    assert tilt_kl(IDENTITY, 1e9) == about(0)


def test_infalign_the_right_transform_wins_its_own_procedure_at_kl_1() -> None:
    wanted = {IDENTITY: (0.877, 0.975), BEST: (0.919, 0.857), WORST: (0.835, 0.991)}
    for phi, rates in wanted.items():
        beta = beta_at_kl(phi, 1.0)
        assert tilt_kl(phi, beta) == about(1, 1e-6)
        found = tuple(inference_win_rate(phi, beta, 4, worst=worst) for worst in (False, True))
        assert found == tuple(about(rate, 1e-3) for rate in rates)
    plain = [inference_win_rate(phi, beta_at_kl(phi, 1.0)) for phi in (IDENTITY, BEST)]
    assert plain == [about(0.865, 1e-3), about(0.839, 1e-3)]


@pytest.mark.parametrize("form", ["unit", "exponential", "identity", "log"])
@pytest.mark.parametrize("t", [10.0, -10.0])
def test_infalign_increasing_transforms_keep_the_ranking(form: str, t: float) -> None:
    rewards, base = [0.3, 2.5, 1.1, 1.9], [float(v) / 10 for v in range(30)]
    transformed = InfAlign.model_validate({"form": form, "t": t})(rewards, base)
    assert np.argsort(transformed).tolist() == np.argsort(rewards).tolist()


@pytest.mark.parametrize("t", [10.0, -10.0])
def test_infalign_unit_form_is_affine_in_the_exponential_and_in_0_to_1(t: float) -> None:
    u = np.linspace(0, 1, 7)
    unit, raw = InfAlign(t=t).phi(u), InfAlign(form="exponential", t=t).phi(u)
    assert unit[0] == 0 and unit[-1] == about(1)
    assert np.allclose(unit, (raw - raw[0]) / (raw[-1] - raw[0]))


def test_infalign_optimal_transform_is_its_own_fixed_point() -> None:
    u = np.array([0.0, 0.3, 0.7, 1.0])
    assert np.allclose(optimal_transform(1, 0.3)(u), u, atol=1e-3)
    best = optimal_transform(4, 0.2)
    kl = tilt_kl(best, 0.2)
    for phi in (IDENTITY, BEST, WORST):
        assert inference_win_rate(best, 0.2, 4) >= inference_win_rate(phi, beta_at_kl(phi, kl), 4) - 1e-6


# --- sar -----------------------------------------------------------------------------------------------------------


def ppl(*values: float) -> list[float]:
    """Log-probs whose perplexity is this, one token each."""
    return [-math.log(v) for v in values]


@pytest.mark.parametrize(
    ("without", "given", "right", "wrong"),
    [(20, 5, 1.15, 0.15), (5, 20, 0.8, -0.2), (7, 7, 1, 0), (6, 9, 0.9, -0.1)],
)
def test_sar_values(without: float, given: float, right: float, wrong: float) -> None:
    assert self_aligned_reward(1, ppl(given), ppl(without)) == about(right)
    assert self_aligned_reward(0, ppl(given), ppl(without)) == about(wrong)


def test_sar_a_correct_answer_always_beats_a_wrong_one() -> None:
    draw = random.Random(2)
    pairs = [([-draw.expovariate(0.3)], [-draw.expovariate(0.3)]) for _ in range(200)]
    assert (
        min(self_aligned_reward(1, *p) for p in pairs)
        >= 0.8
        > 0.2
        > max(self_aligned_reward(0, *p) for p in pairs)
    )


def test_sar_alpha_above_one_half_can_turn_right_and_wrong_around() -> None:
    unlikely, likely = (ppl(20), ppl(5)), (ppl(5), ppl(500))
    for alpha, kept in ((0.49, True), (0.7, False)):
        right = self_aligned_reward(1, *unlikely, alpha=alpha)
        wrong = self_aligned_reward(0, *likely, alpha=alpha)
        assert (right > wrong) is kept


def test_sar_scale_and_length_do_not_matter() -> None:
    given, without = [-1.0, -2.0], [-2.5, -1.5]
    scaled = [[v - 0.7 for v in side] for side in (given, without)]
    assert self_aligned_reward(1, *scaled) == about(self_aligned_reward(1, given, without))
    assert self_aligned_reward(1, given * 2, without * 2) == about(self_aligned_reward(1, given, without))


def test_sar_alpha_0_is_plain_and_the_empty_question_gives_0() -> None:
    assert self_aligned_reward(1, [-1.0], [-3.0], alpha=0) == 1
    assert self_aligned_reward(0, [-1.3, -0.2], [-1.3, -0.2]) == 0
    assert self_aligned_reward(1, [], []) == 1


def test_sar_both_lists_score_the_same_tokens() -> None:
    with pytest.raises(ValueError, match="same response tokens"):
        self_aligned_reward(1, [-1.0], [-1.0, -2.0])


def test_sar_absurd_gaps_do_not_overflow() -> None:
    assert self_aligned_reward(1, [-5000.0], [-1.0]) == about(0.8)
