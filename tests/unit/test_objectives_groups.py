"""The cards' "Must hold" lines of KTO, BCO, PRO, AFT, D2O, Bradley-Terry, MORE, DMoERM and DGA."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from selfloop.workflows.errors import ObjectiveError
from selfloop.workflows.evaluation.metrics import expected_calibration_error
from selfloop.workflows.objectives import (
    AFT,
    BCO,
    D2O,
    DGA,
    DPO,
    KTO,
    MORE,
    PRO,
    BradleyTerry,
    BradleyTerryRanking,
    DMoERM,
    Objective,
)
from selfloop.workflows.objectives.binary import density_weights, desirable_weight_range
from selfloop.workflows.objectives.control import both_orders, min_norm
from selfloop.workflows.objectives.experts import capability_label, first_digit, fusion_head, router_text
from selfloop.workflows.objectives.ranking import better_worse
from tests.unit.objectives_batches import gradients, one, pair, random_batch

LOG2 = math.log(2)


def about(value: float, places: float = 1e-6) -> object:
    return pytest.approx(value, abs=places)


def total(objective: Objective, batch: dict[str, Tensor]) -> float:
    return float(objective(batch).total())


def binary(
    ratios: list[float], labels: list[int], mismatched: list[float] | None = None
) -> dict[str, Tensor]:
    """One-token rows with these log-ratios and labels; KTO's mismatched rows beside them."""
    batch = {"label": torch.tensor(labels).double()}
    for view, values in (("response", ratios), ("kl", mismatched or [0.0] * len(ratios))):
        batch[f"{view}.logprobs"] = torch.tensor(values).double()[:, None]
        batch[f"{view}.reference_logprobs"] = torch.zeros(len(values), 1).double()
        batch[f"{view}.mask"] = torch.ones(len(values), 1).double()
    return batch


def ranked(*scores: float, tokens: int = 1, **columns: list[float]) -> dict[str, Tensor]:
    """One row of candidates with these log-probs a token."""
    logprobs = torch.tensor(scores).double()[None, :, None].expand(1, len(scores), tokens).clone()
    batch = {"ranked.logprobs": logprobs, "ranked.mask": torch.ones_like(logprobs)}
    return batch | {name: torch.tensor([column]).double() for name, column in columns.items()}


# --- kto -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [0, 1])
def test_kto_policy_equals_reference(label: int) -> None:
    batch = binary([0.0, 0.0], [label, label])
    objective = KTO(desirable_weight=1.3, undesirable_weight=0.7)
    weight = 1.3 if label else 0.7
    assert total(objective, batch) == about(weight / 2)
    (slope,) = gradients(objective, batch, "response.logprobs")
    assert slope.abs().flatten().tolist() == [about(weight * 0.1 / 4 / 2)] * 2


@pytest.mark.parametrize(("label", "loss", "sign"), [(1, 0.425557, -1), (0, 0.574443, 1)])
def test_kto_values(label: int, loss: float, sign: int) -> None:
    batch = binary([1.0], [label], [0.4])
    assert total(KTO(beta=0.5), batch) == about(loss)
    assert float(gradients(KTO(beta=0.5), batch, "response.logprobs")[0]) == about(sign * 0.122229)


@pytest.mark.parametrize("ratio", [-400.0, 400.0])
def test_kto_gradient_vanishes_on_both_ends_dpo_does_not(ratio: float) -> None:
    (slope,) = gradients(KTO(), binary([ratio], [1]), "response.logprobs")
    assert float(slope) == about(0)
    (slope,) = gradients(DPO(), pair(one(-400.0), one(0.0)), "chosen.logprobs")
    assert float(slope) == about(-0.1)


def test_kto_a_negative_mean_gives_reference_point_0() -> None:
    assert total(KTO(), binary([0.3], [1], [-5.0])) == total(KTO(), binary([0.3], [1], [0.0]))


def test_kto_no_gradient_through_the_reference_point() -> None:
    batch = binary([0.5, 0.2], [1, 0], [0.4, 0.8])
    assert not gradients(KTO(), batch, "kl.logprobs", "response.logprobs")[0].any()
    assert total(KTO(), batch) != total(KTO(), binary([0.5, 0.2], [1, 0], [1.4, 1.8]))
    assert KTO.detached == ("kl",)


@pytest.mark.parametrize("label", [0, 1])
def test_kto_one_label_only(label: int) -> None:
    assert 0 < total(KTO(), binary([0.5, 0.2, -0.1], [label] * 3)) < 1


def test_kto_doubling_w_u_doubles_the_label_0_part() -> None:
    batch = binary([0.5, 0.2, -0.1], [1, 0, 0])
    once, twice = KTO()(batch).terms["value"].values, KTO(undesirable_weight=2)(batch).terms["value"].values
    assert torch.allclose(twice, once * torch.tensor([1.0, 2.0, 2.0]))


def test_kto_weight_advice() -> None:
    assert desirable_weight_range(10, 40) == (4.0, about(4 * 4 / 3))


# --- bco -----------------------------------------------------------------------------------------------------------


def test_bco_policy_equals_reference() -> None:
    batch = binary([0.0, 0.0], [1, 0])
    assert total(BCO(), batch) == about(LOG2)
    (slope,) = gradients(BCO(), batch, "response.logprobs")
    assert (2 * slope).flatten().tolist() == [about(-0.05), about(0.05)]


THREE = binary([0.2, -0.1, 0.4], [1, 0, 1])


def test_bco_running_and_balanced_shift() -> None:
    loss = BCO(beta=1)(THREE)
    assert float(loss.state["state_shift"]) == about(0.166667)
    assert loss.terms["classifier"].values.tolist() == [about(0.676619), about(0.568677), about(0.583271)]
    assert BCO(beta=1, shift="balanced")(THREE).logs["shift"].tolist() == [about(0.1)] * 3


def test_bco_running_mean_goes_on_over_steps() -> None:
    first = BCO(beta=1)(THREE)
    second = BCO(beta=1)({**binary([1.0], [0]), **first.state})
    assert float(second.state["state_shift"]) == about((0.5 + 1.0) / 4)
    assert float(second.state["state_count"]) == 4


def test_bco_density_weights() -> None:
    assert density_weights([0.95, 0.10, 0.70, 1.0]) == [about(10), about(0.5), about(2.333333), about(10)]


def test_bco_bounds_dpo_from_above() -> None:
    for chosen in (-2.0, 0.0, 1.5):
        for rejected in (-1.0, 0.3):
            for delta in (-0.7, 0.0, 0.9):
                batch = binary([chosen - delta, rejected - delta], [1, 0])
                parts = BCO(beta=1, shift="none")(batch).terms["classifier"].values
                assert float(parts.sum()) > total(DPO(beta=1), pair(one(chosen), one(rejected)))


def test_bco_gradient_of_badly_classified_rows_tends_to_beta() -> None:
    (slope,) = gradients(BCO(shift="none"), binary([-400.0], [1]), "response.logprobs")
    assert float(slope) == about(-0.1)


@pytest.mark.parametrize("shift", ["running", "balanced", "none"])
@pytest.mark.parametrize("label", [0, 1])
def test_bco_one_label_only(shift: str, label: int) -> None:
    assert math.isfinite(total(BCO.model_validate({"shift": shift}), binary([0.3, 0.1], [label] * 2)))


@pytest.mark.parametrize("shift", ["running", "balanced"])
def test_bco_evaluation_does_not_move_the_shift_and_state_holds_it(shift: str) -> None:
    objective = BCO.model_validate({"beta": 1, "shift": shift})
    state = objective(THREE).state
    frozen = {name: torch.zeros(()) for name in objective.statistic_names}
    after = objective({**binary([9.0, -9.0], [1, 0]), **frozen, **state})
    assert {n: float(v) for n, v in after.state.items()} == {n: about(float(v)) for n, v in state.items()}


def test_bco_balanced_shift_is_a_moving_average_of_each_label() -> None:
    objective = BCO(beta=1, shift="balanced", decay=0.5)
    state = objective(THREE).state
    after = objective({**binary([0.9], [1]), **state})
    assert float(after.state["state_up"]) == about(0.6) and float(after.state["state_down"]) == about(-0.1)


# --- pro -----------------------------------------------------------------------------------------------------------


def rank_part(objective: PRO, batch: dict[str, Tensor]) -> float:
    return float(objective(batch).terms["rank"].sum())


def test_pro_values() -> None:
    batch = ranked(-0.5, -0.7, -1.3, scores=[1.5, 1.2, 0.1], rank=[0, 1, 2])
    assert rank_part(PRO(), batch) == about(1.501352)
    assert rank_part(PRO(), batch) == about(1.084715 + 0.416637)
    assert rank_part(PRO(use_scores=False), batch) == about(1.256413)


def test_pro_n_2_is_a_scaled_logistic() -> None:
    batch = ranked(-0.5, -0.9, scores=[1.5, 0.2])
    assert rank_part(PRO(), batch) == about(math.log1p(math.exp(-1.3 * 0.4)))


@pytest.mark.parametrize(("n", "b"), [(2, 0.05), (3, 0.20), (5, 0.80)])
def test_pro_sft_weight(n: int, b: float) -> None:
    batch = ranked(*[-1.0] * n, scores=[float(-i) for i in range(n)])
    assert float(PRO()(batch).terms["sft"].sum()) == about(b)


def test_pro_equal_scores_are_constants() -> None:
    batch = ranked(-0.5, -0.7, -1.3, scores=[1.0, 1.0, 1.0])
    assert rank_part(PRO(), batch) == about(math.log(3) + math.log(2))
    assert not gradients(PRO(sft_weight=0), batch, "ranked.logprobs")[0].any()


def test_pro_shifting_and_doubling_scores() -> None:
    batch = ranked(-0.5, -0.7, -1.3, scores=[1.5, 1.2, 0.1])
    assert rank_part(PRO(), {**batch, "scores": batch["scores"] + 7}) == about(rank_part(PRO(), batch))
    doubled = rank_part(PRO(), {**batch, "scores": batch["scores"] * 2})
    assert doubled == about(rank_part(PRO(), {**batch, "ranked.logprobs": 2 * batch["ranked.logprobs"]}))


def test_pro_duplicated_tokens() -> None:
    once, twice = (ranked(-0.5, -0.7, tokens=t, scores=[1.5, 1.2]) for t in (1, 2))
    assert rank_part(PRO(), twice) == about(rank_part(PRO(), once))
    assert float(PRO()(twice).terms["sft"].sum()) == about(2 * float(PRO()(once).terms["sft"].sum()))


def test_pro_unsorted_input_is_sorted() -> None:
    batch = ranked(-1.3, -0.5, -0.7, scores=[0.1, 1.5, 1.2], rank=[2, 0, 1])
    assert rank_part(PRO(), batch) == about(1.501352) and rank_part(PRO(use_scores=False), batch) == about(
        1.256413
    )


def test_pro_rank_alone_is_the_form_without_scores() -> None:
    batch = ranked(-0.5, -0.7, -1.3, rank=[0, 1, 2])
    assert rank_part(PRO(), batch) == about(1.256413)


@pytest.mark.parametrize("objective", [PRO(), PRO(use_scores=False)], ids=str)
def test_pro_absent_candidates(objective: PRO) -> None:
    short = ranked(-0.5, -0.7, scores=[1.5, 1.2], rank=[0, 1])
    long = ranked(-0.5, -9.0, -0.7, scores=[1.5, math.nan, 1.2], rank=[0, -1, 1])
    long["ranked.mask"][:, 1] = 0
    assert total(objective, long) == about(total(objective, short))
    assert gradients(objective, long, "ranked.logprobs")[0].isfinite().all()


# --- aft -----------------------------------------------------------------------------------------------------------

FOUR = ranked(-0.5, -0.6, -0.3, -1.2, rank=[0, 0, 1, 1])
PLAIN, DETACHED, BOUNDARY = (
    AFT.model_validate({"constraint": c, "nll_coefficient": 0}) for c in ("none", "detached", "boundary")
)


def test_aft_values() -> None:
    assert total(PLAIN, ranked(-0.5, -0.3, rank=[0, 1])) == about(0.7981, 1e-4)
    assert total(PLAIN, FOUR) == about(1.5297, 1e-4)


def test_aft_no_negatives_and_positives_far_above() -> None:
    assert total(PLAIN, ranked(-0.5, -0.3, rank=[0, 0])) == about(0)
    assert total(PLAIN, ranked(-0.5, -60.0, rank=[0, 1])) == about(0)


def test_aft_detached_only_the_gradient_of_negatives_is_gone() -> None:
    assert total(DETACHED, FOUR) == total(PLAIN, FOUR)
    detached, plain = (gradients(o, FOUR, "ranked.logprobs")[0].flatten() for o in (DETACHED, PLAIN))
    assert detached[2:].tolist() == [0, 0] and plain[2:].all() and torch.equal(detached[:2], plain[:2])


@pytest.mark.parametrize(
    ("s", "loss", "slope"), [(-1.1, 0.9208, -0.1188), (-0.9, 0.9089, 0.0), (-0.7, 0.9208, 0.1188)]
)
def test_aft_boundary(s: float, loss: float, slope: float) -> None:
    batch = ranked(-0.6, s, rank=[0, 1])
    assert total(BOUNDARY, batch) == about(loss, 1e-4)
    assert float(gradients(BOUNDARY, batch, "ranked.logprobs")[0][0, 1]) == about(slope, 1e-4)


def test_aft_permuting_and_duplicating_members() -> None:
    moved = ranked(-0.3, -0.5, -1.2, -0.6, rank=[1, 0, 1, 0])
    assert total(PLAIN, moved) == about(total(PLAIN, FOUR))
    assert total(PLAIN, ranked(-0.5, -0.3, -0.3, rank=[0, 1, 1])) > total(
        PLAIN, ranked(-0.5, -0.3, rank=[0, 1])
    )


def test_aft_scores_stand_in_for_ranks() -> None:
    scored = ranked(-0.5, -0.6, -0.3, -1.2, scores=[1.0, 1.0, 0.0, 0.0])
    assert total(PLAIN, scored) == total(PLAIN, FOUR) and total(AFT(), scored) == total(AFT(), FOUR)


def test_aft_assessment_accuracy() -> None:
    assert PLAIN(FOUR).logs["assessment_accuracy"].tolist() == [0.5]
    assert DETACHED(ranked(-0.5, -0.3, rank=[0, 0])).logs["assessment_accuracy"].tolist() == [0]


def test_aft_nll_is_of_the_first_best_candidate() -> None:
    batch = ranked(-0.3, -0.5, -0.6, rank=[1, 0, 0], tokens=2)
    assert float(AFT()(batch).terms["nll"].sum() / AFT()(batch).terms["nll"].count()) == about(0.5)


def test_aft_unconstrained_loss_wrecks_correct_chains_constrained_does_not() -> None:
    """Right and wrong chains share a token: pushing wrong ones down without limit takes the right ones with them."""

    def right_logprob(objective: AFT) -> float:
        logits = torch.zeros(6, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([logits], lr=0.5)
        for _ in range(200):
            p = logits.log_softmax(-1)
            chains = torch.stack(
                [torch.stack([p[0], p[1]]), torch.stack([p[0], p[2]]), torch.stack([p[0], p[3]])]
            )
            batch = {"ranked.logprobs": chains[None], "ranked.mask": torch.ones(1, 3, 2).double()}
            optimizer.zero_grad()
            objective({**batch, "rank": torch.tensor([[0, 1, 1]])}).total().backward()
            optimizer.step()
        p = logits.detach().log_softmax(-1)
        return float(p[0])

    assert right_logprob(DETACHED) > right_logprob(PLAIN)


def test_aft_full_ranking_takes_all_ordered_pairs() -> None:
    assert int(better_worse(torch.tensor([[0, 1, 2, 3]])).sum()) == 6
    assert int(better_worse(torch.tensor([[0, 1, 1, -1]])).sum()) == 2


# --- d2o -----------------------------------------------------------------------------------------------------------


def d2o(samples: list[float], negative: float) -> dict[str, Tensor]:
    own = torch.tensor(samples).double()[None, :, None]
    batch = {
        "ranked.logprobs": own,
        "ranked.reference_logprobs": torch.zeros_like(own),
        "ranked.mask": torch.ones_like(own),
    }
    sides = pair(one(0.0), one(negative))
    return batch | {name: column for name, column in sides.items() if name.startswith("rejected")}


def test_d2o_policy_equals_reference() -> None:
    batch = d2o([0, 0, 0, 0], 0)
    assert total(D2O(), batch) == about(LOG2)
    own, negative = gradients(D2O(), batch, "ranked.logprobs", "rejected.logprobs")
    assert own.flatten().tolist() == [about(-0.1 / 4 / 2)] * 4 and float(negative) == about(0.05)


def test_d2o_value() -> None:
    assert total(D2O(), d2o([0.3, 0.5], -0.5)) == about(0.649159)


def test_d2o_permuting_and_copying_samples() -> None:
    assert total(D2O(), d2o([0.3, -0.5, 0.1], -0.5)) == about(total(D2O(), d2o([0.1, 0.3, -0.5], -0.5)))
    assert total(D2O(), d2o([0.3] * 5, -0.5)) == about(total(D2O(), d2o([0.3], -0.5)))


def test_d2o_one_sample_is_dpo() -> None:
    assert total(D2O(), d2o([0.3], -0.5)) == about(total(DPO(), pair(one(0.3), one(-0.5))))


def test_d2o_alpha_0_and_beta_0() -> None:
    assert not gradients(D2O(alpha=0), d2o([0.3], -0.5), "rejected.logprobs")[0].any()
    far, near = (float(gradients(D2O(beta=0), d2o([0.3], d), "rejected.logprobs")[0]) for d in (-200.0, 0.0))
    assert far == about(0) and near == about(0.05)


def test_d2o_each_view_uses_its_own_reference() -> None:
    batch = d2o([0.3], -0.5)
    own = {**batch, "ranked.reference_logprobs": batch["ranked.reference_logprobs"] + 0.1}
    other = {**batch, "rejected.reference_logprobs": batch["rejected.reference_logprobs"] + 0.1}
    assert total(D2O(), own) == about(total(D2O(), d2o([0.2], -0.5)))
    assert total(D2O(), other) == about(total(D2O(), d2o([0.3], -0.6)))


# --- bradley-terry, dmoerm -----------------------------------------------------------------------------------------


def rewards(chosen: float, rejected: float, **columns: float) -> dict[str, Tensor]:
    values = {"chosen_rewards": chosen, "rejected_rewards": rejected, **columns}
    return {name: torch.tensor([value]).double() for name, value in values.items()}


def test_bradley_terry_values() -> None:
    assert total(BradleyTerry(), rewards(1.5, 0.5)) == about(0.313262)
    assert total(BradleyTerry(), rewards(1.5, 0.5, margin=0.5)) == about(0.474077)
    assert total(BradleyTerry(), rewards(0.3, 0.3)) == about(LOG2)
    slopes = gradients(BradleyTerry(), rewards(0.3, 0.3), "chosen_rewards", "rejected_rewards")
    assert [float(s) for s in slopes] == [about(-0.5), about(0.5)]


def test_bradley_terry_constants_and_centering() -> None:
    assert total(BradleyTerry(), rewards(6.5, 5.5)) == about(total(BradleyTerry(), rewards(1.5, 0.5)))
    centred = [total(BradleyTerry(centering=0.01), rewards(0.5 + c, -0.5 + c)) for c in (-0.1, 0.0, 0.1)]
    assert centred[1] == min(centred) and centred[0] == about(centred[2])


def test_bradley_terry_swapping() -> None:
    gap = total(BradleyTerry(), rewards(0.7, 0.0)) - total(BradleyTerry(), rewards(0.0, 0.7))
    assert gap == about(-0.7)


def test_bradley_terry_soft_labels() -> None:
    hard, soft = total(BradleyTerry(), rewards(0.7, 0.0)), total(BradleyTerry(), rewards(0.7, 0.0, label=0.8))
    assert soft == about(0.8 * hard + 0.2 * (hard + 0.7))


def test_bradley_terry_reads_rewards_not_tokens() -> None:
    """Padding cannot matter: the head's value at the last real token is all that is read."""
    assert BradleyTerry().reads == {"chosen": ("rewards",), "rejected": ("rewards",)}


@pytest.mark.parametrize("objective", [BradleyTerryRanking(), DMoERM()], ids=["bradley-terry", "dmoerm"])
def test_ranks_1_2_2_3_have_5_pairs(objective: Objective) -> None:
    rank = torch.tensor([[0, 1, 1, 2]])
    assert int(better_worse(rank).sum()) == 5
    r = torch.tensor([[0.4, 0.1, -0.2, -0.3]]).double()
    pairs = [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)]
    wanted = sum(math.log1p(math.exp(float(r[0, j] - r[0, i]))) for i, j in pairs) / 5
    assert total(objective, {"ranked_rewards": r, "rank": rank}) == about(wanted)


def test_dmoerm_equal_ranks_give_no_term() -> None:
    batch = {"ranked_rewards": torch.randn(1, 3).double(), "rank": torch.zeros(1, 3)}
    assert total(DMoERM(), batch) == 0


def test_bradley_terry_opposite_labels_have_their_optimum_at_equal_rewards() -> None:
    def both(gap: float) -> float:
        return (total(BradleyTerry(), rewards(gap, 0)) + total(BradleyTerry(), rewards(0, gap))) / 2

    assert both(0) == about(LOG2) and both(0) < min(both(0.1), both(-0.1))


def test_bradley_terry_a_separable_set_drives_rewards_apart() -> None:
    losses = [total(BradleyTerry(), rewards(g, -g)) for g in (1.0, 5.0, 20.0)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 1e-6


def test_dmoerm_capability_labels() -> None:
    replies = {
        ("1", "2"): (1, 2),
        ("2", "1"): (2, 1),
        ("1", "1"): None,
        ("2", "2"): None,
        ("none", "1"): None,
    }
    assert {pair_: capability_label(*pair_) for pair_ in replies} == replies
    assert first_digit("Answer 2 is better than answer 1") == 2


def test_dmoerm_swapping_answers_flips_the_difference() -> None:
    r = torch.tensor([[0.4, 0.1]]).double()
    right = total(DMoERM(), {"ranked_rewards": r, "rank": torch.tensor([[0, 1]])})
    wrong = total(DMoERM(), {"ranked_rewards": r, "rank": torch.tensor([[1, 0]])})
    assert right - wrong == about(-0.3)


def test_dmoerm_the_router_never_sees_the_answer() -> None:
    prompt = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "q"},
    ]
    answers = [[*prompt, {"role": "assistant", "content": text}] for text in ("one", "two")]
    assert router_text(answers[0]) == router_text(answers[1]) == "first\nq"


def test_dmoerm_a_fusion_that_copies_one_head_is_that_expert() -> None:
    head, value = fusion_head(experts=3, width=4), torch.randn(4)
    hidden = torch.randn(5, 12)
    with torch.no_grad():
        head[0].weight.zero_(), head[0].bias.zero_()
        head[0].weight[:, 4:8] = torch.eye(4)  # the second expert
        head[1].weight.fill_(1.0)  # PReLU as identity
        head[2].weight.copy_(value[None]), head[2].bias.zero_()
        assert torch.allclose(head(hidden)[:, 0], hidden[:, 4:8] @ value, atol=1e-6)


def test_dmoerm_phase_3_trains_only_the_fusion() -> None:
    experts = [torch.nn.Linear(4, 4) for _ in range(2)]
    before = [p.clone() for expert in experts for p in expert.parameters()]
    head = fusion_head(experts=2, width=4)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    hidden = torch.cat([expert(torch.randn(1, 3, 4)) for expert in experts], -1).detach()
    batch = {"ranked_rewards": head(hidden)[..., 0], "rank": torch.tensor([[0, 1, 2]])}
    DMoERM()(batch).total().backward()
    optimizer.step()
    assert all(
        torch.equal(p, q) for p, q in zip(before, [p for e in experts for p in e.parameters()], strict=True)
    )


# --- more ----------------------------------------------------------------------------------------------------------


def test_more_min_norm_values() -> None:
    g = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert min_norm(g, unit=False).tolist() == [about(0.8), about(0.2)]
    assert min_norm(g).tolist() == [about(0.5), about(0.5)]


def test_more_parallel_and_identical_gradients() -> None:
    assert min_norm(torch.tensor([[3.0, 0.0], [1.0, 0.0]]), unit=False).tolist() == [about(0), about(1)]
    same = min_norm(torch.tensor([[1.0, 2.0], [1.0, 2.0]]), unit=False)
    assert float(same.sum()) == about(1) and (same >= 0).all()


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_more_a_common_descent_direction(tasks: int) -> None:
    for seed in range(10):
        g = torch.randn(tasks, 6, generator=torch.Generator().manual_seed(seed)).double()
        weights = min_norm(g, unit=False)
        mix = weights @ g
        assert float(weights.sum()) == about(1) and (weights >= 0).all()
        assert (g @ mix >= mix @ mix - 1e-9).all()
        if tasks == 2:
            top = g[1] @ g[1] - g[0] @ g[1]
            closed = float((top / ((g[0] - g[1]) @ (g[0] - g[1]))).clamp(0, 1))
            assert float(weights[0]) == about(closed)


def test_more_unit_scaling_makes_it_scale_free() -> None:
    g = torch.tensor([[1.0, 0.2], [0.1, 2.0]]).double()
    scaled = g * torch.tensor([[100.0], [1.0]])
    assert torch.allclose(min_norm(g), min_norm(scaled))
    assert float(min_norm(scaled, unit=False)[0]) < 0.01


def test_more_head_gradient_is_the_head_s() -> None:
    batch = random_batch(MORE(), seed=1)
    head = torch.randn(4).double().requires_grad_()
    for side in ("chosen", "rejected"):
        batch[f"{side}.rewards"] = (batch[f"{side}.hidden"] @ head).detach()
    sums = MORE().statistics(batch)
    for task in (0, 1):
        rows = batch["group"] == task
        live = {f"{s}.rewards": (batch[f"{s}.hidden"] @ head)[rows] for s in ("chosen", "rejected")}
        (wanted,) = torch.autograd.grad(BradleyTerry()(live).total(), head)
        assert torch.allclose(sums["gradient_sum"][task] / sums["gradient_count"][task], wanted)


def test_more_loss_weighs_the_tasks_and_carries_momentum() -> None:
    batch = random_batch(MORE(), seed=2)
    loss = MORE()(batch)
    parts = [
        float(BradleyTerry()({n: c[batch["group"] == t] for n, c in batch.items()}).total()) for t in (0, 1)
    ]
    weights = [float(loss.logs[f"weight_{t}"][0]) for t in (0, 1)]
    assert sum(weights) == about(1)
    assert float(loss.total()) == about(sum(w * p for w, p in zip(weights, parts, strict=True)))
    again = MORE()({**batch, **loss.state})
    assert torch.allclose(again.state["state_gradient"], loss.state["state_gradient"] * (0.01 + 1))


def test_more_a_group_beyond_the_tasks_is_named() -> None:
    batch = random_batch(MORE(), seed=2)
    with pytest.raises(ObjectiveError, match="'group', row 4 holds 2"):
        MORE()({**batch, "group": torch.tensor([0, 1, 0, 1, 2])})


def test_more_calibration_counts_both_orders() -> None:
    assert expected_calibration_error([1, 1, 0, 0], [0.9, 0.7, 0.65, 0.3], bins=5) == about(0.1875)
    q = [0.9, 0.7, 0.8]
    assert expected_calibration_error([1, 1, 1], q) == about(1 - sum(q) / 3)
    truths, probabilities = both_orders(q)
    assert truths == [1, 1, 1, 0, 0, 0] and probabilities[3:] == [about(1 - p) for p in q]


# --- dga -----------------------------------------------------------------------------------------------------------


def test_dga_values() -> None:
    alpha, weights = DGA(eta=0.5, beta=0.1).update([0.5, 0.5], [0.5, 0.5], [1, -1])
    assert alpha == [about(0.7311, 1e-4), about(0.2689, 1e-4)]
    assert weights == [about(0.5231, 1e-4), about(0.4769, 1e-4)]


def test_dga_stays_on_the_simplex_and_equal_alignments_change_nothing() -> None:
    start = [0.2, 0.3, 0.5]
    for settings, alignment in (({}, [3.0, 3.0, 3.0]), ({"eta": 0.0}, [9.0, -2.0, 1.0])):
        alpha, _ = DGA.model_validate(settings).update(start, start, alignment)
        assert alpha == [about(a) for a in start]
    assert sum(DGA(eta=3).update(start, start, [500.0, -200.0, 1.0])[0]) == about(1)


def test_dga_adding_a_constant_changes_nothing() -> None:
    runs = [DGA().update([0.4, 0.6], [0.4, 0.6], [a + c for a in (1.0, -0.5)])[0] for c in (0.0, 100.0)]
    assert runs[0] == [about(a) for a in runs[1]]


def test_dga_the_target_s_own_domain_grows() -> None:
    g = torch.eye(3)
    alignment = (g @ g[0]).tolist()
    assert DGA().update([1 / 3] * 3, [1 / 3] * 3, alignment)[1][0] > 1 / 3


def test_dga_a_weight_of_0_stays_0_without_a_floor() -> None:
    assert DGA().update([0.0, 1.0], [0.5, 0.5], [5.0, 0.0])[0][0] == 0
    assert DGA(floor=1e-4).update([0.0, 1.0], [0.5, 0.5], [5.0, 0.0])[0][0] > 0
