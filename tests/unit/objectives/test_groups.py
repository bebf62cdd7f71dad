"""The cards' "Must hold" lines of PRO, AFT and D2O. Test names: card, then the line in short."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from selfloop.workflows.objectives import AFT, D2O, DPO, PRO
from selfloop.workflows.objectives.ranking import better_worse
from tests.unit.objectives.batches import LOG2, about, gradients, one, pair, total


def ranked(*scores: float, tokens: int = 1, **columns: list[float]) -> dict[str, Tensor]:
    """One row of candidates with these log-probs a token."""
    logprobs = torch.tensor(scores).double()[None, :, None].expand(1, len(scores), tokens).clone()
    batch = {"ranked.logprobs": logprobs, "ranked.mask": torch.ones_like(logprobs)}
    return batch | {name: torch.tensor([column]).double() for name, column in columns.items()}


# --- pro ------------------------------------------------------------------------------------------------------------


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


# --- aft ------------------------------------------------------------------------------------------------------------

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
    three = {  # two pairs, one of them right, then none, then one right pair
        "ranked.logprobs": torch.tensor([[-0.5, -0.3, -0.6], [-0.5, -0.3, -0.1], [-0.2, -0.3, -1.0]])[
            ..., None
        ],
        "rank": torch.tensor([[0, 1, 1], [1, 1, 1], [0, 1, -1]]),
    }
    shares = DETACHED({**three, "ranked.mask": torch.ones(3, 3, 1)}).logs["assessment_accuracy"]
    assert float(shares.mean()) == about(2 / 3)


def test_aft_without_a_right_candidate_there_is_no_reference_solution() -> None:
    wrong = ranked(-0.5, -0.3, rank=[1, 1])
    assert total(AFT(), wrong) == 0
    assert not gradients(AFT(), wrong, "ranked.logprobs")[0].any()


@pytest.mark.parametrize(("objective", "blows_up"), [(0, True), (1, False)])
def test_aft_the_unconstrained_loss_alone_forgets_right_chains(objective: int, blows_up: bool) -> None:
    """Wrong chains that repeat a word of the right one take it down; detached ones let it rise, and the accuracy too."""
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer, accuracies, loss = (
        torch.optim.SGD([logits], lr=0.5),
        list[float](),
        (PLAIN, DETACHED)[objective],
    )
    for _ in range(500):
        p = logits.log_softmax(-1)
        chains = torch.zeros(1, 2, 5).double()
        chains[0, 0, :2] = torch.stack([p[0], p[1]])
        chains[0, 1] = torch.stack([p[0], p[0], p[0], p[0], p[2]])
        mask = torch.tensor([[[1.0, 1, 0, 0, 0], [1, 1, 1, 1, 1]]]).double()
        found = loss({"ranked.logprobs": chains, "ranked.mask": mask, "rank": torch.tensor([[0, 1]])})
        accuracies.append(float(found.logs["assessment_accuracy"].mean()))
        optimizer.zero_grad()
        found.total().backward()
        optimizer.step()
    right = float(logits.detach().log_softmax(-1)[:2].mean())
    assert blows_up or (accuracies[0], accuracies[-1]) == (0, 1)
    assert (right < math.log(1 / 4)) is blows_up


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


# --- d2o ------------------------------------------------------------------------------------------------------------


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
