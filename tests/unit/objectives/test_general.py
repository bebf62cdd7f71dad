"""What holds for every objective and variant: gradients, invariances, splitting a step, and the errors at the door."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfloop.workflows.errors import ObjectiveError
from selfloop.workflows.objectives import (
    AFT,
    CUT,
    DPO,
    GRPO,
    GSPO,
    MORE,
    OBJECTIVES,
    PPO,
    SAR,
    SFT,
    Objective,
)
from selfloop.workflows.objectives.columns import ROW_READS, canonical
from selfloop.workflows.report.pages.objectives import document, sections
from tests.unit.objectives.batches import BATCH, VARIANTS, gradients, random_batch, summed, trained

# fmt: off
CARDS = {
    "sft", "dpo", "simpo", "ln-dpo", "kto", "bco", "cpo", "orpo", "asft", "pro", "poft", "rrpo", "d2o", "bradley-terry",
    "reward-augmented-dpo", "grpo", "ppo", "spin", "irpo", "dno", "irepo", "cut", "aft", "cream", "scir", "sar", "sami",
    "muscle", "self-consistency-reward", "control-llm", "more", "dmoerm",
}
# fmt: on
every = pytest.mark.parametrize("objective", list(VARIANTS.values()), ids=list(VARIANTS))
quick = settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
seeds = st.integers(0, 10_000)


def whole(objective: Objective, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch with its own statistics, as the engine hands them back."""
    return {**batch, **objective.statistics(batch)}


def test_every_card_has_an_objective() -> None:
    assert set(OBJECTIVES) >= CARDS
    assert all(slug == slug.lower() for slug in OBJECTIVES)


@every
def test_gradcheck(objective: Objective) -> None:
    batch = whole(objective, random_batch(objective, seed=3))
    names = trained(objective, batch)
    if isinstance(objective, AFT):  # what its constraints detach has its own tests
        objective = AFT(constraint="none")
    if isinstance(objective, CUT) and objective.gamma:  # (p-)^gamma is detached
        names = ["response.logprobs"]
    inputs = [batch[name].clone().requires_grad_() for name in names]

    def total(*values: torch.Tensor) -> torch.Tensor:
        return objective({**batch, **dict(zip(names, values, strict=True))}).total()

    if (
        objective == VARIANTS["grpo-on-policy"]
    ):  # its ratio is 1 by construction: only the gradient says something
        (slope,) = gradients(objective, batch, *names)
        assert slope.abs().max() > 0
        return
    assert torch.autograd.gradcheck(total, inputs)


@every
@quick
@given(seed=seeds)
def test_padding_changes_nothing(objective: Objective, seed: int) -> None:
    batch = random_batch(objective, seed)
    padded = {}
    for name, column in batch.items():
        token_wise = name.endswith("_phrase") or name in ("returns", "old_values")
        token_wise |= "." in name and name.rsplit(".", 1)[1] not in ROW_READS
        fill = 0.0 if name.endswith(".mask") else float("nan")
        extra = torch.full_like(column[..., :1], fill)
        padded[name] = torch.cat([column, extra, extra], -1) if token_wise else column
    names = trained(objective, batch)
    assert torch.allclose(objective(batch).total(), objective(padded).total(), atol=1e-12)
    for before, after in zip(
        gradients(objective, batch, *names), gradients(objective, padded, *names), strict=True
    ):
        width = before.shape[-1]
        assert torch.allclose(before, after[..., :width], atol=1e-12)
        assert not after[..., width:].any()


@every
@quick
@given(seed=seeds)
def test_row_order_changes_nothing(objective: Objective, seed: int) -> None:
    batch = random_batch(objective, seed)
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(seed))
    shuffled = {name: column[order] for name, column in batch.items()}
    assert torch.allclose(objective(batch).total(), objective(shuffled).total(), atol=1e-12)


@every
@quick
@given(seed=seeds)
def test_dtypes_agree(objective: Objective, seed: int) -> None:
    exact = random_batch(objective, seed)
    single = {name: column.float() for name, column in exact.items()}
    loss = objective(single).total()
    assert loss.dtype == torch.float32
    assert torch.allclose(loss.double(), objective(exact).total(), rtol=1e-4, atol=1e-5)
    half = {name: column.bfloat16() if "." in name else column for name, column in single.items()}
    widened = {name: column.float() for name, column in half.items()}
    assert torch.equal(objective(half).total(), objective(widened).total())


@every
@quick
@given(seed=seeds, cut=st.integers(1, BATCH - 1))
def test_parts_equal_the_whole(objective: Objective, seed: int, cut: int) -> None:
    """Micro-batches or two ranks: terms and statistics add up, gradients too."""
    batch = random_batch(objective, seed)
    names = trained(objective, batch)
    leaves = {name: batch[name].clone().requires_grad_() for name in names}
    parts = [{n: c[s] for n, c in {**batch, **leaves}.items()} for s in (slice(0, cut), slice(cut, None))]
    found = [objective.statistics(part) for part in parts]
    sums = {name: found[0][name] + found[1][name] for name in objective.statistic_names}
    losses = [objective({**part, **sums}) for part in parts]
    total = summed(losses)
    reference = objective(batch)
    assert torch.allclose(total, reference.total(), atol=1e-10)
    for got, wanted in zip(
        torch.autograd.grad(total, list(leaves.values()), allow_unused=True),
        gradients(objective, batch, *names),
        strict=True,
    ):
        assert torch.allclose(torch.zeros_like(wanted) if got is None else got, wanted, atol=1e-10)
    for name, value in reference.state.items():
        assert torch.allclose(losses[0].state[name], value, atol=1e-12)
        assert torch.equal(losses[0].state[name], losses[1].state[name])


@every
def test_rows_with_a_zero_factor_add_nothing_to_any_term(objective: Objective) -> None:
    """What a run relies on when it trains nothing: exact zeros, and zero gradients, whatever the log-probs are."""
    assert "weight" in objective.factors
    for factor in objective.factors:
        batch = random_batch(objective, seed=5)
        batch = {**batch, factor: torch.zeros(BATCH, dtype=torch.float64)}
        loss = objective(batch)
        assert all(float(term.sum()) == 0.0 for term in loss.terms.values()), factor
        assert all(not slope.any() for slope in gradients(objective, batch, *trained(objective, batch))), (
            factor
        )


def test_advantages_are_a_factor_only_where_nothing_stands_beside_them() -> None:
    assert "advantages" in GRPO().factors and "advantages" in PPO().factors and "advantages" in GSPO().factors
    for objective in (GRPO(beta=0.1), SAR(), PPO(beta=0.1), PPO(vf_coefficient=0.1), PPO(whiten="unbiased")):
        assert objective.factors == ("weight",)


@every
def test_counts_do_not_depend_on_values(objective: Objective) -> None:
    batch = random_batch(objective)
    reads = [f"{view}.{read}" for view, names in objective.reads.items() for read in names]
    zeros = objective({**batch, **{name: torch.zeros_like(batch[name]) for name in reads}})
    loss = objective(batch)
    assert {n: float(t.count()) for n, t in zeros.terms.items()} == {
        n: float(t.count()) for n, t in loss.terms.items()
    }
    assert zeros.total().isfinite()


@every
def test_statistics_may_come_back_expanded(objective: Objective) -> None:
    batch = random_batch(objective)
    sums = objective.statistics(batch)
    assert set(sums) == set(objective.statistic_names)
    expanded = {name: value.expand(BATCH) if value.dim() == 0 else value for name, value in sums.items()}
    assert torch.allclose(objective({**batch, **expanded}).total(), objective(batch).total(), atol=1e-12)


@every
def test_inputs_stay_as_they_were(objective: Objective) -> None:
    batch = random_batch(objective)
    before = {name: column.clone() for name, column in batch.items()}
    loss = objective(batch)
    assert all(torch.equal(batch[name], column) for name, column in before.items())
    for value in (*loss.logs.values(), *loss.state.values()):
        assert not value.requires_grad
    assert all(value.shape == (BATCH,) for value in loss.logs.values())


@every
def test_objectives_pickle_and_are_frozen(objective: Objective) -> None:
    assert pickle.loads(pickle.dumps(objective)) == objective
    assert type(objective).model_validate(objective.model_dump()) == objective
    for name in type(objective).model_fields:
        with pytest.raises(ValueError, match="frozen"):
            setattr(objective, name, getattr(objective, name))


@every
def test_weight_scales_the_loss(objective: Objective) -> None:
    batch = whole(objective, random_batch(objective))
    doubled = {**batch, "weight": 2 * batch.get("weight", torch.ones(BATCH, dtype=torch.float64))}
    if isinstance(objective, MORE):
        doubled["weight"] = doubled["weight"].double()
    assert torch.allclose(objective(doubled).total(), 2 * objective(batch).total(), atol=1e-12)


@every
def test_both_spellings_are_read(objective: Objective) -> None:
    batch = random_batch(objective)
    assert torch.equal(
        objective({name.replace(".", "_"): column for name, column in batch.items()}).total(),
        objective(batch).total(),
    )


@every
def test_a_missing_column_is_named(objective: Objective) -> None:
    batch = random_batch(objective)
    for name in batch:
        rest = {other: column for other, column in batch.items() if other != name}
        with pytest.raises(ObjectiveError) as caught:
            objective(rest)
        assert canonical(name) in str(caught.value)
        assert type(objective).__name__ in str(caught.value)


@every
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_named(objective: Objective, bad: float) -> None:
    batch = random_batch(objective)
    for name, column in batch.items():
        if name.endswith(".mask") or name == "response.correct":
            continue
        spoiled = column.clone()
        spoiled[2].reshape(-1)[0] = bad
        with pytest.raises(ObjectiveError) as caught:
            objective({**batch, name: spoiled})
        assert repr(canonical(name)) in str(caught.value)
        assert "row 2" in str(caught.value)


@every
def test_an_empty_mask_is_named(objective: Objective) -> None:
    batch = random_batch(objective)
    for name in (name for name in batch if name.endswith(".mask")):
        empty = batch[name].clone()
        empty[3] = 0
        with pytest.raises(ObjectiveError, match=rf"'{name}', row 3.*no response token"):
            objective({**batch, name: empty})


@every
def test_unequal_shapes_are_named(objective: Objective) -> None:
    batch = random_batch(objective)
    for name, column in batch.items():
        with pytest.raises(ObjectiveError, match="shape"):
            objective({**batch, name: column[:-1]})
        if "." in name and not name.endswith(".hidden"):
            with pytest.raises(ObjectiveError, match="shape"):
                objective({**batch, name: torch.cat([column, column], -1).unsqueeze(-1)})


@every
def test_a_label_outside_its_set_is_named(objective: Objective) -> None:
    batch = random_batch(objective)
    for name in {*objective.domains, "rank"} & set(batch):
        wrong = batch[name].clone()
        wrong[1] = 1.5
        with pytest.raises(ObjectiveError, match=f"'{name}', row 1.* must be"):
            objective({**batch, name: wrong})


def test_columns_that_are_not_needed_are_not_looked_at() -> None:
    batch = random_batch(DPO())
    assert DPO()({**batch, "score": torch.tensor([float("nan")])}).total().isfinite()


def test_the_dotted_spelling_wins() -> None:
    """`response_logprobs` is the sampler's column in a table; the trainer's is `response.logprobs`."""
    batch = random_batch(SFT())
    assert torch.equal(SFT()({**batch, "response_logprobs": torch.zeros(1)}).total(), SFT()(batch).total())


def test_columns_and_statistics_can_be_read_on_the_class() -> None:
    assert PPO.columns == ("advantages",)
    assert PPO(vf_coefficient=0.1).columns == ("advantages", "returns", "old_values")
    assert SFT.columns == () and SFT(unlikelihood="token").columns == ("label",)
    assert SFT.views == ("response",)


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="betta"):
        DPO(betta=0.2)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="label_smoothing"):
        DPO(loss="ipo", label_smoothing=0.1)


def test_the_page_is_up_to_date() -> None:
    page = Path(__file__).parents[3] / "docs" / "objectives.md"
    assert page.read_text() == document(), (
        "run python -m selfloop.workflows.report.pages.objectives > docs/objectives.md"
    )


@pytest.mark.parametrize("slug", list(OBJECTIVES))
def test_docstrings_say_formula_source_and_reduction(slug: str) -> None:
    parts = sections(OBJECTIVES[slug].__doc__ or "")
    assert {"", "Formula", "Source", "Tokens"} <= set(parts)
    assert all(field.description for field in OBJECTIVES[slug].model_fields.values())
