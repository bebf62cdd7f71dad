from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from selfloop.actors.train.model.logprobs import PolicyModule, head_logprobs, prove_head
from selfloop.workflows.errors import TrainerError
from tests.unit.train.trainer_rows import tiny_model


def plain(
    hidden: Any, weight: Any, bias: Any, targets: Any, scale: float = 1.0, cap: float | None = None
) -> Any:
    """What the tiles must equal."""
    logits = torch.nn.functional.linear(hidden, weight, bias).float() * scale
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    return logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)


@pytest.mark.parametrize("chunk", [4 * 50, 4 * 50 * 3, 4 * 50 * 1000])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.5, None), (1.0, 3.0), (2.0, 5.0)])
@pytest.mark.parametrize("biased", [False, True])
def test_values_and_gradients_are_those_of_the_whole_logits(
    chunk: int, scale: float, cap: float | None, biased: bool
):
    torch.manual_seed(0)
    hidden, weight = torch.randn(10, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    bias = torch.randn(50, requires_grad=True) if biased else None
    targets, upstream = torch.randint(0, 50, (10,)), torch.randn(10)
    inputs = [hidden, weight, *([bias] if bias is not None else [])]
    found = head_logprobs(hidden, weight, bias, targets, scale, cap, tile_bytes=chunk)
    wanted = plain(hidden, weight, bias, targets, scale, cap)
    torch.testing.assert_close(found, wanted)
    for one, other in zip(
        torch.autograd.grad(found, inputs, upstream),
        torch.autograd.grad(wanted, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_low_precision_sums_in_float32():
    torch.manual_seed(0)
    hidden = torch.randn(64, 16, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(50, 16, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(0, 50, (64,))
    found = head_logprobs(hidden, weight, None, targets, tile_bytes=4 * 50)
    assert found.dtype == torch.float32
    grad = torch.autograd.grad(found.sum(), weight)[0].float()
    wanted = torch.autograd.grad(plain(hidden, weight, None, targets).sum(), weight)[0].float()
    assert grad.dtype == torch.float32
    assert (grad - wanted).abs().max() < 0.02 * wanted.abs().max()


class Largest(TorchDispatchMode):
    """The size of the largest tensor that any operation makes."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.size = max(self.size, value.numel())
        return result


def test_no_tensor_is_larger_than_a_tile():
    tokens, vocabulary, width = 512, 4096, 8
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    chunk = 16 * vocabulary * 4
    with Largest() as seen:
        head_logprobs(
            hidden, weight, None, torch.randint(0, vocabulary, (tokens,)), tile_bytes=chunk
        ).sum().backward()
    assert seen.size <= max(16 * vocabulary, weight.numel())
    assert seen.size < tokens * vocabulary / 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("model"))


def test_a_policy_gives_the_models_own_logprobs(folder: str):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    tokens = torch.randint(0, 64, (3, 9))
    own = model(input_ids=tokens).logits.log_softmax(-1)
    module = PolicyModule(model)
    index = torch.tensor([3, 7, 9 + 2, 18 + 5])
    targets = tokens.reshape(-1)[index + 1]
    found = module(tokens, index, targets)
    torch.testing.assert_close(found, own.reshape(27, -1)[index, targets])
    prove_head(module, "cpu")


def test_padding_on_the_right_changes_nothing(folder: str):
    from transformers import AutoModelForCausalLM

    module = PolicyModule(AutoModelForCausalLM.from_pretrained(folder, dtype="float32"))
    tokens, index = torch.randint(1, 64, (1, 6)), torch.arange(5)
    alone = module(tokens, index, tokens[0, 1:])
    longer = torch.cat([tokens, torch.zeros(1, 9, dtype=torch.long)], dim=1)
    torch.testing.assert_close(module(longer, index, tokens[0, 1:]), alone)


def test_an_unknown_change_of_the_logits_is_found(folder: str):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    module = PolicyModule(model)
    plain_forward = model.forward

    def doubled(*args: Any, **kwargs: Any) -> Any:
        result = plain_forward(*args, **kwargs)
        result.logits = result.logits * 2
        return result

    model.forward = doubled
    with pytest.raises(TrainerError, match="does something to the logits"):
        prove_head(module, "cpu")


def test_a_tied_model_has_one_tensor_for_both_ends(tmp_path: Path):
    from transformers import AutoModelForCausalLM

    for tied in (True, False):
        model = AutoModelForCausalLM.from_pretrained(tiny_model(tmp_path / str(tied), tied=tied))
        names = {name for name, _ in PolicyModule(model).named_parameters()}
        assert ("model.lm_head.weight" in names) is not tied
