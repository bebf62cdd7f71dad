"""Log-probs of the trained tokens alone, a chunk of logits at a time, recomputed in the backward pass.

The head is not run where nothing is trained (prompts, padding), and no more than `CHUNK_BYTES` of logits exist at
once: a batch of (8, 1024) tokens with a vocabulary of 150,000 would take 4.9 GB in float32, several times over.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from selfloop.workflows.errors import TrainerError

__all__ = ["CHUNK_BYTES", "PolicyModule", "head_logprobs"]

CHUNK_BYTES = 256 * 2**20
"""Size of one chunk of float32 logits."""


class _HeadLogProbs(torch.autograd.Function):
    """log_softmax(cap * tanh(scale * (hidden @ weight.T + bias) / cap))[target], in float32."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: float,
                cap: float | None, rows: int) -> Tensor:  # fmt: skip
        norms = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        logprobs = torch.empty_like(norms)
        kept = None
        for part in _parts(len(hidden), rows):
            logits = _logits(hidden[part], weight, bias, scale, cap)
            picked = logits.gather(-1, targets[part, None]).squeeze(-1)
            top = logits.amax(-1, keepdim=True)
            logits.sub_(top).exp_()
            total = logits.sum(-1, keepdim=True)
            norms[part] = (top + total.log()).squeeze(-1)
            logprobs[part] = picked - norms[part]
            if len(hidden) <= rows and cap is None and any(ctx.needs_input_grad[:3]):
                kept = logits.div_(total)
        ctx.save_for_backward(hidden, weight, bias, targets, norms, kept)
        ctx.settings = scale, cap, rows
        return logprobs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        hidden, weight, bias, targets, norms, kept = ctx.saved_tensors
        scale, cap, rows = ctx.settings
        to_hidden, to_weight, to_bias = ctx.needs_input_grad[:3]
        hidden_grad = torch.empty_like(hidden) if to_hidden else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if to_weight else None
        bias_grad = torch.zeros_like(bias, dtype=torch.float32) if to_bias else None
        for part in _parts(len(hidden), rows):
            grad, slope = kept, None
            if grad is None:
                logits = _logits(hidden[part], weight, bias, scale, cap)
                slope = None if cap is None else 1 - (logits / cap).square()
                grad = logits.sub_(norms[part, None]).exp_()
            grad.mul_(-grads[0][part, None])  # the gradient of log p_t is onehot(t) - p
            grad.scatter_add_(-1, targets[part, None], grads[0][part, None])
            if slope is not None:
                grad.mul_(slope)
            if scale != 1:
                grad.mul_(scale)
            grad = grad.to(weight.dtype)
            if hidden_grad is not None:
                torch.mm(grad, weight, out=hidden_grad[part])
            if weight_grad is not None:
                _add_product(weight_grad, grad, hidden[part])
            if bias_grad is not None:
                bias_grad += grad.sum(0)
        to = [None if grad is None else grad.to(weight.dtype) for grad in (weight_grad, bias_grad)]
        return hidden_grad, *to, None, None, None, None


def _parts(length: int, rows: int) -> list[slice]:
    return [slice(start, start + rows) for start in range(0, length, rows)]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, cap: float | None) -> Tensor:
    logits = nn.functional.linear(hidden, weight, bias).float()
    if scale != 1:
        logits = logits.mul_(scale)
    return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def _add_product(total: Tensor, grad: Tensor, hidden: Tensor) -> None:
    """total += grad.T @ hidden; sums of low-precision products are kept in float32."""
    if grad.dtype == torch.float32:
        total.addmm_(grad.t(), hidden)
    else:
        total += grad.t() @ hidden


def head_logprobs(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: float = 1.0,
                  cap: float | None = None, chunk_bytes: int = CHUNK_BYTES) -> Tensor:  # fmt: skip
    """Log-probs (tokens,), float32 nats, of targets (tokens,) from the hidden states (tokens, width) that predict
    them. scale and cap: what some architectures do to their logits."""
    rows = max(1, chunk_bytes // (4 * weight.shape[0]))
    result = _HeadLogProbs.apply(hidden, weight, bias, targets, scale, cap, rows)
    assert isinstance(result, Tensor)
    return result


class PolicyModule(nn.Module):
    """A causal language model whose forward gives log-probs of chosen tokens.

    The chunks run inside one call of the model's own head, so that ZeRO-3's hooks gather the head once a forward and
    once a backward, equally often on every rank.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        head = model.get_output_embeddings()
        if head is None or not hasattr(head, "weight"):
            raise TrainerError(
                f"{type(model).__name__} has no output embedding that maps hidden states to the vocabulary, so it has "
                "no log-probs to train. Give `model` the folder of a causal language model"
            )
        scale, cap = logit_scale(model.config)
        plain = head.forward

        def forward(hidden: Tensor, targets: Tensor | None = None) -> Tensor:
            if targets is None:
                return plain(hidden)
            return head_logprobs(hidden, head.weight, getattr(head, "bias", None), targets, scale, cap)

        head.forward = forward

    def forward(
        self, input_ids: Tensor, index: Tensor, targets: Tensor, positions: Tensor | None = None
    ) -> Tensor:
        """(trained,) log-probs of `targets`, each predicted at its place `index` of the flattened input. positions: of the
        tokens, if lines hold several sequences; these do not see each other."""
        states = self.model.base_model(
            input_ids=input_ids, position_ids=positions, use_cache=False
        ).last_hidden_state
        hidden = states.reshape(-1, states.shape[-1]).index_select(0, index)
        return self.model.get_output_embeddings()(hidden, targets)


def logit_scale(config: Any) -> tuple[float, float | None]:
    """What an architecture does to its logits: a factor, and a soft cap."""
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    return scale / float(getattr(config, "logits_scaling", None) or 1.0), getattr(
        config, "final_logit_softcapping", None
    )


def prove_head(module: PolicyModule, device: str | torch.device) -> bool:
    """Raise TrainerError unless our log-probs are those of the model's own forward, on a few tokens. Returns whether
    sequences that share a line keep apart, which not every architecture's attention sees to."""
    size = min(module.model.config.get_text_config().vocab_size, 97)
    tokens, index = (torch.arange(8, device=device) * 31 % size)[None], torch.arange(7, device=device)
    positions = torch.arange(8, device=device).repeat(2)[None]
    with torch.no_grad():
        own = module.model(input_ids=tokens, use_cache=False).logits.float().log_softmax(-1)
        wanted = own[0, :-1].gather(-1, tokens[0, 1:, None]).squeeze(-1)
        found = module(tokens, index, tokens[0, 1:])
        shared = [
            module(torch.cat([before, tokens], 1), index + 8, tokens[0, 1:], positions)
            for before in (tokens.flip(1), tokens)
        ]
    share = 1e-3 if next(module.parameters()).dtype == torch.float32 else 0.1
    limit = share * max(1.0, float(wanted.abs().max()))
    gap = float((wanted - found).abs().max())
    if not gap <= limit:
        raise TrainerError(
            f"{type(module.model).__name__}: our log-probs differ from those of its own forward by {gap:.3g} nats "
            f"(limit {limit}). Its head does something to the logits that Selfloop does not know, so training would be "
            "wrong. Use another architecture, or report this one"
        )
    return torch.equal(*shared) and bool((shared[0] - found).abs().max() <= limit)
