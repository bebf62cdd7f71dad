"""The architecture that a trainer rank trains: a language model or one with a scalar head, with adapters or without."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from selfloop.actors.train.model.adapters import Pair, add_adapters, dropouts
from selfloop.actors.train.model.attention import lies_flat, use
from selfloop.actors.train.model.dropout import dropout_settings, dropout_sites, no_dropout, set_dropout
from selfloop.actors.train.model.heads import ScalarModule, prove_scalars
from selfloop.actors.train.model.logprobs import PolicyModule, prove_head
from selfloop.workflows.errors import TrainerError

if TYPE_CHECKING:
    from selfloop.actors.train.spec import TrainerSpec

__all__ = ["Built", "build", "prove"]


@dataclass(frozen=True)
class Built:
    """module: what gives log-probs or scalars. pairs: the adapter of each adapted weight. dropouts: the modules that drop
    something while they are in training mode, the architecture's and the adapters'."""

    module: PolicyModule | ScalarModule
    pairs: dict[str, Pair] = field(default_factory=dict)
    dropouts: list[nn.Module] = field(default_factory=list)


def build(spec: TrainerSpec, head: bool) -> Built:
    """The architecture, with `trainer.dropout` for all its own. Its weights are loaded later, in place."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.initialization import no_init_weights

    config: Any = AutoConfig.from_pretrained(spec.model)
    set_dropout(config, spec.dropout)
    kind: Any = AutoModelForCausalLM
    if head:
        kind, config.num_labels = AutoModelForSequenceClassification, 1
    with no_init_weights():
        try:
            model = kind.from_config(config, dtype=getattr(torch, spec.dtype))
        except ValueError as error:
            raise TrainerError(
                f"transformers has no {'scalar head' if head else 'causal language model'} for the architecture of "
                f"{spec.model} ({config.model_type}). Use another architecture for this role"
            ) from error
    model.tie_weights()
    if spec.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    sites = dropout_sites(model, spec.dropout)
    if spec.dropout and not sites:
        raise TrainerError(no_dropout(spec.dropout, type(model).__name__, dropout_settings(config)))
    module = ScalarModule(model) if head else PolicyModule(model)
    pairs = add_adapters(model, spec.lora, head) if spec.lora else {}
    module.to(spec.device).train()
    use(model)
    return Built(module, pairs, [*sites, *dropouts(model)])


def prove(module: PolicyModule | ScalarModule, device: torch.device) -> bool:
    """Raise TrainerError unless our forward agrees with the model's own. Returns whether sequences may lie end to end."""
    if isinstance(module, ScalarModule):
        prove_scalars(module, device)
    else:
        prove_head(module, device)
    return lies_flat(module.model, device)
