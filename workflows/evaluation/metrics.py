"""Accuracy over several samples, votes, flips, win rates and their intervals: pure functions of arrays.

Every function is deterministic given its inputs and a seed. Ratings of models (Elo, Bradley-Terry, correlations of
boards) live in `ratings.py` and are exported here too. Sources: pass@k Chen et al. 2021 (arXiv 2107.03374); majority
vote Wang et al. 2022 (2203.11171); negative flips Yan et al. 2021 and MUSCLE (2407.09435).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from selfloop.workflows.evaluation.ratings import (
    BradleyTerry,
    bradley_terry,
    bradley_terry_bootstrap,
    elo,
    expected_score,
    kendall,
    spearman,
    style_bradley_terry,
)

__all__ = [
    "BradleyTerry",
    "Flips",
    "Interval",
    "McNemar",
    "WinRate",
    "accuracy",
    "auc",
    "avg_at_k",
    "bootstrap_ci",
    "bradley_terry",
    "bradley_terry_bootstrap",
    "cohen_kappa",
    "distinct_n",
    "elo",
    "expected_calibration_error",
    "expected_score",
    "flips",
    "kendall",
    "maj_at_k",
    "mcnemar",
    "negative_flip_rate",
    "paired_bootstrap_ci",
    "pass_at_k",
    "pass_hat_k",
    "plurality_credit",
    "positive_flip_rate",
    "relative_negative_flip_rate",
    "spearman",
    "style_bradley_terry",
    "win_rate",
]

Floats = NDArray[np.float64]
Answer = TypeVar("Answer", bound=Hashable)

ENUMERATE_UP_TO = 200  # samples a prompt for which maj@k is computed exactly


class Interval(NamedTuple):
    """A 95 % interval, unless asked otherwise."""

    low: float
    high: float


class WinRate(NamedTuple):
    """Mean of the preferences and its standard error, std(n-1) / sqrt(n)."""

    mean: float
    se: float


class McNemar(NamedTuple):
    """b: old right, new wrong; c: old wrong, new right; pvalue: exact, two-sided."""

    b: int
    c: int
    pvalue: float


class Flips(NamedTuple):
    """What changed between two models on the same items; `positive - negative` is the change in accuracy."""

    negative: float
    positive: float
    relative_negative: float
    mcnemar: McNemar


def pass_at_k(n: ArrayLike, c: ArrayLike, k: int) -> Any:
    """Chance that a random k of n samples hold a correct one, c of the n being correct: 1 - C(n-c, k) / C(n, k).

    n and c are numbers (gives a float) or one each a task (gives an array; the benchmark's value is its mean).
    Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    return _per_task(n, c, k, lambda n, c: 1.0 - _missed(n, c, k))


def pass_hat_k(n: ArrayLike, c: ArrayLike, k: int) -> Any:
    """pass^k: chance that a random k of n samples are all correct, C(c, k) / C(n, k). Shapes as `pass_at_k`."""
    return _per_task(n, c, k, lambda n, c: _missed(n, n - c, k))


def _missed(n: int, c: int, k: int) -> float:
    """C(n-c, k) / C(n, k) as a product, which neither overflows nor cancels."""
    return float(np.prod(1.0 - k / np.arange(n - c + 1, n + 1))) if n - c >= k else 0.0


def _per_task(n: ArrayLike, c: ArrayLike, k: int, value: Callable[[int, int], float]) -> Any:
    ns, cs = np.broadcast_arrays(np.asarray(n), np.asarray(c))
    if k < 1 or np.any(ns < k):
        raise ValueError(
            f"k={k} is not between 1 and the number of samples ({ns.min() if ns.size else 0} at least)"
        )
    if np.any(cs < 0) or np.any(cs > ns):
        raise ValueError("the number of correct samples is not between 0 and the number of samples")
    values = np.array([value(int(a), int(b)) for a, b in zip(ns.flat, cs.flat, strict=True)])
    return values.reshape(ns.shape) if ns.shape else float(values[0])


def avg_at_k(correct: ArrayLike) -> float:
    """avg@k: mean accuracy over the k samples of each task (tasks, k), or over one task's (k,)."""
    return accuracy(np.asarray(correct, dtype=float))


def accuracy(correct: ArrayLike) -> float:
    """Mean of correctness; several samples a task are averaged inside the task first."""
    return float(_per_prompt(correct, None).mean())


def maj_at_k(
    answers: Sequence[Answer | None],
    gold: Answer,
    k: int,
    *,
    equal: Callable[[Answer, Answer], bool] | None = None,
    seed: int = 0,
    subsets: int = 2000,
) -> float:
    """Expected credit of the plurality answer of a random k of the samples.

    answers are canonical; None is unparsed and is dropped before the vote. Tied leaders share the credit; no parsed
    answer gives 0. Exact up to 200 samples, beyond that the mean over seeded subsets. `equal(answer, gold)` decides
    what is correct, default ==.
    """
    right = [answer is not None and (equal(answer, gold) if equal else answer == gold) for answer in answers]
    return plurality_credit(answers, right, k, seed=seed, subsets=subsets)


def plurality_credit(
    answers: Sequence[Hashable | None],
    correct: ArrayLike,
    k: int,
    *,
    seed: int = 0,
    subsets: int = 2000,
) -> float:
    """maj@k from the samples' answers and their correctness (one each); see `maj_at_k`.

    An answer's credit is the mean correctness of the samples that gave it.
    """
    n = len(answers)
    if not 1 <= k <= n:
        raise ValueError(f"k={k} is not between 1 and the number of samples, {n}")
    right = np.asarray(correct, dtype=float)
    names = [answer for answer in dict.fromkeys(answers) if answer is not None]
    index = {name: number for number, name in enumerate(names)}
    labels = np.array([-1 if answer is None else index[answer] for answer in answers])
    credit = np.array([right[labels == number].mean() for number in range(len(names))])
    if n <= ENUMERATE_UP_TO:
        return _exact_plurality(Counter(labels.tolist()), credit, n, k)
    rng = np.random.default_rng(seed)
    draws = (labels[rng.permutation(n)[:k]] for _ in range(subsets))
    return float(np.mean([_vote(draw[draw >= 0], credit) for draw in draws]))


def _vote(labels: NDArray[Any], credit: Floats) -> float:
    if not len(labels):
        return 0.0
    counts = np.bincount(labels, minlength=len(credit))
    return float(credit[counts == counts.max()].mean())


def _exact_plurality(counts: Counter[int], credit: Floats, n: int, k: int) -> float:
    """Sum over (answer, its t votes in the subset) of the subsets it leads, divided by the number of leaders."""
    unparsed = counts.get(-1, 0)
    total = 0.0
    for leader, value in enumerate(credit):
        if not value:
            continue
        for t in range(1, min(counts[leader], k) + 1):
            ways = np.zeros((k + 1, k // t + 1))  # (samples used, leaders)
            ways[t, 1] = math.comb(counts[leader], t)
            for other in range(len(credit)):
                if other != leader:
                    ways = _choose(ways, counts[other], t)
            ways = _choose(ways, unparsed, None)
            total += value * float((ways[k, 1:] / np.arange(1, ways.shape[1])).sum())
    return float(total / math.comb(n, k))


def _choose(ways: Floats, count: int, t: int | None) -> Floats:
    """Add s of `count` samples, s up to t votes (t votes make one leader more); t None: any number, never a leader."""
    after = np.zeros_like(ways)
    most = min(count, len(ways) - 1 if t is None else t)
    for s in range(most + 1):
        taken = ways[: len(ways) - s] * math.comb(count, s)
        if s == t:
            after[s:, 1:] += taken[:, :-1]
        else:
            after[s:] += taken
    return after


def flips(old: ArrayLike, new: ArrayLike, *, margin: float = 0.0) -> Flips:
    """Negative and positive flips from an old to a new model on the same items.

    With scores in place of correctness, a flip is a change by more than `margin`. The relative rate is
    NFR / ((1 - acc_new) acc_old): 1 if the errors are independent, nan if one of the two never errs or never succeeds.
    """
    before, after = _same_items(old, new)
    b, c = int((before - after > margin).sum()), int((after - before > margin).sum())
    n = len(before)
    expected = float((1 - after.mean()) * before.mean())
    relative = b / n / expected if expected > 0 else math.nan
    return Flips(b / n, c / n, relative, McNemar(b, c, _binomial(b, c)))


def negative_flip_rate(old: ArrayLike, new: ArrayLike) -> float:
    """NFR: share of items that the old model got right and the new one wrong."""
    return flips(old, new).negative


def positive_flip_rate(old: ArrayLike, new: ArrayLike) -> float:
    """PFR: share of items that the old model got wrong and the new one right."""
    return flips(old, new).positive


def relative_negative_flip_rate(old: ArrayLike, new: ArrayLike) -> float:
    """NFR divided by what independent errors would give; see `flips`."""
    return flips(old, new).relative_negative


def mcnemar(old: ArrayLike, new: ArrayLike) -> McNemar:
    """McNemar's exact test that the two models are equally accurate, from the two flip counts."""
    return flips(old, new).mcnemar


def _binomial(b: int, c: int) -> float:
    from scipy.stats import binomtest

    return float(binomtest(b, b + c, 0.5).pvalue) if b + c else 1.0


def _same_items(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats]:
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise ValueError(
            f"two lists of the same items are needed, not shapes {first.shape} and {second.shape}"
        )
    return first, second


def win_rate(preferences: ArrayLike) -> WinRate:
    """Mean of preferences in [0, 1] (1 win, .5 tie, 0 loss; several judgements a prompt: (prompts, judgements))."""
    values = _per_prompt(preferences, None)
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"preferences lie in [0, 1], not in [{values.min()}, {values.max()}]")
    se = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return WinRate(float(values.mean()), se)


def bootstrap_ci(
    values: ArrayLike,
    B: int = 5000,
    seed: int = 0,
    *,
    groups: Iterable[Hashable] | None = None,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap interval of the mean, by prompts: B resamples of prompts, linear interpolation.

    values: (prompts,), or (prompts, samples), averaged inside the prompt first; or flat, with `groups` naming the
    prompt of each value. Swapping two systems (p to 1 - p) mirrors the interval.
    """
    means = _resampled_means(_per_prompt(values, groups), B, seed)
    low, high = np.percentile(means, [50 * (1 - level), 50 * (1 + level)])
    return Interval(float(low), float(high))


def paired_bootstrap_ci(
    a: ArrayLike, b: ArrayLike, B: int = 5000, seed: int = 0, *, level: float = 0.95
) -> Interval:
    """Interval of mean(a) - mean(b) for two systems on the same prompts: one resample of prompts serves both."""
    first, second = _same_items(_per_prompt(a, None), _per_prompt(b, None))
    return bootstrap_ci(first - second, B, seed, level=level)


def _per_prompt(values: ArrayLike, groups: Iterable[Hashable] | None) -> Floats:
    array = np.asarray(values, dtype=float)
    if groups is not None:
        names = list(groups)
        codes = {name: number for number, name in enumerate(dict.fromkeys(names))}
        index = np.array([codes[name] for name in names])
        array = np.bincount(index, weights=array) / np.bincount(index)
    elif array.ndim == 2:
        array = array.mean(axis=1)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"finite values of at least one prompt are needed, shape {array.shape} was given")
    return array


def _resampled_means(values: Floats, B: int, seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    chunk = max(1, 2_000_000 // len(values))  # bounds memory; depends on the data only
    sizes = [min(chunk, B - start) for start in range(0, B, chunk)]
    means = [values[rng.integers(len(values), size=(size, len(values)))].mean(axis=1) for size in sizes]
    return np.clip(np.concatenate(means), values.min(), values.max())


def distinct_n(texts: Iterable[str | Sequence[Hashable]], n: int) -> float:
    """Different n-grams divided by all n-grams of the texts (words of a string, or given tokens); 0 without any."""
    grams: Counter[tuple[Hashable, ...]] = Counter()
    for text in texts:
        tokens = text.split() if isinstance(text, str) else list(text)
        grams.update(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
    total = grams.total()
    return len(grams) / total if total else 0.0


def expected_calibration_error(truth: ArrayLike, probabilities: ArrayLike, bins: int = 10) -> float:
    """ECE: mean over equal-width bins of |accuracy - mean probability|, weighted by the bin's share of rows."""
    right, probability = _same_items(truth, probabilities)
    index = np.minimum((probability * bins).astype(int), bins - 1)
    gaps = np.bincount(index, weights=right - probability, minlength=bins)
    return float(np.abs(gaps).sum() / len(right))


def auc(truth: ArrayLike, scores: ArrayLike) -> float:
    """Chance that a positive row scores above a negative one, ties half (ROC AUC); nan if one class is absent."""
    from scipy.stats import rankdata

    right, score = _same_items(truth, scores)
    positives = right > 0.5
    n, m = int(positives.sum()), int((~positives).sum())
    if not n or not m:
        return math.nan
    return float((rankdata(score)[positives].sum() - n * (n + 1) / 2) / (n * m))


def cohen_kappa(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """Agreement of two raters beyond chance; nan where chance alone gives full agreement."""
    if len(a) != len(b) or not len(a):
        raise ValueError(f"two raters of the same items are needed, not {len(a)} and {len(b)} ratings")
    n = len(a)
    observed = sum(x == y for x, y in zip(a, b, strict=True)) / n
    first, second = Counter(a), Counter(b)
    chance = sum(first[name] * second[name] for name in first) / n**2
    return (observed - chance) / (1 - chance) if chance < 1 else math.nan
