"""The figures of an evaluation, by hand on small tables."""

from __future__ import annotations

import json
import math
from typing import Any

import pyarrow as pa
import pytest

from selfloop.workflows.data.schema import COLUMNS
from selfloop.workflows.evaluation.heldout import heldout_metrics, judge_metrics

NAMES = ("prompt_id", "sample", "response", "answer", "meta", "score", "score_state", "finish", "status")
NAMES += ("response_ids", "response_logprobs")


def row(prompt: str, sample: int, response: str | None, score: float | None, **more: Any) -> dict[str, Any]:
    ids = [ord(letter) for letter in response or ""]
    return {
        "prompt_id": prompt,
        "sample": sample,
        "response": response,
        "answer": "7",
        "meta": json.dumps({"kind": "Add up" if prompt == "p" else "sort"}),
        "score": score,
        "score_state": "abstain" if score is None else "score",
        "finish": "stop",
        "status": "ok",
        "response_ids": ids,
        "response_logprobs": [-0.5] * len(ids),
        "initial_logprobs": [-0.75] * len(ids),
    } | more


def table(rows: list[dict[str, Any]], initial: bool = True) -> pa.Table:
    fields = [pa.field(name, COLUMNS[name][0]) for name in NAMES]
    fields += [pa.field("initial_logprobs", pa.list_(pa.float32()))] if initial else []
    return pa.Table.from_pylist(rows, schema=pa.schema(fields))


FAILED = {"status": "failed", "score_state": "failed", "response_ids": None, "response_logprobs": None}
SAMPLED = [
    row("p", 0, "7", 1.0),
    row("p", 1, "7", 1.0),
    row("p", 2, "8", 0.0, finish="length"),
    row("p", 3, None, None, **FAILED, initial_logprobs=None),
    row("q", 0, "8", 0.0),
    row("q", 1, "9", 0.0),
    row("q", 2, "8", 0.0),
    row("q", 3, "  ", None),
]
GREEDY = [row("p", 0, "7", 1.0), row("q", 0, "8", 0.0)]


def measure(sampled: list[dict[str, Any]] = SAMPLED, **more: Any) -> dict[str, float]:
    return heldout_metrics(table(sampled), table(GREEDY), None, seed=1, bootstrap=200, **more)


def test_accuracy_counts_failures_and_abstentions_as_wrong() -> None:
    found = measure()
    assert found["heldout_accuracy"] == pytest.approx(0.25)
    assert found["heldout_accuracy_greedy"] == 0.5
    assert found["invalid_share"] == 0.25
    assert found["truncated_share"] == 0.125
    assert found["heldout_accuracy_low"] <= 0.25 <= found["heldout_accuracy_high"]
    assert (found["heldout_accuracy_greedy_low"], found["heldout_accuracy_greedy_high"]) == (0.0, 1.0)


def test_accuracy_by_kind_has_names_that_metrics_may_have() -> None:
    found = measure()
    assert found["heldout_accuracy_kind_add_up"] == 0.5
    assert found["heldout_accuracy_kind_sort"] == 0.0
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_") for name in found)


def test_scores_give_a_mean_and_no_accuracy() -> None:
    rows = [row("p", 0, "a", 8.0), row("p", 1, "b", None), row("q", 0, "c", 4.0), row("q", 1, "d", 5.0)]
    rows.append(row("r", 0, None, None, **FAILED, initial_logprobs=None))
    found = measure(rows)
    assert found["heldout_score"] == (8 + 4.5) / 2  # over prompts; what has no score is no zero
    assert found["heldout_score_low"] <= found["heldout_score"] <= found["heldout_score_high"]
    assert (found["heldout_score_kind_add_up"], found["heldout_score_kind_sort"]) == (8.0, 4.5)
    assert found["invalid_share"] == 0.4
    others = ("accuracy", "pass_at", "majority", "flips")
    assert not any(other in name for name in found for other in others)


def test_what_verdicts_add_up_to_may_be_declared() -> None:
    assert not any("score" in name for name in measure(figure="accuracy"))
    assert not any("accuracy" in name for name in measure(figure="score"))
    both = measure()
    assert "heldout_accuracy" in both and both["heldout_score"] == pytest.approx((2 / 3 + 0) / 2)


def test_pass_and_majority_at_k() -> None:
    found = measure()
    assert found["pass_at_1"] == found["majority_at_1"] == found["heldout_accuracy"]
    assert found["pass_at_4"] == 0.5
    assert found["pass_at_2"] == pytest.approx((1 - 1 / 6) / 2)
    assert found["majority_at_4"] == 0.5
    assert "pass_at_5" not in found


def test_majority_reads_answers_as_asked() -> None:
    rows = [
        row("p", i, text, score)
        for i, (text, score) in enumerate([("is 7.0", 1.0), ("7 it is", 1.0), ("8", 0)])
    ]
    assert measure(rows, extract="number")["majority_at_3"] == 1.0
    assert measure(rows)["majority_at_3"] == pytest.approx(2 / 3)


def test_many_samples_give_powers_of_two() -> None:
    found = measure([row("p", i, "7", float(i % 2)) for i in range(12)])
    assert [name for name in found if name.startswith("pass_at")] == [
        f"pass_at_{k}" for k in (1, 2, 4, 8, 12)
    ]


def test_divergence_length_and_variety() -> None:
    rows = [row("p", 0, "aab", 1.0), row("p", 1, "a", 1.0)]
    found = measure(rows)
    assert found["kl_to_initial"] == pytest.approx(0.25 * 4 / 2)
    assert found["kl_to_initial_per_token"] == pytest.approx(0.25)
    assert found["mean_length"] == 2.0
    assert found["distinct_1"] == 0.5
    assert found["distinct_2"] == 1.0
    rows[0]["initial_logprobs"] = [-1.0]
    with pytest.raises(ValueError, match="other tokens"):
        measure(rows)


def test_flips_are_matched_by_prompt() -> None:
    before = table([row("q", 0, "7", 1.0), row("gone", 0, "7", 1.0), row("p", 0, "8", 0.0)])
    found = heldout_metrics(table(SAMPLED), table(GREEDY), before, seed=1, bootstrap=200)
    assert (found["negative_flips"], found["positive_flips"]) == (0.5, 0.5)
    same = heldout_metrics(table(SAMPLED), table(GREEDY), table(GREEDY), seed=1, bootstrap=200)
    assert (same["negative_flips"], same["positive_flips"]) == (0.0, 0.0)


def test_rows_without_verdicts_still_have_a_shape() -> None:
    bare = table(SAMPLED, initial=False).drop_columns(["score", "score_state"])
    found = heldout_metrics(bare, bare, None, seed=0, bootstrap=100)
    assert "heldout_accuracy" not in found
    assert "kl_to_initial" not in found
    assert found["invalid_share"] == 0.125
    assert all(math.isfinite(value) for value in found.values())


def test_the_figures_depend_only_on_rows_and_seed() -> None:
    assert measure() == measure()
    assert measure(SAMPLED[::-1]).keys() == measure().keys()
    assert measure(SAMPLED[::-1])["majority_at_2"] == pytest.approx(measure()["majority_at_2"])


def test_judge_metrics() -> None:
    rows = [row("p", 0, "aaa", 0.9), row("p", 1, "a", 0.2), row("q", 0, "aa", 0.6), row("q", 1, "aa", 0.6)]
    rows += [row("q", 2, "a", None), row("q", 3, "a", None, score_state="failed")]
    scored = table(rows).append_column("truth", pa.array([1.0, 0.0, 1.0, 0.0, 1.0, 0.0]))
    found = judge_metrics(scored)
    assert found["judge_auc"] == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert found["judge_pair_accuracy"] == pytest.approx((1 + 0.5) / 2)
    assert found["judge_accuracy"] == pytest.approx(3 / 6)
    assert found["judge_abstain_share"] == found["judge_failed_share"] == pytest.approx(1 / 6)
    assert found["judge_ece"] == pytest.approx((0.1 + 0.2 + 0.2) / 4)
    assert 0 < found["judge_length_correlation"] <= 1
    assert (
        judge_metrics(scored.drop_columns(["truth"]).append_column("truth", pa.nulls(6, pa.float64()))) == {}
    )
