"""Log-probs of the trained tokens alone, a tile of logits at a time, computed again in the backward pass.

The head is not run where nothing is trained (prompts, padding). The logits of all tokens for a slice of the vocabulary
make a tile that stays in the processor's cache: a batch of (8, 1024) tokens with a vocabulary of 150,000 would take 4.9 GB
in float32, several times over, and is never there. A slice's part of the head's gradient is written once, whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from selfloop.actors.train.model.attention import states, tolerance
from selfloop.actors.train.rows.layout import Layout
from selfloop.workflows.errors import TrainerError

__all__ = ["KEPT_BYTES", "Extra", "PolicyModule", "head_logprobs"]

TILE_BYTES = {"cpu": 8 * 2**20, "cuda": 128 * 2**20}
"""Size of one tile of float32 logits."""

Extra = Callable[[Tensor, Tensor, Callable[[Tensor], Tensor]], Tensor]

KEPT_BYTES = 128 * 2**20
"""Tiles of this size together are kept for the backward pass, so that small vocabularies are not computed twice."""


class _HeadLogProbs(torch.autograd.Function):
    """log_softmax(cap * tanh(scale * (hidden @ weight.T + bias) / cap))[target], in float32."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        cap: float | None,
        width: int,
        room: int,
    ) -> Tensor:
        tiles = _Tiles(hidden, weight, bias, targets, scale, cap, width)
        top = torch.full((len(hidden),), -torch.inf, device=hidden.device)
        total, picked = torch.zeros_like(top), torch.zeros_like(top)
        kept: list[tuple[Tensor, Tensor]] = []
        for part, rows, columns in tiles:
            size = 4 * len(hidden) * (part.stop - part.start)
            logits = tiles.logits(part, keep=size <= room)
            picked[rows] = logits[rows, columns]
            higher = torch.maximum(top, logits.amax(-1))
            exponentials = logits.sub_(higher[:, None]).exp_()
            total.mul_((top - higher).exp_()).add_(exponentials.sum(-1))
            top = higher
            if size <= room:
                kept.append((exponentials, higher))
                room -= size
            else:
                room = 0
        norms = top + total.log()
        ctx.save_for_backward(hidden, weight, bias, targets, norms)
        ctx.settings, ctx.kept = (scale, cap, width), kept
        return picked - norms

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        hidden, weight, bias, targets, norms = ctx.saved_tensors
        scale, cap, width = ctx.settings
        tiles = _Tiles(hidden, weight, bias, targets, scale, cap, width)
        to_hidden, to_weight, to_bias = ctx.needs_input_grad[:3]
        hidden_grad = torch.zeros_like(hidden, dtype=torch.float32) if to_hidden else None
        weight_grad = torch.empty_like(weight) if to_weight else None
        bias_grad = torch.empty_like(bias) if to_bias else None
        upstream = grads[0] * scale
        for number, (part, rows, columns) in enumerate(tiles):
            slope = None  # the gradient of log p_t by the logits is onehot(t) - p
            if number < len(ctx.kept):
                exponentials, top = ctx.kept[number]
                grad = exponentials.mul_((-upstream * (top - norms).exp())[:, None])
            else:
                logits = tiles.logits(part)
                slope = None if cap is None else 1 - (logits / cap).square()
                grad = logits.sub_(norms[:, None]).exp_().mul_(-upstream[:, None])
            grad[rows, columns] += upstream[rows]
            grad = (grad if slope is None else grad.mul_(slope)).to(weight.dtype)
            if hidden_grad is not None:
                _add_product(hidden_grad, grad, weight[part])
            if weight_grad is not None:
                torch.mm(grad.t(), hidden, out=weight_grad[part])
            if bias_grad is not None:
                bias_grad[part] = grad.sum(0)
        ctx.kept = []
        to = None if hidden_grad is None else hidden_grad.to(hidden.dtype)
        return to, weight_grad, bias_grad, None, None, None, None, None


class _Tiles:
    """The logits of all tokens, a slice of the vocabulary at a time; iterating gives each slice, and the rows and the
    columns of the targets that lie in it."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        cap: float | None,
        width: int,
    ):
        self.hidden, self.weight, self.bias, self.targets = hidden, weight, bias, targets
        self.scale, self.cap, self.width = scale, cap, width
        self.scratch: Tensor | None = (
            None  # one memory for all tiles: fresh memory costs more than computing in it
        )

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        starts = torch.arange(0, len(self.weight), self.width)
        ordered, order = self.targets.sort()
        bounds = [*torch.searchsorted(ordered, starts.to(ordered.device)).tolist(), len(ordered)]
        for number, start in enumerate(starts.tolist()):
            rows = order[bounds[number] : bounds[number + 1]]
            yield slice(start, min(start + self.width, len(self.weight))), rows, self.targets[rows] - start

    def logits(self, part: slice, *, keep: bool = False) -> Tensor:
        """(tokens, part) float32 logits; the next call writes over them unless they are kept."""
        tokens, width = len(self.hidden), part.stop - part.start
        if keep:
            logits = self.hidden.new_empty((tokens, width), dtype=torch.float32)
        else:
            if self.scratch is None:
                self.scratch = self.hidden.new_empty(tokens * self.width, dtype=torch.float32)
            logits = self.scratch[: tokens * width].view(tokens, width)
        weight = self.weight[part].t()
        if weight.dtype == torch.float32:
            torch.mm(self.hidden, weight, out=logits)
        else:
            logits.copy_(self.hidden @ weight)
        if self.bias is not None:
            logits.add_(self.bias[part])
        if self.scale != 1:
            logits.mul_(self.scale)
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)


def _add_product(total: Tensor, grad: Tensor, weight: Tensor) -> None:
    """total += grad @ weight; sums of low-precision products are kept in float32."""
    if grad.dtype == torch.float32:
        total.addmm_(grad, weight)
    else:
        total += grad @ weight


def head_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scale: float = 1.0,
    cap: float | None = None,
    tile_bytes: int | None = None,
) -> Tensor:
    """Log-probs (tokens,), float32 nats, of targets (tokens,) from the hidden states (tokens, width) that predict
    them. scale and cap: what some architectures do to their logits."""
    size = tile_bytes or TILE_BYTES.get(hidden.device.type, TILE_BYTES["cuda"])
    width = min(max(1, size // (4 * max(len(hidden), 1))), len(weight))
    room = KEPT_BYTES if cap is None and torch.is_grad_enabled() else 0
    result = _HeadLogProbs.apply(hidden, weight, bias, targets, scale, cap, width, room)
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

        def forward(hidden: Tensor, targets: Tensor | None = None, extra: Extra | None = None) -> Tensor:
            if targets is None:
                return plain(hidden)
            found = head_logprobs(hidden, head.weight, getattr(head, "bias", None), targets, scale, cap)
            if extra is None:
                return found
            return torch.cat([found, extra(hidden, targets, lambda part: scaled(plain(part), scale, cap))])

        head.forward = forward

    def forward(
        self,
        input_ids: Tensor,
        index: Tensor,
        targets: Tensor,
        layout: Layout | None = None,
        extra: Extra | None = None,
    ) -> Tensor:
        """(trained,) log-probs of `targets`, each predicted at its place `index` of the flattened input. layout: if
        sequences lie end to end. extra: makes what comes behind the log-probs, from the hidden states,
        the targets and a function that gives logits."""
        hidden = states(self.model, input_ids, layout).index_select(0, index)
        return self.model.get_output_embeddings()(hidden, targets, extra)


def logit_scale(config: Any) -> tuple[float, float | None]:
    """What an architecture does to its logits: a factor, and a soft cap."""
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    return scale / float(getattr(config, "logits_scaling", None) or 1.0), getattr(
        config, "final_logit_softcapping", None
    )


def scaled(logits: Tensor, scale: float, cap: float | None) -> Tensor:
    """A head's product as float32 logits."""
    logits = logits.float() * scale if scale != 1 else logits.float()
    return logits if cap is None else (logits / cap).tanh() * cap


def prove_head(module: PolicyModule, device: str | torch.device) -> None:
    """Raise TrainerError unless our log-probs are those of the model's own forward, on a few tokens."""
    size = min(module.model.config.get_text_config().vocab_size, 97)
    tokens, index = (torch.arange(8, device=device) * 31 % size)[None], torch.arange(7, device=device)
    with torch.no_grad():
        own = module.model(input_ids=tokens, use_cache=False).logits.float().log_softmax(-1)
        wanted = own[0, :-1].gather(-1, tokens[0, 1:, None]).squeeze(-1)
        found = module(tokens, index, tokens[0, 1:])
    gap = float((wanted - found).abs().max())
    limit = tolerance(module) * max(1.0, float(wanted.abs().max()))
    if not gap <= limit:
        raise TrainerError(
            f"{type(module.model).__name__}: our log-probs differ from those of its own forward by {gap:.3g} nats "
            f"(limit {limit}). Its head does something to the logits that Selfloop does not know, so training would be "
            "wrong. Use another architecture, or report this one"
        )
