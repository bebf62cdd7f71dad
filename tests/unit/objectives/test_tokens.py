"""The cards' "Must hold" lines of RRPO, CUT, SCIR, SAMI, MUSCLE and Control LLM."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from selfloop.workflows.errors import ObjectiveError
from selfloop.workflows.evaluation.metrics import accuracy, flips
from selfloop.workflows.objectives import CUT, DPO, MUSCLE, RRPO, SAMI, SCIR, SFT, ControlLLM
from selfloop.workflows.objectives.control import divergence, interpolate
from selfloop.workflows.objectives.maths import full_kl
from selfloop.workflows.objectives.muscle import changed_errors, score_changes, teacher_columns
from selfloop.workflows.objectives.scir import entropy, symmetric_kl
from tests.unit.objectives.batches import LOG2, about, gradients, one, pair, random_batch, total

# --- rrpo ----------------------------------------------------------------------------------------------------------


def phrases(
    chosen: Tensor, rejected: Tensor, chosen_phrase: Tensor, rejected_phrase: Tensor
) -> dict[str, Tensor]:
    columns = {"chosen_phrase": chosen_phrase, "rejected_phrase": rejected_phrase}
    return pair(chosen, rejected) | columns | {"token_kl": torch.zeros_like(chosen)}


def test_rrpo_policy_equals_reference() -> None:
    batch = phrases(one(0, 0, 0), one(0, 0), one(0, 1, 2), one(1, 0))
    assert total(RRPO(), batch) == about(LOG2)
    chosen, rejected = gradients(RRPO(), batch, "chosen.logprobs", "rejected.logprobs")
    assert chosen.tolist() == [[0, about(-0.05), about(-0.05)]] and rejected.tolist() == [[about(0.05), 0]]
    logits = torch.randn(3, 7).double().requires_grad_()
    kl = full_kl(logits, logits).sum()
    assert float(kl.detach()) == about(0) and torch.autograd.grad(kl, logits)[0].abs().max() < 1e-12


def test_rrpo_value() -> None:
    batch = phrases(one(9, 1, 2), one(-2, 9), one(0, 1, 2), one(1, 0))
    assert total(RRPO(), batch) == about(0.474077)


def test_rrpo_kl_direction() -> None:
    reference, policy = torch.tensor([0.5, 0.5]).double().log(), torch.tensor([0.7, 0.3]).double().log()
    assert float(full_kl(policy, reference)) == about(0.087177)
    assert float(full_kl(reference, policy)) == about(0.082283)


def test_rrpo_kl_logit_gradient() -> None:
    logits, reference = torch.randn(4, 7).double().requires_grad_(), torch.randn(4, 7).double()
    batch = phrases(one(0, 0, 0, 0), one(0), one(1, 0, 0, 0), one(1)) | {
        "token_kl": full_kl(logits, reference)[None]
    }
    (slope,) = torch.autograd.grad(RRPO(alpha=0.3)(batch).total(), logits)
    assert torch.allclose(slope, 0.3 * (logits.softmax(-1) - reference.softmax(-1)))


def test_rrpo_tokens_outside_phrases() -> None:
    batch = phrases(one(0.4, 0.1), one(-0.2, 0.3), one(1, 0), one(1, 0))
    other = {**batch, "rejected.logprobs": one(-0.2, 7.0)}
    assert total(RRPO(), other) == total(RRPO(), batch)
    other = {**batch, "chosen.logprobs": one(0.4, 7.0)}
    assert total(RRPO(), other) == total(RRPO(), batch)
    moved = {**batch, "token_kl": one(0.0, 0.5)}
    assert total(RRPO(alpha=0.1), moved) - total(RRPO(alpha=0.1), batch) == about(0.05)


def test_rrpo_one_phrase_without_kl_is_dpo_and_needs_no_kl() -> None:
    batch = random_batch(DPO(), seed=6)
    ones = {f"{view}_phrase": torch.ones_like(batch[f"{view}.mask"]) for view in ("chosen", "rejected")}
    assert total(RRPO(alpha=0), {**batch, **ones}) == about(total(DPO(), batch), 1e-12)


def test_rrpo_phrase_numbers_do_not_matter() -> None:
    batch = phrases(one(0.4, 0.1, 0.2), one(-0.2, 0.3), one(1, 2, 0), one(1, 2))
    again = {**batch, "chosen_phrase": one(7, 9, 0), "rejected_phrase": one(7, 9)}
    assert total(RRPO(), again) == total(RRPO(), batch)


# --- cut -----------------------------------------------------------------------------------------------------------


def cut(plain: list[float], judged: list[float], label: int) -> dict[str, Tensor]:
    """One row from probabilities."""
    batch = {"label": torch.tensor([label])}
    for view, p in (("response", plain), ("judged", judged)):
        batch[f"{view}.logprobs"] = torch.tensor([p], dtype=torch.float64).log()
        batch[f"{view}.mask"] = torch.ones(1, len(p))
    return batch


def contrast(objective: CUT, batch: dict[str, Tensor]) -> float:
    term = objective(batch).terms["contrast"]
    return float(term.sum() / term.count())


@pytest.mark.parametrize(("judged", "loss"), [(0.30, 0.2231), (0.21, 1.6094)])
def test_cut_punished_and_ordinary_tokens(judged: float, loss: float) -> None:
    assert contrast(CUT(form="paper"), cut([0.2], [judged], 0)) == about(loss, 1e-4)


def test_cut_limits_of_the_threshold() -> None:
    batch = cut([0.2, 0.5], [0.3, 0.5], 0)
    mle = -(math.log(0.2) + math.log(0.5)) / 2
    assert contrast(CUT(form="paper", threshold=1e9), batch) == about(mle)
    assert contrast(CUT(form="paper", threshold=0), batch) == about(-(math.log(0.8) + math.log(0.5)) / 2)


def test_cut_a_token_the_judgment_does_not_concern_stays_learned() -> None:
    batch = cut([0.2, 0.6], [0.4, 0.6], 0)
    slope = gradients(CUT(form="paper"), batch, "response.logprobs")[0][0]
    assert slope[0] > 0 > slope[1]
    assert CUT()(batch).logs["punished"].tolist() == [0.5]


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_cut_no_gradient_through_the_detection(gamma: float) -> None:
    batch = cut([0.2, 0.5], [0.4, 0.5], 0)
    (slope,) = gradients(CUT(form="paper", gamma=gamma), batch, "judged.logprobs")
    assert slope.tolist() == [[-0.5, -0.5]]


def test_cut_paper_weight_of_the_unlikelihood() -> None:
    loss = contrast(CUT(form="paper", gamma=2.0, alpha=0.5), cut([0.2], [0.4], 0))
    assert loss == about(-0.5 * 0.4**2 * math.log(0.8))


def test_cut_unlikelihood_pushes_harder_on_likely_tokens() -> None:
    objective = CUT(form="paper", threshold=0)
    slopes = [float(gradients(objective, cut([p], [p], 0), "response.logprobs")[0]) for p in (0.2, 0.5, 0.9)]
    assert slopes == [about(p / (1 - p)) for p in (0.2, 0.5, 0.9)]


def test_cut_without_negatives_is_plain_likelihood_and_not_halved() -> None:
    batch = cut([0.2, 0.5], [0.2, 0.5], 1)
    mle = -(math.log(0.2) + math.log(0.5)) / 2
    assert total(CUT(), batch) == about(mle) and total(CUT(form="paper"), batch) == about(mle)
    assert not gradients(CUT(), batch, "judged.logprobs", "response.logprobs")[0].any()


def test_cut_with_a_negative_the_code_halves_the_paper_s_sum() -> None:
    batch = cut([0.2, 0.5], [0.4, 0.5], 0)
    assert total(CUT(), batch) == about(total(CUT(form="paper"), batch) / 2)


def test_cut_divides_each_part_by_its_own_tokens() -> None:
    good, bad = cut([0.2, 0.5, 0.7], [0.2, 0.5, 0.7], 1), cut([0.2], [0.4], 0)
    batch = {
        name: torch.cat([torch.nn.functional.pad(column, (0, 3 - column.shape[-1])) if column.dim() == 2 else column
                         for column in (good[name], bad[name])]) for name in good
    }  # fmt: skip
    terms = CUT()(batch).terms
    everything = -sum(math.log(p) for p in (0.2, 0.5, 0.7, 0.4))  # the bad one under its judgment
    assert float(terms["contrast"].count()) == 1 and float(terms["likelihood"].count()) == 4
    assert total(CUT(form="paper"), batch) == about(2 * total(CUT(), batch))
    assert float(terms["likelihood"].sum()) == about(everything / 2)


def test_cut_views_must_hold_the_same_tokens() -> None:
    batch = cut([0.2, 0.5], [0.4, 0.5], 0)
    with pytest.raises(ObjectiveError, match=r"'judged.mask', row 0"):
        CUT()({**batch, "judged.mask": torch.tensor([[1.0, 0.0]])})


def test_cut_p_1_stays_finite() -> None:
    assert math.isfinite(contrast(CUT(form="paper", threshold=0), cut([1.0], [1.0], 0)))


# --- scir ----------------------------------------------------------------------------------------------------------


def logit(p: float) -> Tensor:
    return torch.tensor(p).double().logit()


def scir(first: float, second: float, chosen: float, rejected: float) -> dict[str, Tensor]:
    """P(y1) read in both orders, and log-ratios of both answers."""
    batch = pair(one(chosen), one(rejected))
    shown = {"first_a": first, "first_b": 1 - first, "second_b": second, "second_a": 1 - second}
    for view, p in shown.items():
        batch |= {f"{view}.logprobs": one(math.log(p) - 0.3), f"{view}.mask": one(1)}
    return batch


def swapped(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same pair with y1 and y2 exchanged: prompts and letters with them."""
    names = {"chosen": "rejected", "rejected": "chosen", "first": "second", "second": "first"}
    return {
        names[n.split(".")[0].split("_")[0]] + n[len(n.split(".")[0].split("_")[0]) :]: c
        for n, c in batch.items()
    }


def test_scir_values() -> None:
    p, q = 0.8, 0.6
    forward = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    backward = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
    assert (forward, backward) == (about(0.0915, 1e-4), about(0.1046, 1e-4))
    assert float(symmetric_kl(logit(p), logit(q))) == about(forward + backward) == about(0.1962, 1e-4)
    assert float(symmetric_kl(logit(p), logit(p))) == 0
    assert [float(entropy(logit(x))) for x in (0.8, 0.6, 0.5)] == [
        about(v, 1e-4) for v in (0.5004, 0.6730, 0.6931)
    ]


def test_scir_loss_is_penalty_and_gated_dpo() -> None:
    objective = SCIR(beta=1, entropy_coefficient=0.1, consistency_coefficient=2)
    batch = scir(0.8, 0.8, float(logit(0.6)), 0.0)
    penalty = 0.1962 + 0.1 * (0.5004 + 0.6730)
    assert total(objective, batch) == about(2 * penalty - math.log(0.6), 1e-3)


def test_scir_swapping_the_answers_changes_nothing() -> None:
    batch = scir(0.8, 0.7, 0.9, 0.2)
    assert total(SCIR(), swapped(batch)) == about(total(SCIR(), batch), 1e-12)
    assert float(SCIR()(swapped(batch)).terms["preference"].sum()) == about(
        float(SCIR()(batch).terms["preference"].sum())
    )


@pytest.mark.parametrize(
    ("p", "q", "agrees"), [(0.8, 0.6, 1), (0.8, 0.4, 0), (0.3, 0.2, 1), (0.5, 0.9, 0), (0.9, 0.5, 0)]
)
def test_scir_agreement_gate(p: float, q: float, agrees: int) -> None:
    loss = SCIR(beta=1)(scir(p, p, float(logit(q)), 0.0))
    assert float(loss.logs["agreement"]) == agrees
    assert bool(loss.terms["preference"].sum() > 0) is bool(agrees)


def test_scir_at_the_reference_nothing_agrees() -> None:
    loss = SCIR()(scir(0.8, 0.8, 0.0, 0.0))
    assert float(loss.logs["agreement"]) == 0 and float(loss.terms["preference"].sum()) == 0
    batch = scir(0.8, 0.8, 0.0, 0.0)
    first, chosen = gradients(SCIR(), batch, "first_a.logprobs", "chosen.logprobs")
    assert first.any() and chosen.any()


def test_scir_without_entropy_every_p_equal_q_is_optimal() -> None:
    objective = SCIR(beta=1, entropy_coefficient=0, dpo_coefficient=0)
    assert [total(objective, scir(p, p, float(logit(p)), 0)) for p in (0.5, 0.7, 0.9)] == [about(0)] * 3
    with_entropy = [
        total(SCIR(beta=1, dpo_coefficient=0), scir(p, p, float(logit(p)), 0)) for p in (0.5, 0.9)
    ]
    assert with_entropy[1] < with_entropy[0]


def test_scir_too_much_entropy_weight_saturates_to_an_arbitrary_side() -> None:
    objective = SCIR(beta=1, entropy_coefficient=5, dpo_coefficient=0)
    for p, side in ((0.55, 1), (0.45, -1)):  # hardly decided, and drawn to the side it is on
        first = gradients(objective, scir(p, p, float(logit(p)), 0), "first_a.logprobs", "chosen.logprobs")
        assert all(float(gradient) * side < 0 for gradient in first)
    losses = [total(objective, scir(p, p, float(logit(p)), 0)) for p in (0.01, 0.4, 0.6, 0.99)]
    assert losses[0] < losses[1] and losses[3] < losses[2] and losses[0] == about(losses[3], 1e-6)


def test_scir_both_orders_make_p_antisymmetric() -> None:
    batch = scir(0.9, 0.6, 0.0, 0.0)
    judges = [SCIR()._logits(checked(b))[0].sigmoid() for b in (batch, swapped(batch))]
    assert float(judges[0]) == about(0.75) and float(judges[0] + judges[1]) == about(1)


def checked(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    from selfloop.workflows.objectives.columns import prepare

    return prepare(SCIR(), batch)


def test_scir_extreme_verdicts_stay_finite() -> None:
    batch = scir(0.5, 0.5, 0.0, 0.0)
    for name, value in (("first_a", -400.0), ("second_b", -400.0), ("first_b", 0.0), ("second_a", 0.0)):
        batch[f"{name}.logprobs"] = one(value)
    assert math.isfinite(total(SCIR(), batch))


# --- sami ----------------------------------------------------------------------------------------------------------


def sami(matrix: list[list[float]], tokens: int = 1) -> dict[str, Tensor]:
    batch = {}
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            batch[f"c{i}_y{j}.logprobs"] = one(*[value] * tokens)
            batch[f"c{i}_y{j}.mask"] = one(*[1] * tokens)
    return batch


M = [[-1.0, -1.5], [-1.4, -0.8]]


def test_sami_equal_entries_and_a_dominant_diagonal() -> None:
    assert total(SAMI(), sami([[-1, -1], [-1, -1]])) == about(LOG2)
    assert total(SAMI(), sami([[-1, -60], [-60, -1]])) == about(0)


def test_sami_values() -> None:
    loss = SAMI()(sami(M))
    assert [float(loss.logs["row"]), float(loss.logs["column"])] == [
        about(0.45578, 1e-5),
        about(0.45810, 1e-5),
    ]
    assert float(loss.total()) == about(0.45694, 1e-5)
    assert float(loss.logs["information"]) == about(LOG2 - 0.45694, 1e-5)


def test_sami_constants_on_all_and_on_a_row() -> None:
    shifted = [[v + 2 for v in row] for row in M]
    assert total(SAMI(), sami(shifted)) == about(total(SAMI(), sami(M)))
    loss = SAMI()(sami([[v + 3 for v in M[0]], M[1]]))
    assert float(loss.logs["row"]) == about(0.45578, 1e-5)
    assert float(loss.logs["column"]) == about(1.2142, 1e-4) and float(loss.total()) == about(0.8350, 1e-4)


def test_sami_gradient_at_0() -> None:
    batch = sami([[0, 0], [0, 0]])
    slopes = gradients(SAMI(), batch, *(f"{view}.logprobs" for view in SAMI().views))
    assert [float(s) for s in slopes] == [about(v) for v in (-0.25, 0.25, 0.25, -0.25)]


def test_sami_permuting_both_axes_and_doubling_tokens() -> None:
    turned = [[M[1][1], M[1][0]], [M[0][1], M[0][0]]]
    assert total(SAMI(), sami(turned)) == about(total(SAMI(), sami(M)))
    assert total(SAMI(), sami(M, tokens=3)) == about(total(SAMI(), sami(M)))


# --- muscle --------------------------------------------------------------------------------------------------------


def muscle(student: Tensor, old: Tensor, new: Tensor, targets: Tensor) -> dict[str, Tensor]:
    first, second, correct = teacher_columns(student, old, new, targets)
    logprobs = student.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    columns = {"logprobs": logprobs, "kl_first": first, "kl_second": second, "correct": correct}
    return {f"response.{n}": c for n, c in columns.items()} | {"response.mask": torch.ones_like(first)}


LOGITS = [torch.randn(1, 6, 9, generator=torch.Generator().manual_seed(s)).double() for s in range(3)]


@pytest.mark.parametrize("right", [True, False])
def test_muscle_all_right_or_all_wrong(right: bool) -> None:
    student, old, new = LOGITS
    targets = student.argmax(-1) if right else student.argmin(-1)
    wanted = full_kl(student, new if right else old).mean()
    assert total(MUSCLE(), muscle(student, old, new, targets)) == about(float(wanted))


def test_muscle_at_the_start_right_tokens_cost_nothing() -> None:
    old, new = LOGITS[:2]
    student = new.clone().requires_grad_()
    batch = muscle(student, old, new, new.argmax(-1))
    (slope,) = torch.autograd.grad(MUSCLE()(batch).total(), student)
    assert (
        total(MUSCLE(), {n: c.detach() for n, c in batch.items()}) == about(0) and slope.abs().max() < 1e-12
    )


def test_muscle_equal_teachers_is_plain_distillation() -> None:
    student, old, _ = LOGITS
    targets = torch.randint(0, 9, (1, 6))
    assert total(MUSCLE(), muscle(student, old, old, targets)) == about(float(full_kl(student, old).mean()))


def test_muscle_the_mask_carries_no_gradient_and_kl_order_matters() -> None:
    student, old, new = LOGITS
    batch = muscle(student, old, new, student.argmax(-1))
    assert not gradients(MUSCLE(), batch, "response.correct", "response.kl_second")[0].any()
    assert not torch.allclose(full_kl(student, new), full_kl(new, student))


def test_muscle_metrics() -> None:
    truth, old, new = [0, 1, 2, 0, 1], [0, 1, 0, 0, 2], [0, 2, 1, 0, 1]
    was, now = ([float(a == b) for a, b in zip(truth, x, strict=True)] for x in (old, new))
    found = flips(was, now)
    assert (accuracy(was), accuracy(now)) == (0.6, 0.6)
    assert (found.negative, found.positive) == (about(0.2), about(0.2)) and changed_errors(
        truth, old, new
    ) == about(0.4)
    assert accuracy(now) - accuracy(was) == about(found.positive - found.negative)
    assert flips(was, was).negative == 0
    differences = [0.1, -0.2, 0.0, 0.3]
    changed = flips([0.0] * 4, differences)
    assert (changed.positive, changed.negative) == (0.5, 0.25)
    assert score_changes(differences) == (about(0.2), about(0.2))


# --- control-llm ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["lerp", "slerp"])
@pytest.mark.parametrize("a", [0.5, 0.2])
def test_control_llm_at_the_start_nothing_changes(rule: Literal["lerp", "slerp"], a: float) -> None:
    h = torch.randn(2, 3, 8).double()
    assert torch.allclose(interpolate(h, h.clone(), a, rule), h)
    assert not divergence(h, h.clone()).any() and divergence(h, h.clone(), "cosine").abs().max() < 1e-12


def test_control_llm_dlerp_is_a_gate_per_token() -> None:
    frozen, trained = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)
    gate = torch.rand(2, 3, 1)
    assert torch.allclose(interpolate(frozen, trained, gate), gate.expand(2, 3, 4))


def test_control_llm_slerp_keeps_the_norm() -> None:
    frozen, trained = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double()
    assert float(interpolate(frozen, trained, 0.3, "slerp").norm()) == about(1)


def test_control_llm_values() -> None:
    frozen, trained = torch.tensor([[2.0]]), torch.tensor([[4.0]])
    assert interpolate(frozen, trained, 0.5).tolist() == [[3.0]]
    wide = divergence(frozen.expand(1, 3), trained.expand(1, 3))
    assert wide.tolist() == [4.0]  # a mean over dimensions, not a sum


def test_control_llm_slerp_turns_from_the_frozen_to_the_trained_state() -> None:
    turned = interpolate(one(1, 0), one(0, 1), 0.3, "slerp")
    assert turned[0].tolist() == [about(0.891007), about(0.453990)]


@pytest.mark.parametrize(
    ("trained", "margin", "value"), [((0, 1), 0.0, 0.5), ((-1, 0), 0.0, 1.5), ((0, 1), 0.2, 0.32)]
)
def test_control_llm_cosine_divergence(trained: tuple[int, int], margin: float, value: float) -> None:
    assert divergence(one(1, 0), one(*trained), "cosine", margin).tolist() == [about(value)]


def test_control_llm_alpha_0_leaves_the_task_loss() -> None:
    batch = random_batch(ControlLLM(), seed=3)
    assert total(ControlLLM(divergence_coefficient=0), batch) == total(SFT(), batch)
    mean = (batch["response.divergence"] * batch["response.mask"]).sum() / batch["response.mask"].sum()
    assert total(ControlLLM(divergence_coefficient=2), batch) == about(total(SFT(), batch) + 2 * float(mean))
