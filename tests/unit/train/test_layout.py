"""Sequences end to end in one line are to a model what each of them is alone, whatever its architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfloop.actors.train.model.attention import lies_flat, states, use
from selfloop.actors.train.rows.layout import end_to_end
from selfloop.actors.train.rows.views import steps_of
from tests.unit.train.trainer_rows import tiny_model

SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 64, "vocab_size": 64, "max_position_embeddings": 128, "initializer_range": 0.3,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FLAT: dict[str, dict[str, Any]] = {
    "Llama": {}, "Qwen2": {}, "Qwen3": {}, "Olmo2": {}, "Phi3": {}, "Gemma": {},
    "Mistral": {"sliding_window": 6},
    "Gemma2": {"sliding_window": 6, "attn_logit_softcapping": None, "query_pre_attn_scalar": 8},
    "Gemma3": {"sliding_window": 6, "query_pre_attn_scalar": 8, "layer_types": ["sliding_attention", "full_attention"]},
}  # fmt: skip


def model_of(kind: str, more: dict[str, Any]) -> Any:
    import transformers

    suffix = "Text" if kind == "Gemma3" else ""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}{suffix}Config")(**{**SMALL, **more})
    return getattr(transformers, f"{kind}ForCausalLM")(config).train()


def line_and_each(model: Any, seed: int, contexts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states of sequences in one line and of each alone, (tokens, width). contexts: which one each stands under."""
    rng = np.random.default_rng(seed)
    heads = [rng.integers(3, 64, rng.integers(1, 14)) for _ in range(max(contexts) + 1)]
    sequences = [
        np.concatenate([heads[one], rng.integers(3, 64, rng.integers(0, 18 * (seed > 0) + 1))])
        for one in contexts
    ]
    lengths = np.array([len(one) for one in sequences])
    starts = np.array([len(heads[one]) for one in contexts])
    line = end_to_end(np.concatenate(sequences), lengths, np.array(contexts), starts, "cpu")
    places = line.place(np.repeat(np.arange(len(lengths)), lengths), steps_of(lengths))
    found = states(model, torch.from_numpy(line.ids), line.layout)
    alone = [states(model, torch.from_numpy(one)[None]) for one in sequences]
    assert line.ids.size == (sum(starts[np.unique(contexts, return_index=True)[1]]) + (lengths - starts).sum()
                             if len(set(contexts)) < len(contexts) else lengths.sum())  # fmt: skip
    return found[torch.from_numpy(places)], torch.cat(alone)


@pytest.mark.parametrize("kind", FLAT)
@pytest.mark.parametrize("contexts", [[0, 0, 0, 1, 1, 2], [0, 1, 2], [0], [1, 0, 1, 0]])
def test_a_line_of_sequences_is_each_of_them_alone(kind: str, contexts: list[int]):
    model = model_of(kind, FLAT[kind])
    plain = states(model, torch.arange(3, 20)[None])
    use(model)
    torch.testing.assert_close(states(model, torch.arange(3, 20)[None]), plain)
    assert lies_flat(model, "cpu")
    for seed in range(3):
        found, alone = line_and_each(model, seed, contexts)
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)


def test_pieces_of_unlike_length_are_not_padded_to_each_other():
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(4.5, 1.2, 200).astype(int).clip(4, 4000)
    numbers = rng.integers(0, 60, 200)
    starts = rng.lognormal(3.5, 1.2, 60).astype(int).clip(2, 2000)[numbers]
    line = end_to_end(np.zeros((lengths + starts).sum(), np.int64), lengths + starts, numbers, starts, "cpu")
    assert line.layout is not None
    cells = sum(block.queries.numel() for block in line.layout.blocks)
    assert cells < 1.6 * line.ids.size
    pairs = sum(block.queries.shape[1] * block.keys.numel() for block in line.layout.blocks)
    needed = (lengths * (lengths + starts)).sum() + (
        starts[np.unique(numbers, return_index=True)[1]] ** 2
    ).sum()
    assert pairs < 1.6**2 * needed + 32 * 32 * 260
    assert len(line.layout.blocks) <= 80
    assert len(set(line.layout.order.tolist())) == line.ids.size


def test_gradients_are_those_of_the_sequences_alone():
    model = model_of("Qwen2", {}).double()
    use(model)
    found, alone = line_and_each(model, 0, [0, 0, 1, 1, 1])
    upstream = torch.randn(found.shape, dtype=torch.float64)
    params = [param for param in model.model.parameters() if param.requires_grad]
    grads = [torch.autograd.grad(value, params, upstream) for value in (found, alone)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)  # norms count in float32


def test_gradient_checkpointing_lays_the_line_out_again():
    model = model_of("Llama", {})
    use(model)
    found, _ = line_and_each(model, 0, [0, 0, 1])
    wanted = torch.autograd.grad(found.sum(), model.model.layers[0].mlp.up_proj.weight)[0]
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    again, _ = line_and_each(model, 0, [0, 0, 1])
    torch.testing.assert_close(
        torch.autograd.grad(again.sum(), model.model.layers[0].mlp.up_proj.weight)[0], wanted
    )


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("Gemma2", {"query_pre_attn_scalar": 8, "attn_implementation": "eager"}),
        ("Mamba2", {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8}),
        ("GptOss", {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 6}),
    ],
)
def test_an_architecture_that_cannot_says_so(kind: str, more: dict[str, Any]):
    model = model_of(kind, more)
    use(model)
    assert not lies_flat(model, "cpu")
    states(model, torch.arange(3, 20)[None])


def test_attention_that_forgets_the_layout_is_found(tmp_path: Path):
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model(tmp_path), dtype="float32")
    use(model)
    assert lies_flat(model, "cpu")
    base = model.base_model
    plain = base.forward
    base.forward = lambda layout=None, attention_mask=None, **named: plain(**named)
    assert not lies_flat(model, "cpu")
    base.forward = lambda input_ids, use_cache: plain(input_ids=input_ids)
    assert not lies_flat(model, "cpu")
