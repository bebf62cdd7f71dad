"""Adapters under whole recipes: two iterations with the real trainer on the pocket model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from selfloop.workflows.config import Lora
from selfloop.workflows.pocket.source import POCKET_MODEL
from tests.recipes.runs import pocket_config, real_trainer, run_recipe


@pytest.mark.real
@pytest.mark.parametrize("recipe", ["self-rewarding", "spin", "grpo", "expert-iteration"])
def test_a_recipe_trains_one_adapter_on_the_initial_model(recipe: str, tmp_path: Path):
    """The policy's adapter goes on in iteration 2, unless the recipe starts from the initial policy again."""
    config = pocket_config(recipe)
    trainer = real_trainer(config, lr=1e-3, batch_size=16, lora=Lora(rank=4, dropout=0.1))
    metrics = run_recipe(config, tmp_path / "run", trainer=trainer)
    assert [line["iteration"] for line in metrics] == [0, 1, 2]
    before = load_file(POCKET_MODEL / "model.safetensors")
    states: list[dict[str, torch.Tensor]] = []
    for index in (1, 2):
        folder = tmp_path / f"run/iteration=000{index}"
        after = load_file(folder / "policy/model.safetensors")
        changed = {name for name in before if not torch.equal(before[name].float(), after[name])}
        assert changed and all(name.endswith("_proj.weight") for name in changed)
        delta = (
            after["model.layers.0.mlp.up_proj.weight"] - before["model.layers.0.mlp.up_proj.weight"].float()
        )
        assert torch.linalg.matrix_rank(delta, atol=1e-6) <= 4
        about = json.loads((folder / "policy-state/state.json").read_text())
        assert Path(about["base"]["folder"]).samefile(POCKET_MODEL)
        states.append(load_file(folder / "policy-state/adapter_model.safetensors"))
    moved = max(float((states[1][name] - states[0][name]).abs().max()) for name in states[0])
    starts = [work.start_state for work in trainer.works]
    assert starts[0] is None
    if starts[-1] is None:
        assert recipe == "expert-iteration"
        assert moved > 0.12  # another draw of A, from -0.09 to 0.09
    else:
        assert 0 < moved < 0.12  # steps of 1e-3 each
