"""The metrics card's "must hold" lines on ratings."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfloop.workflows.evaluation.ratings import (
    bradley_terry,
    bradley_terry_bootstrap,
    elo,
    expected_score,
    kendall,
    spearman,
    style_bradley_terry,
)

RING = [
    ("a", "b", 1, 5),
    ("a", "b", 0, 3),
    ("b", "c", 1, 4),
    ("b", "c", 0, 2),
    ("a", "c", 0.5, 2),
    ("c", "a", 1, 1),
]


def test_a_gap_of_two_hundred() -> None:
    assert expected_score(1200, 1000) == pytest.approx(0.7597, abs=1e-4)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("cd"), st.sampled_from([0, 0.5, 1]))))
def test_elo_updates_sum_to_zero(matches: list[tuple[str, str, float]]) -> None:
    board = elo(matches, k=32)
    assert sum(board.values()) == pytest.approx(1000 * len(board))


def test_elo_first_match() -> None:
    assert elo([("a", "b", 1)]) == {"a": 1002, "b": 998}


@pytest.mark.parametrize(("wins", "losses", "gap"), [(3, 1, 190.85), (7, 3, 147.19)])
def test_two_players_have_the_closed_form(wins: int, losses: int, gap: float) -> None:
    board = bradley_terry([("a", "b", 1, wins), ("b", "a", 1, losses)]).ratings
    assert board["a"] - board["b"] == pytest.approx(gap, abs=0.01)
    assert board["a"] + board["b"] == pytest.approx(2000)


def test_order_and_counting_do_not_matter() -> None:
    rows = [match[:3] for match in RING for _ in range(match[3])]
    random.Random(0).shuffle(rows)
    counted = bradley_terry(RING).ratings
    assert bradley_terry(rows).ratings == pytest.approx(counted, abs=1e-4)
    assert np.mean(list(counted.values())) == pytest.approx(1000)
    swapped = [(b, a, 1 - score, count) for a, b, score, count in RING]
    assert bradley_terry(swapped).ratings == pytest.approx(counted, abs=1e-4)


def test_the_optimum_is_the_fixed_point_of_minorisation_maximisation() -> None:
    wins = {("a", "b"): 5, ("b", "a"): 3, ("b", "c"): 4, ("c", "b"): 2, ("a", "c"): 1, ("c", "a"): 2}
    strength = dict.fromkeys("abc", 1.0)
    for _ in range(2000):
        strength = {
            i: sum(wins[i, j] for j in "abc" if j != i)
            / sum((wins[i, j] + wins[j, i]) / (strength[i] + strength[j]) for j in "abc" if j != i)
            for i in "abc"
        }
    board = bradley_terry(RING).ratings
    for i in "bc":
        expected = 400 * math.log10(strength[i] / strength["a"])
        assert board[i] - board["a"] == pytest.approx(expected, abs=1e-3)


def test_a_tie_between_equals_changes_nothing() -> None:
    even = [("a", "b", 1, 4), ("b", "a", 1, 4)]
    assert bradley_terry([*even, ("a", "b", 0.5)]).ratings == pytest.approx(bradley_terry(even).ratings)


def test_an_anchor_adds_one_constant() -> None:
    free, anchored = bradley_terry(RING).ratings, bradley_terry(RING, anchor=("b", 1200)).ratings
    assert anchored["b"] == 1200
    shifts = [anchored[name] - free[name] for name in free]
    assert max(shifts) - min(shifts) < 1e-9


def test_a_never_beaten_model_is_flagged_and_infinite() -> None:
    board = bradley_terry([*RING, ("king", "a", 1), ("king", "b", 1), ("c", "fool", 1)])
    assert board.unbounded == {"king": "never beaten", "fool": "never wins"}
    assert board.ratings["king"] == math.inf
    assert board.ratings["fool"] == -math.inf
    assert {name: board.ratings[name] for name in "abc"} == pytest.approx(
        bradley_terry(RING).ratings, abs=1e-4
    )
    with pytest.raises(ValueError, match="king"):
        bradley_terry([("king", "a", 1)], anchor=("king", 1000))


def test_models_that_never_met_are_not_comparable() -> None:
    board = bradley_terry([*RING, ("x", "y", 1), ("y", "x", 1)])
    assert board.unbounded == {"x": "not comparable", "y": "not comparable"}


def test_two_models_of_which_one_always_wins() -> None:
    assert bradley_terry([("a", "b", 1, 9)]).unbounded == {"a": "never beaten", "b": "never wins"}


def test_a_prior_makes_every_rating_finite() -> None:
    board = bradley_terry([("a", "b", 1, 9)], prior=0.5)
    assert not board.unbounded
    assert 1000 < board.ratings["a"] < 2500


def test_bootstrap_bands_hold_the_rating_and_flag_what_may_be_unbounded() -> None:
    many = [(a, b, score, 20 * count) for a, b, score, count in RING]
    board, bands = bradley_terry(many).ratings, bradley_terry_bootstrap(many, B=200, seed=1)
    for name, band in bands.items():
        assert band.low < board[name] < band.high
        assert band.median == pytest.approx(board[name], abs=10)
    assert bradley_terry_bootstrap(many, B=20, seed=1) == bradley_terry_bootstrap(many, B=20, seed=1)
    assert bradley_terry_bootstrap([("a", "b", 1, 9), ("b", "a", 1, 1)], B=200)["a"].high == math.inf


def test_bootstrap_by_prompts_is_wider_when_records_share_them() -> None:
    rows = [("a", "b", prompt % 2, 1) for prompt in range(20) for _ in range(10)]
    prompts = [prompt for prompt in range(20) for _ in range(10)]
    alone = bradley_terry_bootstrap(rows, B=200)["a"]
    shared = bradley_terry_bootstrap(rows, B=200, prompts=prompts)["a"]
    assert shared.high - shared.low > 2 * (alone.high - alone.low)


def test_style_control_takes_the_effect_of_length_away() -> None:
    rng = np.random.default_rng(0)
    matches, style_a, style_b = [], [], []
    for _ in range(2000):  # equal models; a writes longer, and the longer answer tends to win
        first, second = 100 + 100 * rng.random(), 100 * rng.random() + 50
        matches.append(("a", "b", float(rng.random() < first / (first + second))))
        style_a.append([first, 0.0])
        style_b.append([second, 0.0])
    plain = bradley_terry(matches).ratings
    styled = style_bradley_terry(matches, style_a, style_b)
    assert plain["a"] - plain["b"] > 60
    assert abs(styled.ratings["a"] - styled.ratings["b"]) < 40
    assert styled.coefficients[0] > 0.1
    assert styled.coefficients[1] == 0
    mirrored = style_bradley_terry([(b, a, 1 - s) for a, b, s in matches], style_b, style_a)
    assert mirrored.ratings == pytest.approx(styled.ratings, abs=0.01)


def test_rank_correlations_use_the_common_models() -> None:
    a = {"x": 1.0, "y": 2.0, "z": 3.0, "only a": 9.0}
    b = {"x": 10.0, "y": 30.0, "z": 20.0, "only b": 0.0}
    assert spearman(a, b) == pytest.approx(0.5)
    assert kendall(a, b) == pytest.approx(1 / 3)
    assert spearman([1, 2, 2, 3], [1, 2, 2, 3]) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="two common models"):
        spearman({"x": 1.0}, {"y": 1.0})
