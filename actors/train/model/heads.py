"""Scalar heads: a reward at the end of a sequence, or a value before each of its tokens.

The model is transformers' own `…ForSequenceClassification` with one label, so a trained reward model or critic is a
normal checkpoint. A new head is zero: it says 0 of everything until it is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from selfloop.actors.train.model.attention import states, tolerance
from selfloop.actors.train.model.logprobs import Extra
from selfloop.actors.train.rows.layout import Layout
from selfloop.workflows.errors import TrainerError

if TYPE_CHECKING:
    from selfloop.actors.train.rows.micro import Micro

__all__ = ["HEAD", "Pooled", "ScalarModule", "head_settings", "prove_scalars"]

HEAD = "score.weight"


def head_settings(model: Any) -> dict[str, Any]:
    """What the config.json of such a checkpoint says beside the start's."""
    return {"architectures": [type(model).__name__], "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}


class ScalarModule(nn.Module):
    """A model whose forward gives one number at chosen places of the flattened input, computed in float32."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        head: Any = getattr(model, "score", None)
        found: object = head
        if not isinstance(found, nn.Linear) or [name for name, _ in found.named_parameters()] != ["weight"]:
            raise TrainerError(
                f"{type(model).__name__} has no linear layer `score` without bias as its head, so Selfloop cannot train "
                "it as a reward model or critic. Use another architecture for this role (Qwen2, Llama, Mistral do)"
            )

        def forward(hidden: Tensor) -> Tensor:
            return nn.functional.linear(hidden.float(), head.weight.float())

        head.forward = forward

    def forward(
        self,
        input_ids: Tensor,
        index: Tensor,
        targets: Tensor,
        layout: Layout | None = None,
        extra: Extra | None = None,
    ) -> Tensor:
        """(places,) the head's number at each place `index`; extra: makes what comes behind it from the hidden states."""
        hidden = states(self.model, input_ids, layout).index_select(0, index)
        scores = self.model.score(hidden).squeeze(-1)
        return scores if extra is None else torch.cat([scores, extra(hidden, targets, self.model.score)])


@dataclass(frozen=True)
class Pooled:
    """The hidden state under the reward, as a column without gradient: (rows, width) of each of these views."""

    views: tuple[str, ...]
    flat = True

    def columns(self, micro: Micro) -> Extra:
        """What the forward calls with its hidden states."""
        return lambda hidden, targets, score: hidden.detach().float().reshape(-1)

    def split(self, micro: Micro, outputs: Tensor) -> dict[str, Tensor]:
        """`VIEW.hidden` out of what the forward gave."""
        count = len(micro.ends)
        states = outputs[count:].reshape(count, -1)
        return {f"{view}.hidden": states[micro.sequences[view]] for view in self.views}


def prove_scalars(module: ScalarModule, device: str | torch.device) -> None:
    """Raise TrainerError unless our reward is that of the model's own forward."""
    config = module.model.config.get_text_config()
    tokens = (torch.arange(8, device=device) * 31 % min(config.vocab_size, 97))[None] + 1
    tokens = torch.where(tokens == (config.pad_token_id or 0), tokens + 1, tokens) % config.vocab_size
    with torch.no_grad():
        wanted = module.model(input_ids=tokens, use_cache=False).logits.float().reshape(-1)
        found = module(tokens, torch.tensor([7], device=device), tokens[0, :1])
    gap = float((wanted - found).abs().max())
    if not gap <= tolerance(module) * max(1.0, float(wanted.abs().max())):
        raise TrainerError(
            f"{type(module.model).__name__}: our reward differs from that of its own forward by {gap:.3g}. It does "
            "something to the hidden state that Selfloop does not know. Use another architecture for this role"
        )
