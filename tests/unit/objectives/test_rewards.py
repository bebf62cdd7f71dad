"""The cards' "Must hold" lines of Bradley-Terry, DMoERM, MORE and DGA. Test names: card, then the line in short."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from selfloop.workflows.errors import ObjectiveError
from selfloop.workflows.evaluation.metrics import expected_calibration_error
from selfloop.workflows.objectives import DGA, MORE, BradleyTerry, BradleyTerryRanking, DMoERM, Objective
from selfloop.workflows.objectives.control import both_orders, min_norm
from selfloop.workflows.objectives.experts import capability_label, first_digit, fusion_head, router_text
from selfloop.workflows.objectives.ranking import better_worse
from tests.unit.objectives.batches import LOG2, about, gradients, random_batch, total

# --- bradley-terry, dmoerm ------------------------------------------------------------------------------------------


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


# --- more -----------------------------------------------------------------------------------------------------------


def test_more_min_norm_values() -> None:
    g = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert min_norm(g, unit=False).tolist() == [about(0.8), about(0.2)]
    assert min_norm(g).tolist() == [about(0.5), about(0.5)]


def test_more_parallel_and_identical_gradients() -> None:
    assert min_norm(torch.tensor([[3.0, 0.0], [1.0, 0.0]]), unit=False).tolist() == [about(0), about(1)]
    same = min_norm(torch.tensor([[1.0, 2.0], [1.0, 2.0]]), unit=False)
    assert float(same.sum()) == about(1) and (same >= 0).all()


def test_more_identical_tasks_give_the_plain_mean() -> None:
    once = random_batch(BradleyTerry(), seed=3)
    once |= {
        f"{side}.hidden": torch.randn(len(once["chosen.rewards"]), 4).double()
        for side in ("chosen", "rejected")
    }
    batch = {name: torch.cat([column, column]) for name, column in once.items()}
    batch["group"] = torch.tensor([0.0, 1.0]).repeat_interleave(len(once["chosen.rewards"]))
    assert total(MORE(), batch) == about(total(BradleyTerry(), once))


def test_more_unit_gradients_have_a_common_descent_direction() -> None:
    for seed in range(10):
        g = torch.randn(3, 6, generator=torch.Generator().manual_seed(seed)).double()
        unit = g / g.norm(dim=-1, keepdim=True)
        mix = min_norm(g) @ unit
        assert (unit @ mix >= mix @ mix - 1e-9).all()


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


# --- dga ------------------------------------------------------------------------------------------------------------


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
