"""The figures of one evaluation, from its rows: how good the policy is on prompts it never learns from.

Rows have the columns of `data/schema.py`. Where verdicts mean right and wrong, a response is right when its score is at
least .5, and a failed row or an abstention is wrong. Where they are scores, the figure is their mean, without those rows.
`invalid_share` counts these either way. Intervals resample prompts.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from selfloop.workflows.evaluation import metrics
from selfloop.workflows.judges.answers import Extract, canonical, extract_answer
from selfloop.workflows.judges.base import Figure

__all__ = ["heldout_metrics", "judge_metrics"]

RIGHT = 0.5  # a score of at least this is a right answer
EVERY_K_UP_TO = 8  # beyond it, powers of two and the number of samples


def heldout_metrics(
    sampled: pa.Table,
    greedy: pa.Table,
    previous: pa.Table | None = None,
    *,
    seed: int = 0,
    bootstrap: int = 1000,
    extract: Extract = "text",
    figure: Figure = "seen",
) -> dict[str, float]:
    """All held-out metrics by name; those that need what the rows lack (verdicts, log-probs) are left out.

    sampled: several responses a prompt. greedy: one a prompt. previous: the greedy rows of the iteration before, for
    flips. extract: how the votes of majority_at_k read an answer. figure: what the verdicts add up to; `seen` gives the
    mean score always, and accuracies while every score is 0 or 1.
    """
    found: dict[str, float] = {}
    rows, likeliest, before = Rows(sampled), Rows(greedy), None if previous is None else Rows(previous)
    judged = [one for one in (rows, likeliest, before) if one is not None and one.judged]
    if figure != "accuracy":
        found |= _means("heldout_score", rows, likeliest, Rows.mean_scores, seed, bootstrap)
    if figure == "accuracy" or (figure == "seen" and all(one.binary for one in judged)):
        found |= _means("heldout_accuracy", rows, likeliest, Rows.by_prompt, seed, bootstrap)
        found |= _at_k(rows, extract) if rows.judged else {}
        found |= _flips(before, likeliest) if before and before.judged and likeliest.judged else {}
    found |= _shape(rows)
    found |= _divergence(rows)
    return {name: value for name, value in found.items() if math.isfinite(value)}


@dataclass(frozen=True)
class Rows:
    """A table of responses, by prompt."""

    table: pa.Table

    def column(self, name: str, default: Any = None) -> list[Any]:
        """A column as a list; the default in each row where the table lacks it."""
        if name not in self.table.column_names:
            return [default] * self.table.num_rows
        return self.table.column(name).to_pylist()

    @cached_property
    def prompts(self) -> dict[str, NDArray[np.int64]]:
        """prompt_id -> the places of its rows."""
        found: dict[str, list[int]] = {}
        for place, name in enumerate(self.column("prompt_id")):
            found.setdefault(name, []).append(place)
        return {name: np.array(places) for name, places in found.items()}

    @cached_property
    def failed(self) -> NDArray[np.bool_]:
        """Rows that failed."""
        return np.array([status == "failed" for status in self.column("status", "ok")], dtype=bool)

    @cached_property
    def invalid(self) -> NDArray[np.bool_]:
        """Rows that failed or that the judge gave no score."""
        states = self.column("score_state", "score")
        scores = self.column("score", 0.0)
        unscored = [state != "score" or score is None for state, score in zip(states, scores, strict=True)]
        return self.failed | np.array(unscored, dtype=bool)

    @property
    def judged(self) -> bool:
        """Whether there are verdicts."""
        return "score" in self.table.column_names and self.table.num_rows > 0

    @cached_property
    def scores(self) -> NDArray[np.float64]:
        """The score of each row; nan where there is none."""
        scores = [math.nan if score is None else score for score in self.column("score")]
        return np.where(self.invalid, math.nan, np.array(scores, dtype=float))

    @property
    def binary(self) -> bool:
        """Whether every score is 0 or 1."""
        return bool(np.isin(self.scores[~self.invalid], (0.0, 1.0)).all())

    @cached_property
    def right(self) -> NDArray[np.float64]:
        """1 for a right response, else 0."""
        return (self.scores >= RIGHT).astype(float)

    @cached_property
    def ok(self) -> pa.Table:
        """The rows that did not fail."""
        return self.table.filter(pa.array(~self.failed))

    def by_prompt(self) -> dict[str, float]:
        """Accuracy of each prompt's responses."""
        return {name: float(self.right[places].mean()) for name, places in self.prompts.items()}

    def mean_scores(self) -> dict[str, float]:
        """Mean score of each prompt's responses; prompts without a score are left out."""
        valid = {name: places[~self.invalid[places]] for name, places in self.prompts.items()}
        return {name: float(self.scores[places].mean()) for name, places in valid.items() if len(places)}


def _means(
    name: str, sampled: Rows, greedy: Rows, of: Callable[[Rows], dict[str, float]], seed: int, bootstrap: int
) -> dict[str, float]:
    """Means over prompts of sampled and greedy responses, with intervals, then by the `kind` that the prompts' meta names."""
    found: dict[str, float] = {}
    for title, rows in ((name, sampled), (f"{name}_greedy", greedy)):
        values = list(of(rows).values()) if rows.judged else []
        if values:
            low, high = metrics.bootstrap_ci(values, bootstrap, seed)
            found |= {title: metrics.accuracy(values), f"{title}_low": low, f"{title}_high": high}
    kinds: dict[str, list[float]] = {}
    meta = sampled.column("meta")
    for prompt, value in (of(sampled) if sampled.judged else {}).items():
        kind = _kind(meta[sampled.prompts[prompt][0]])
        if kind is not None:
            kinds.setdefault(kind, []).append(value)
    return found | {f"{name}_kind_{kind}": metrics.accuracy(kinds[kind]) for kind in sorted(kinds)}


def _kind(meta: str | None) -> str | None:
    """The kind as a part of a metric's name."""
    try:
        found = json.loads(meta or "{}")
    except ValueError:
        return None
    kind = found.get("kind") if isinstance(found, dict) else None
    return None if kind is None else re.sub(r"[^a-z0-9]+", "_", str(kind).lower()).strip("_")


def _at_k(rows: Rows, extract: Extract) -> dict[str, float]:
    """pass_at_k and majority_at_k, means over prompts, for k up to the samples of a prompt."""
    answers = [
        None if failed or not text else _answer(text, extract)
        for failed, text in zip(rows.failed, rows.column("response"), strict=True)
    ]
    groups = [(rows.right[places], [answers[place] for place in places]) for places in rows.prompts.values()]
    found: dict[str, float] = {}
    for k in _ks(min(len(right) for right, _ in groups)):
        passed = metrics.pass_at_k(
            [len(right) for right, _ in groups], [right.sum() for right, _ in groups], k
        )
        voted = [metrics.plurality_credit(said, right, k) for right, said in groups]
        found[f"pass_at_{k}"] = float(passed.mean())
        found[f"majority_at_{k}"] = float(np.mean(voted))
    return found


def _answer(text: str, extract: Extract) -> str | None:
    answer = extract_answer(text, extract)
    return None if answer is None else canonical(answer, extract)


def _ks(samples: int) -> Iterator[int]:
    return (k for k in range(1, samples + 1) if samples <= EVERY_K_UP_TO or k == samples or k & (k - 1) == 0)


def _flips(before: Rows, now: Rows) -> dict[str, float]:
    """Shares of common prompts whose greedy answer became wrong, and became right."""
    old, new = before.by_prompt(), now.by_prompt()
    common = [name for name in new if name in old]
    if not common:
        return {}
    flips = metrics.flips([old[name] >= 0.5 for name in common], [new[name] >= 0.5 for name in common])
    return {"negative_flips": flips.negative, "positive_flips": flips.positive}


def _shape(rows: Rows) -> dict[str, float]:
    """Shares of unusable and cut responses, their length in tokens, and how varied they are."""
    if not rows.table.num_rows:
        return {}
    cut = [finish == "length" for finish in rows.column("finish")]
    found = {"invalid_share": float(rows.invalid.mean()), "truncated_share": float(np.mean(cut))}
    if "response_ids" in rows.table.column_names and rows.ok.num_rows:
        ids = [tokens or [] for tokens in rows.ok.column("response_ids").to_pylist()]
        found["mean_length"] = float(np.mean([len(tokens) for tokens in ids]))
        found["distinct_1"] = metrics.distinct_n(ids, 1)
        found["distinct_2"] = metrics.distinct_n(ids, 2)
    return found


def _divergence(rows: Rows) -> dict[str, float]:
    """KL to the initial policy, estimated on sampled tokens: mean of log p - log p_initial, nats.

    Unbiased where responses are sampled at temperature 1 without top-p; elsewhere a figure to compare.
    """
    both = ("response_logprobs", "initial_logprobs")
    if any(name not in rows.table.column_names for name in both):
        return {}
    usable = rows.ok.select(both).drop_null()
    if not usable.num_rows:
        return {}
    lists = [pa.concat_arrays(usable.column(name).chunks) for name in both]
    if any(len(a) != len(b) for a, b in zip(*lists, strict=True)):
        raise ValueError(
            "response_logprobs and initial_logprobs of a row differ in length: other tokens were measured"
        )
    now, initial = (column.flatten().to_numpy().astype(float) for column in lists)
    total = float((now - initial).sum())
    if not len(now):
        return {}
    return {"kl_to_initial": total / usable.num_rows, "kl_to_initial_per_token": total / len(now)}


def judge_metrics(
    scored: pa.Table, *, truth: str = "truth", column: str = "score", threshold: float = RIGHT
) -> dict[str, float]:
    """How good a judge is, from rows that have its verdict and the truth (`truth`: 1 right, 0 wrong).

    judge_auc: right above wrong, over all rows. judge_pair_accuracy: the same inside a prompt, mean over its (right,
    wrong) pairs, ties half. judge_accuracy: a score of at least `threshold` says right; a row without a score is a
    mistake. judge_ece: for scores in [0, 1]. judge_length_correlation: Spearman of score and length in tokens.
    """
    rows = Rows(scored)
    states, scores = rows.column(f"{column}_state", "score"), rows.column(column)
    known = np.array([value is not None for value in rows.column(truth)]) & ~rows.failed
    if not known.any():
        return {}
    right = np.array([bool(value) for value in rows.column(truth)])
    valid = known & np.array([s == "score" and v is not None for s, v in zip(states, scores, strict=True)])
    value = np.array([math.nan if v is None else v for v in scores], dtype=float)
    found = {
        "judge_accuracy": float((((value >= threshold) == right) & valid)[known].mean()),
        "judge_abstain_share": float(np.mean([states[i] == "abstain" for i in np.flatnonzero(known)])),
        "judge_failed_share": float(np.mean([states[i] == "failed" for i in np.flatnonzero(known)])),
    }
    if valid.any():
        found["judge_auc"] = metrics.auc(right[valid], value[valid])
        found["judge_pair_accuracy"] = _pair_accuracy(rows, right, value, valid)
        if value[valid].min() >= 0 and value[valid].max() <= 1:
            found["judge_ece"] = metrics.expected_calibration_error(right[valid], value[valid])
        if "response_ids" in scored.column_names:
            length = np.array([len(tokens or ()) for tokens in rows.column("response_ids")])[valid]
            if np.ptp(length) and np.ptp(value[valid]):
                found["judge_length_correlation"] = metrics.spearman(value[valid], length)
    return {name: figure for name, figure in found.items() if math.isfinite(figure)}


def _pair_accuracy(rows: Rows, right: Any, value: Any, valid: Any) -> float:
    """AUC inside each prompt group, weighted by its number of (right, wrong) pairs; nan without a pair."""
    won = pairs = 0.0
    for places in rows.prompts.values():
        places = places[valid[places]]
        count = float(right[places].sum() * (~right[places]).sum())
        if count:
            won += count * metrics.auc(right[places], value[places])
            pairs += count
    return won / pairs if pairs else math.nan
