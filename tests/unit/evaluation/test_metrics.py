"""The metrics card's "must hold" lines: sampling metrics, votes, flips, win rates, intervals, diversity."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfloop.workflows.evaluation import metrics

VOTES = [7, 7, 8, 7, 9, 8]


def brute_majority(answers: list[int | None], gold: int, k: int) -> float:
    """The definition, subset by subset."""
    shares = []
    for subset in itertools.combinations(answers, k):
        parsed = [answer for answer in subset if answer is not None]
        counts = {answer: parsed.count(answer) for answer in parsed}
        leaders = [answer for answer, count in counts.items() if count == max(counts.values())]
        shares.append((gold in leaders) / len(leaders) if leaders else 0.0)
    return float(np.mean(shares))


def test_pass_at_k_has_the_cards_values() -> None:
    assert metrics.pass_at_k(10, 3, 5) == pytest.approx(0.916667, abs=1e-6)
    assert pytest.approx(0.83193) == 1 - (1 - 3 / 10) ** 5  # the biased estimate, which this is not
    assert metrics.pass_at_k(200, 7, 100) == pytest.approx(0.992991, abs=1e-6)
    assert metrics.pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert metrics.pass_at_k(10, 1, 10) == 1.0
    assert metrics.pass_at_k(10, 0, 10) == 0.0


def test_pass_at_k_takes_tasks_of_different_size() -> None:
    values = metrics.pass_at_k([10, 4, 4], [3, 0, 4], 4)
    assert values.shape == (3,)
    assert values[1:].tolist() == [0.0, 1.0]
    assert metrics.pass_at_k(np.full(3, 10), [3, 3, 3], 5) == pytest.approx([0.916667] * 3, abs=1e-6)


@settings(deadline=None)
@given(st.integers(1, 40), st.data())
def test_pass_at_k_does_not_fall_with_k_or_c(n: int, data: st.DataObject) -> None:
    c = data.draw(st.integers(0, n))
    by_k = [metrics.pass_at_k(n, c, k) for k in range(1, n + 1)]
    assert by_k == sorted(by_k)
    k = data.draw(st.integers(1, n))
    by_c = [metrics.pass_at_k(n, c, k) for c in range(n + 1)]
    assert by_c == sorted(by_c)
    assert by_c[c] == pytest.approx(1 - math.comb(n - c, k) / math.comb(n, k))
    assert metrics.pass_hat_k(n, c, k) == pytest.approx(math.comb(c, k) / math.comb(n, k))


def test_pass_at_k_refuses_too_few_samples() -> None:
    with pytest.raises(ValueError, match="k=5"):
        metrics.pass_at_k([10, 4], [1, 1], 5)
    with pytest.raises(ValueError, match="correct"):
        metrics.pass_at_k(4, 5, 1)


def test_majority_has_the_cards_values() -> None:
    got = [metrics.maj_at_k(VOTES, 7, k) for k in range(1, 7)]
    assert got == pytest.approx([0.5, 0.5, 0.6, 0.7, 0.75, 1.0])


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=1, max_size=9), st.data())
def test_majority_is_the_mean_over_all_subsets(answers: list[int | None], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(answers)))
    assert metrics.maj_at_k(answers, 1, k) == pytest.approx(brute_majority(answers, 1, k))
    assert metrics.maj_at_k(answers, 1, 1) == pytest.approx(answers.count(1) / len(answers))


def test_majority_drops_unparsed_answers_and_gives_nothing_for_none_at_all() -> None:
    assert metrics.maj_at_k([None, None, 7], 7, 3) == 1.0
    assert metrics.maj_at_k([None, None], 7, 2) == 0.0


def test_majority_of_many_samples_uses_seeded_subsets() -> None:
    answers = [7] * 120 + [8] * 100 + [9] * 80
    estimate = metrics.maj_at_k(answers, 7, 5, seed=1)
    assert estimate == metrics.maj_at_k(answers, 7, 5, seed=1)
    assert estimate == pytest.approx(metrics.maj_at_k(answers[::2], 7, 5), abs=0.05)


def test_majority_takes_an_equality_of_its_own() -> None:
    assert metrics.maj_at_k(["0.5", "0.5", "2"], "1/2", 3, equal=lambda a, b: a == "0.5") == 1.0


def test_average_accuracy() -> None:
    assert metrics.avg_at_k([[1, 0, 0, 1], [1, 1, 1, 1]]) == 0.75
    assert metrics.avg_at_k([1, 0]) == 0.5


correctness = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40)


@settings(deadline=None)
@given(correctness)
def test_flips_account_for_the_change_in_accuracy(pairs: list[tuple[bool, bool]]) -> None:
    old, new = np.array(pairs).T
    found = metrics.flips(old, new)
    assert found.positive - found.negative == pytest.approx(new.mean() - old.mean())
    same = metrics.flips(old, old)
    assert (same.negative, same.positive, same.mcnemar.pvalue) == (0.0, 0.0, 1.0)
    assert 0 <= found.mcnemar.pvalue <= 1


def test_flips_by_hand() -> None:
    old, new = [1, 1, 0, 0, 1], [1, 0, 1, 0, 0]
    assert metrics.negative_flip_rate(old, new) == pytest.approx(0.4)
    assert metrics.positive_flip_rate(old, new) == pytest.approx(0.2)
    assert metrics.relative_negative_flip_rate(old, new) == pytest.approx(0.4 / ((1 - 0.4) * 0.6))
    assert metrics.mcnemar([1] * 10 + [0] * 2, [0] * 10 + [1] * 2) == pytest.approx(
        (10, 2, 0.038574), abs=1e-6
    )


def test_independent_errors_have_relative_negative_flips_of_one() -> None:
    old, new = [1, 1, 0, 0], [1, 0, 1, 0]
    assert metrics.relative_negative_flip_rate(old, new) == pytest.approx(1.0)


def test_a_margin_ignores_small_drops_of_a_score() -> None:
    found = metrics.flips([3.0, 5.0, 2.0], [2.8, 1.0, 4.0], margin=0.5)
    assert (found.negative, found.positive) == pytest.approx((1 / 3, 1 / 3))


def test_win_rate_and_its_error() -> None:
    values = [1, 0.5, 0, 1]
    mean, se = metrics.win_rate(values)
    assert mean == pytest.approx(0.625)
    assert se == pytest.approx(np.std(values, ddof=1) / 2)
    assert metrics.win_rate([[1, 0], [1, 1]]).mean == 0.75  # judgements are averaged inside the prompt
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        metrics.win_rate([2, 0])


def test_bootstrap_interval_holds_the_mean_and_shrinks_with_the_root_of_n() -> None:
    rng = np.random.default_rng(0)
    small, large = rng.random(100), rng.random(1600)
    widths = []
    for values in (small, large):
        low, high = metrics.bootstrap_ci(values, seed=3)
        assert low < values.mean() < high
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.15)
    assert metrics.bootstrap_ci(small, seed=3) == metrics.bootstrap_ci(small, seed=3)
    expected = 1.96 * small.std() / 10
    assert widths[0] / 2 == pytest.approx(expected, rel=0.08)


def test_bootstrap_of_constant_data_is_a_point() -> None:
    assert metrics.bootstrap_ci([0.1] * 7) == (0.1, 0.1)


def test_swapping_the_systems_mirrors_the_interval() -> None:
    wins = np.array([1, 0.5, 0, 1, 1, 0, 0.5, 1])
    low, high = metrics.bootstrap_ci(wins, seed=5)
    assert metrics.bootstrap_ci(1 - wins, seed=5) == pytest.approx((1 - high, 1 - low))


def test_bootstrap_resamples_prompts_not_their_samples() -> None:
    rows = np.repeat([[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]], 10, axis=0)
    grouped = metrics.bootstrap_ci(rows, seed=1)
    flat = metrics.bootstrap_ci(rows.ravel(), seed=1)
    assert grouped.high - grouped.low > 1.5 * (flat.high - flat.low)
    names = [prompt for prompt in range(20) for _ in range(4)]
    assert metrics.bootstrap_ci(rows.ravel(), seed=1, groups=names) == grouped


def test_paired_bootstrap_uses_one_resample_for_both() -> None:
    hard = np.random.default_rng(0).integers(0, 2, 200)
    assert metrics.paired_bootstrap_ci(hard + 0.25, hard) == pytest.approx((0.25, 0.25))


def test_distinct_n() -> None:
    assert metrics.distinct_n(["a b a b"], 1) == 0.5
    assert metrics.distinct_n(["a b a b"], 2) == pytest.approx(2 / 3)
    assert metrics.distinct_n([[1, 2], [1, 2]], 2) == 0.5
    assert metrics.distinct_n(["a"], 2) == 0.0


def test_calibration_error() -> None:
    assert metrics.expected_calibration_error([1, 1, 0, 0], [1.0, 1.0, 0.0, 0.0]) == 0.0
    assert metrics.expected_calibration_error([1, 0], [0.9, 0.9]) == pytest.approx(0.4)


def test_auc_counts_ties_half() -> None:
    assert metrics.auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) == 0.75
    assert metrics.auc([0, 1], [0.5, 0.5]) == 0.5
    assert math.isnan(metrics.auc([1, 1], [0.5, 0.6]))


def test_cohens_kappa() -> None:
    a, b = ["y"] * 25 + ["n"] * 25, ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert metrics.cohen_kappa(a, b) == pytest.approx(0.4)
    assert math.isnan(metrics.cohen_kappa(["y"], ["y"]))
