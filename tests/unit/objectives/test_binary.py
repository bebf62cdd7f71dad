"""The cards' "Must hold" lines of KTO and BCO. Test names: card, then the line in short."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from selfloop.workflows.objectives import BCO, DPO, KTO
from selfloop.workflows.objectives.binary import density_weights, desirable_weight_range
from tests.unit.objectives.batches import LOG2, about, gradients, one, pair, total


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


# --- kto ------------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("labels", "undesirable", "loss"),
    [([1, 1], 1.0, 0.425557), ([1, 0], 1.0, 0.5), ([1, 1, 0], 2.0, 0.666667)],
)
def test_kto_mean_runs_over_all_rows(labels: list[int], undesirable: float, loss: float) -> None:
    batch = binary([1.0] * len(labels), labels, [0.4] * len(labels))
    assert total(KTO(beta=0.5, undesirable_weight=undesirable), batch) == about(loss)


def test_kto_doubling_w_u_doubles_the_label_0_part() -> None:
    batch = binary([0.5, 0.2, -0.1], [1, 0, 0])
    once, twice = KTO()(batch).terms["value"].values, KTO(undesirable_weight=2)(batch).terms["value"].values
    assert torch.allclose(twice, once * torch.tensor([1.0, 2.0, 2.0]))


def test_kto_weight_advice() -> None:
    assert desirable_weight_range(10, 40) == (4.0, about(4 * 4 / 3))


# --- bco ------------------------------------------------------------------------------------------------------------


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
