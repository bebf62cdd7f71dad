"""Agreement with TRL's own losses to 1e-6, where TRL has the loss. Runs when trl (1.16) is installed: `dev-peers`.

Each loss method of a TRL trainer is called on a stand-in for the trainer, with a model that answers given log-probs.
"""

from __future__ import annotations

from collections import defaultdict
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from selfloop.workflows.objectives import (
    CPO,
    DPO,
    GRPO,
    KTO,
    LNDPO,
    ORPO,
    PPO,
    SFT,
    BradleyTerry,
    Objective,
    SimPO,
)
from selfloop.workflows.objectives.advantages import group_normalized, leave_one_out
from selfloop.workflows.objectives.maths import mean, total
from tests.unit.objectives.batches import random_batch

pytestmark = [
    pytest.mark.skipif(find_spec("trl") is None, reason="needs trl (pip install 'selfloop[dev-peers]')"),
    pytest.mark.filterwarnings("ignore"),
]
seeds = pytest.mark.parametrize("seed", range(3))


def close(ours: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(ours.double(), theirs.double(), rtol=0, atol=1e-6)


def trainer(**settings: Any) -> Any:
    """A stand-in with these settings: one rank, training, metrics that go nowhere."""
    same = {"gather": lambda x: x, "gather_for_metrics": lambda x: x, "reduce": lambda x, reduction: x}
    accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=1, sync_gradients=True, **same)
    base: dict[str, Any] = {
        "accelerator": accelerator,
        "model": SimpleNamespace(training=True),
        "_metrics": {"train": defaultdict(list)},
        "aux_loss_enabled": False,
        "precompute_ref_logps": True,
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    return SimpleNamespace(**base | settings)


def answers(logprobs: Tensor) -> Any:
    """A model whose fused head returns these log-probs."""
    zeros = torch.zeros_like(logprobs)
    outputs = SimpleNamespace(log_probs=logprobs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    return lambda **_: outputs


def masked(batch: dict[str, Tensor], view: str, read: str = "logprobs") -> Tensor:
    return batch[f"{view}.{read}"] * batch[f"{view}.mask"]


def unshifted(mask: Tensor) -> Tensor:
    """TRL's completion mask: one prompt token before the response."""
    return torch.cat([torch.zeros_like(mask[:, :1]), mask], 1)


def dpo(batch: dict[str, Tensor], loss_type: str, **settings: Any) -> Tensor:
    from trl.trainer.dpo_trainer import DPOTrainer

    mask = torch.cat([unshifted(batch["chosen.mask"]), unshifted(batch["rejected.mask"])])
    stub = trainer(
        ld_alpha=None, f_divergence_type="reverse_kl", use_weighting=False, loss_types=[loss_type], loss_weights=[1.0],
        **{"beta": 0.1, "label_smoothing": 0.0, **settings},
    )  # fmt: skip
    inputs = {
        "input_ids": torch.ones_like(mask).long(),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": total(batch, "chosen", "reference_logprobs"),
        "ref_rejected_logps": total(batch, "rejected", "reference_logprobs"),
    }
    model = answers(torch.cat([masked(batch, "chosen"), masked(batch, "rejected")]))
    return DPOTrainer._compute_loss(stub, model, inputs, False)


@seeds
@pytest.mark.parametrize(
    ("objective", "name", "settings"),
    [
        (DPO(), "sigmoid", {}),
        (DPO(loss="hinge"), "hinge", {}),
        (DPO(loss="ipo"), "ipo", {}),
        (DPO(loss="robust", label_smoothing=0.2), "robust", {"label_smoothing": 0.2}),
        (DPO(loss="bco_pair"), "bco_pair", {}),
        (LNDPO(beta=1.5), "sigmoid_norm", {"beta": 1.5}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_dpo(objective: Objective, name: str, settings: dict[str, float], seed: int) -> None:
    batch = random_batch(DPO(), seed)
    assert close(objective(batch).total(), dpo(batch, name, **settings))


@seeds
def test_sft(seed: int) -> None:
    """The token mean over the chosen responses."""
    batch = random_batch(DPO(), seed)
    chosen = {name.replace("chosen", "response"): c for name, c in batch.items() if name.startswith("chosen")}
    assert close(SFT()(chosen).total(), dpo(batch, "sft"))


@seeds
@pytest.mark.parametrize("one_label", [False, True])
def test_kto(seed: int, one_label: bool) -> None:
    from trl.trainer.kto_trainer import KTOTrainer

    batch = random_batch(KTO(), seed)
    if one_label:
        batch["label"] = torch.ones_like(batch["label"])
    mask = unshifted(batch["response.mask"])
    stub = trainer(
        beta=0.1, loss_type="kto", calculate_KL=True, desirable_weight=1.3, undesirable_weight=0.8,
        _compute_kl_logps=lambda model, inputs: total(batch, "kl"),
    )  # fmt: skip
    inputs = {
        "input_ids": torch.ones_like(mask).long(),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "label": batch["label"],
        "ref_logps": total(batch, "response", "reference_logprobs"),
        "ref_KL_logps": total(batch, "kl", "reference_logprobs"),
    }
    theirs = KTOTrainer._compute_loss(stub, answers(masked(batch, "response")), inputs, False)
    assert close(KTO(desirable_weight=1.3, undesirable_weight=0.8)(batch).total(), theirs)


@seeds
@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        (CPO(), {"loss_type": "sigmoid"}),
        (CPO(loss="hinge"), {"loss_type": "hinge"}),
        (CPO(label_smoothing=0.1), {"loss_type": "sigmoid", "label_smoothing": 0.1}),
        (SimPO(gamma=0.7), {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.7}),
    ],
    ids=["cpo", "cpo-hinge", "cpo-smoothed", "simpo"],
)
def test_cpo_and_simpo(objective: CPO, settings: dict[str, Any], seed: int) -> None:
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    batch = random_batch(CPO(), seed)
    stub = trainer(**{"alpha": 0.0, "beta": 0.1, "label_smoothing": 0.0, **settings})
    reduce = mean if settings["loss_type"] == "simpo" else total
    losses, *_ = CPOTrainer.cpo_loss(stub, reduce(batch, "chosen"), reduce(batch, "rejected"))
    assert close(objective(batch).terms["preference"].values, losses)


@seeds
def test_orpo(seed: int) -> None:
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    batch = random_batch(ORPO(), seed)
    losses, *_ = ORPOTrainer.odds_ratio_loss(
        trainer(beta=0.1), mean(batch, "chosen"), mean(batch, "rejected")
    )
    assert close(ORPO()(batch).terms["odds"].values * 0.1, -losses)


@seeds
@pytest.mark.parametrize("columns", [(), ("margin",)], ids=str)
@pytest.mark.parametrize("centering", [0.0, 0.01])
def test_bradley_terry(seed: int, columns: tuple[str, ...], centering: float) -> None:
    from trl.trainer.reward_trainer import RewardTrainer

    batch = random_batch(BradleyTerry(), seed)
    batch |= {name: torch.rand(5, generator=torch.Generator().manual_seed(seed)).double() for name in columns}
    logits = torch.cat([batch["chosen.rewards"], batch["rejected.rewards"]])[:, None]
    stub = trainer(args=SimpleNamespace(center_rewards_coefficient=centering or None))
    inputs = {"attention_mask": torch.ones(10, 3), **{name: batch[name] for name in columns}}
    theirs = RewardTrainer.compute_loss(stub, lambda **_: SimpleNamespace(logits=logits), inputs)
    assert close(BradleyTerry(centering=centering)(batch).total(), theirs)


def sampled(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """TRL's inputs for responses with these log-probs."""
    mask = batch["response.mask"]
    prompt = torch.ones(len(mask), 1).long()
    return {
        "prompt_ids": prompt,
        "prompt_mask": prompt,
        "completion_ids": torch.ones_like(mask).long(),
        "completion_mask": mask,
        "advantages": batch["advantages"],
        "old_per_token_logps": batch["response.old_logprobs"],
        "old_logps": masked(batch, "response", "old_logprobs").sum(-1),
        "ref_per_token_logps": batch.get("response.reference_logprobs", mask),
        "num_items_in_batch": mask.sum(),
    }


@seeds
@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo", "bnpo"])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("delta", [None, 2.0])
def test_grpo(loss: str, beta: float, delta: float | None, seed: int) -> None:
    from trl.trainer.grpo_trainer import GRPOTrainer

    settings = {"loss": loss, "beta": beta, "delta": delta, "epsilon_high": 0.28, "max_length": 7}
    objective = GRPO.model_validate(settings)
    batch = random_batch(objective, seed)
    logprobs = batch["response.logprobs"]
    stub = MagicMock(
        **vars(
            trainer(
                top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level="token", beta=beta,
                loss_type=loss, epsilon_low=0.2, epsilon_high=0.28, use_vllm=False, max_completion_length=7,
                current_gradient_accumulation_steps=1, _entropy_bonus_enabled=False,
                args=SimpleNamespace(delta=delta, steps_per_generation=1, use_bias_correction_kl=False),
                _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
            )
        )
    )  # fmt: skip
    assert close(objective(batch).total(), GRPOTrainer._compute_loss(stub, None, sampled(batch)))


@seeds
def test_rloo(seed: int) -> None:
    from trl.trainer.rloo_trainer import RLOOTrainer

    objective = PPO(ratio="sequence", epsilon_high=0.3)
    batch = random_batch(objective, seed)
    logprobs = batch["response.logprobs"]
    stub = trainer(
        epsilon_low=0.2, epsilon_high=0.3,
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
    )  # fmt: skip
    assert close(objective(batch).total(), RLOOTrainer._compute_loss(stub, None, sampled(batch)))


def test_group_statistics() -> None:
    from trl.trainer.utils import nanstd

    rewards = torch.tensor([[1.0, 0.0, 0.3, 0.9]]).double()
    scaled = (rewards - rewards.mean()) / (nanstd(rewards, dim=1) + 1e-4)
    assert close(torch.tensor(group_normalized(rewards[0].tolist(), epsilon=1e-4)), scaled[0])
    others = (rewards.sum() - rewards) / 3
    assert close(torch.tensor(leave_one_out(rewards[0].tolist())), (rewards - others)[0])
