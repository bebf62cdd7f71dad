"""Ratings of models from matches: online Elo, Bradley-Terry, style-controlled Bradley-Terry, agreement of two boards.

A match is (a, b, score) or (a, b, score, count): score is 1 if a won, 0 if b won, .5 for a tie, or anything between.
Ratings are on the Elo scale: a gap of 200 is an expected score of .76. Read beside FastChat's rating systems
(lm-sys, Apache-2.0).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Band",
    "BradleyTerry",
    "bradley_terry",
    "bradley_terry_bootstrap",
    "elo",
    "expected_score",
    "kendall",
    "spearman",
    "style_bradley_terry",
]

Match = Sequence[Any]
Floats = NDArray[np.float64]
SCALE, START = 400.0, 1000.0
NEVER_BEATEN, NEVER_WINS, APART = "never beaten", "never wins", "not comparable"


class Band(NamedTuple):
    """Median and 95 % band of a bootstrapped rating; infinite where resamples leave it unbounded."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class BradleyTerry:
    """ratings: model -> rating; infinite for the models named in `unbounded`, with the reason.

    unbounded: models for which no finite optimum exists, 'never beaten' (by the models that have a rating),
    'never wins', or 'not comparable'. coefficients: of the style covariates, in the order given.
    """

    ratings: dict[str, float]
    unbounded: dict[str, str] = field(default_factory=dict[str, str])
    coefficients: tuple[float, ...] = ()


def expected_score(rating_a: float, rating_b: float) -> float:
    """Expected score of a against b: 1 / (1 + 10^((b - a) / 400))."""
    return 1.0 / (1.0 + 10.0 ** ((rating_b - rating_a) / SCALE))


def elo(
    matches: Iterable[Match],
    k: float = 4.0,
    start: float = START,
    ratings: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Online Elo, in the order of the matches (which it depends on: for streams only). Updates sum to zero."""
    board = dict(ratings or {})
    for a, b, score in matches:
        r_a, r_b = board.setdefault(a, start), board.setdefault(b, start)
        change = k * (score - expected_score(r_a, r_b))
        board[a], board[b] = r_a + change, r_b - change
    return board


def bradley_terry(
    matches: Iterable[Match],
    *,
    weights: ArrayLike | None = None,
    anchor: tuple[str, float] | None = None,
    prior: float = 0.0,
) -> BradleyTerry:
    """Maximum likelihood ratings, whose mean is 1000 (or `anchor`'s model has the anchor's rating).

    A finite optimum needs, for every split of the models, wins in both directions (a tie is half a win each way).
    Where that fails, the models outside the largest set for which it holds are named in `unbounded`. `prior` is a
    virtual draw of that weight of every model against a 1000-rated opponent (.5 is usual): then all is finite.
    """
    names, wins = _wins(matches, weights)
    flagged = {} if prior > 0 else _unbounded(names, wins)
    kept = [i for i, name in enumerate(names) if name not in flagged]
    fitted = _fit(wins[np.ix_(kept, kept)], prior)
    ratings = {names[i]: SCALE * float(r) + START for i, r in zip(kept, fitted, strict=True)}
    limits = {NEVER_BEATEN: math.inf, NEVER_WINS: -math.inf, APART: math.nan}
    ratings |= {name: limits[reason] for name, reason in flagged.items()}
    return BradleyTerry(_anchored({name: ratings[name] for name in names}, anchor), flagged)


def bradley_terry_bootstrap(
    matches: Iterable[Match],
    B: int = 1000,
    seed: int = 0,
    *,
    prompts: Iterable[Hashable] | None = None,
    anchor: tuple[str, float] | None = None,
    prior: float = 0.0,
) -> dict[str, Band]:
    """Median and 95 % band of each rating over B multinomial resamples of the matches.

    prompts: the prompt of each match; then prompts are resampled, because matches that share one are not independent.
    """
    records = [tuple(match) for match in matches]
    counts = np.array([match[3] if len(match) > 3 else 1.0 for match in records], dtype=float)
    units = list(range(len(records))) if prompts is None else list(prompts)
    codes = {name: number for number, name in enumerate(dict.fromkeys(units))}
    index = np.array([codes[name] for name in units])
    mass = counts if prompts is None else np.ones(len(codes))
    rng = np.random.default_rng(seed)
    models = sorted({name for match in records for name in match[:2]})
    rows: list[list[float]] = []
    for _ in range(B):
        drawn = rng.multinomial(round(mass.sum()), mass / mass.sum())[index]
        weights = drawn / counts if prompts is None else drawn  # a record's own count is multiplied in again
        board = bradley_terry(records, weights=weights, prior=prior).ratings
        if anchor and math.isfinite(board.get(anchor[0], math.nan)):
            board = _anchored(board, anchor)
        elif anchor:  # a resample in which the anchor is unbounded says nothing of the others
            board = {}
        rows.append([board.get(name, math.nan) for name in models])
    return {name: _band(column) for name, column in zip(models, np.array(rows).T, strict=True)}


def _band(values: Floats) -> Band:
    values = values[~np.isnan(values)]
    if not len(values):
        return Band(math.nan, math.nan, math.nan)
    if np.isfinite(values).all():
        low, median, high = np.percentile(values, [2.5, 50, 97.5])
    else:  # no interpolation between a number and infinity
        low, median = np.percentile(values, [2.5, 50], method="lower")
        high = np.percentile(values, 97.5, method="higher")
    return Band(float(median), float(low), float(high))


def style_bradley_terry(
    matches: Iterable[Match],
    style_a: ArrayLike,
    style_b: ArrayLike,
    *,
    ridge: float = 0.5,
    anchor: tuple[str, float] | None = None,
) -> BradleyTerry:
    """Ratings beside style: covariates (a - b) / (a + b + 1) of each answer's counts, scaled to unit size.

    style_a, style_b: (matches, features): token length and numbers of headers, lists and bold parts. `ridge` times
    the squared norm of all parameters is added to the summed loss. The covariates are scaled by their root mean
    square and not centred, so that swapping a and b changes nothing.
    """
    from scipy.optimize import minimize

    records = [tuple(match) for match in matches]
    names, players, score, weight = _records(records)
    a, b = np.asarray(style_a, dtype=float), np.asarray(style_b, dtype=float)
    if a.shape != b.shape or a.ndim != 2 or len(a) != len(records):
        raise ValueError(
            f"style needs (matches, features): {a.shape} and {b.shape} for {len(records)} matches"
        )
    diff = (a - b) / (a + b + 1)
    size = np.sqrt((diff**2).mean(axis=0))
    design = np.zeros((len(records), len(names)))
    rows = np.arange(len(records))
    design[rows, players[:, 0]] += math.log(10)
    design[rows, players[:, 1]] -= math.log(10)
    design = np.hstack([design, diff / np.where(size > 0, size, 1)])

    def loss(theta: Floats) -> tuple[float, Floats]:
        z = design @ theta
        value = weight @ (np.logaddexp(0, z) - score * z) + ridge * (theta @ theta)
        return float(value), design.T @ (weight * (_sigmoid(z) - score)) + 2 * ridge * theta

    theta = minimize(loss, np.zeros(design.shape[1]), jac=True, method="L-BFGS-B", options=_TIGHT).x
    ratings = {name: SCALE * float(r) + START for name, r in zip(names, theta, strict=False)}
    return BradleyTerry(_anchored(ratings, anchor), {}, tuple(float(c) for c in theta[len(names) :]))


def spearman(a: Any, b: Any) -> float:
    """Spearman's rank correlation, ties at average ranks: two boards (on their common models), or two arrays."""
    from scipy.stats import spearmanr

    found: Any = spearmanr(*_common(a, b))
    return float(found.statistic)


def kendall(a: Any, b: Any) -> float:
    """Kendall's tau-b of two boards (on their common models), or of two arrays."""
    from scipy.stats import kendalltau

    found: Any = kendalltau(*_common(a, b))
    return float(found.statistic)


def _common(a: Any, b: Any) -> tuple[Floats, Floats]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        names = sorted(set(a) & set(b))
        a, b = [a[name] for name in names], [b[name] for name in names]
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.shape != second.shape or len(first) < 2:
        raise ValueError(
            f"at least two common models are needed, found shapes {first.shape} and {second.shape}"
        )
    return first, second


_TIGHT = {"gtol": 1e-10, "ftol": 1e-16, "maxiter": 10_000, "maxfun": 100_000, "maxls": 50}


def _sigmoid(z: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(z / 2))


def _records(records: Sequence[Match]) -> tuple[list[str], NDArray[Any], Floats, Floats]:
    """Sorted names, players as (matches, 2) indices, scores of a, counts."""
    if not records:
        raise ValueError("no matches")
    names = sorted({name for match in records for name in match[:2]})
    index = {name: number for number, name in enumerate(names)}
    players = np.array([(index[match[0]], index[match[1]]) for match in records])
    score = np.array([match[2] for match in records], dtype=float)
    if not ((score >= 0) & (score <= 1)).all():
        raise ValueError("a match's score lies in [0, 1]: 1 if a won, .5 for a tie, 0 if b won")
    count = np.array([match[3] if len(match) > 3 else 1.0 for match in records], dtype=float)
    return names, players, score, count


def _wins(matches: Iterable[Match], weights: ArrayLike | None) -> tuple[list[str], Floats]:
    """(models, models) weight of i's wins over j: sufficient, so neither order nor counting matters."""
    names, players, score, count = _records([tuple(match) for match in matches])
    count = count if weights is None else count * np.asarray(weights, dtype=float)
    wins = np.zeros((len(names), len(names)))
    np.add.at(wins, (players[:, 0], players[:, 1]), count * score)
    np.add.at(wins, (players[:, 1], players[:, 0]), count * (1 - score))
    np.fill_diagonal(wins, 0)
    return names, wins


def _unbounded(names: list[str], wins: Floats) -> dict[str, str]:
    """Models without a finite rating: all outside the largest set in which everyone beats everyone, transitively."""
    from scipy.sparse.csgraph import connected_components

    _, labels = connected_components(wins > 0, directed=True, connection="strong")
    sizes = np.bincount(labels)
    if len(sizes) == 1:
        return {}
    played = np.array([wins[labels == c][:, labels == c].sum() for c in range(len(sizes))])
    main = labels == max(range(len(sizes)), key=lambda c: (sizes[c], played[c]))
    if sizes.max() == 1:  # no two models have beaten each other: nobody has a rating
        main = np.zeros(len(names), dtype=bool)
    above, below = _reach(wins.T > 0, main), _reach(wins > 0, main)
    reasons: dict[str, str] = {}
    for i, name in enumerate(names):
        if main[i]:
            continue
        beats = bool(above[i]) if main.any() else bool(wins[i].any() and not wins[:, i].any())
        loses = bool(below[i]) if main.any() else bool(wins[:, i].any() and not wins[i].any())
        reasons[name] = NEVER_BEATEN if beats else NEVER_WINS if loses else APART
    return reasons


def _reach(edges: NDArray[Any], start: NDArray[Any]) -> NDArray[Any]:
    """Which models can be reached from `start` along the edges."""
    seen = start.copy()
    while True:
        grown = seen | (edges[seen].any(axis=0) if seen.any() else seen)
        if (grown == seen).all():
            return seen
        seen = grown


def _fit(wins: Floats, prior: float) -> Floats:
    """The optimum r in units of 400 points, from zeros: maximise sum of wins[i, j] log sigmoid(ln10 (r_i - r_j))."""
    from scipy.optimize import minimize

    total = max(wins.sum() + prior * len(wins), 1e-12)

    def loss(r: Floats) -> tuple[float, Floats]:
        z = math.log(10) * (r[:, None] - r[None, :])
        virtual = math.log(10) * r  # half a win and half a loss against rating 1000
        value = (wins * np.logaddexp(0, -z)).sum()
        value += prior * (0.5 * np.logaddexp(0, -virtual) + 0.5 * np.logaddexp(0, virtual)).sum()
        pull = wins * _sigmoid(-z)
        gradient = pull.sum(axis=0) - pull.sum(axis=1) + prior * (_sigmoid(virtual) - 0.5)
        return float(value / total), math.log(10) * gradient / total

    return (
        minimize(loss, np.zeros(len(wins)), jac=True, method="L-BFGS-B", options=_TIGHT).x
        if len(wins)
        else np.zeros(0)
    )


def _anchored(ratings: dict[str, float], anchor: tuple[str, float] | None) -> dict[str, float]:
    if anchor is None:
        return ratings
    name, target = anchor
    if not math.isfinite(ratings.get(name, math.nan)):
        raise ValueError(f"the anchor {name!r} has no finite rating among {sorted(ratings)}")
    return {model: target + (rating - ratings[name]) for model, rating in ratings.items()}
