"""The cards' "Must hold" lines of SFT, unlikelihood and PoFT. Test names: card, then the line in short."""

from __future__ import annotations

import math

import pytest
import torch

from selfloop.workflows.objectives import POFT, SFT
from selfloop.workflows.objectives.sft import repeat_mask, unlikelihood
from tests.unit.objectives.batches import LOG2, about, gradients, response, total

# --- sft ------------------------------------------------------------------------------------------------------------


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


# --- poft -----------------------------------------------------------------------------------------------------------


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
