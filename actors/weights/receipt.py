"""Proof of weights: a hash a tensor, compared after every publish, and log-probs of a probe."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from selfloop.workflows.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["checksum", "prove_receipt", "receipt_of", "tensor_hash"]


def tensor_hash(tensor: Tensor) -> str:
    """Sixteen hex digits of a tensor's dtype, shape and bytes."""
    import torch

    flat = tensor.detach().cpu().contiguous()
    head = f"{flat.dtype}{tuple(flat.shape)}".encode()
    return hashlib.sha256(head + flat.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def checksum(receipt: Mapping[str, str]) -> str:
    """One hash of a whole set of weights, from its hashes per tensor."""
    text = "\n".join(f"{name} {receipt[name]}" for name in sorted(receipt))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def receipt_of(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """A hash per tensor."""
    return {name: tensor_hash(tensor) for name, tensor in tensors}


def prove_receipt(sent: Mapping[str, str], arrived: Mapping[str, str], version: int, replica: str) -> None:
    """Raise WeightsError unless exactly what was sent arrived."""
    missing = sorted(set(sent) - set(arrived))
    extra = sorted(set(arrived) - set(sent))
    wrong = sorted(name for name in set(sent) & set(arrived) if sent[name] != arrived[name])
    if missing or extra or wrong:
        found = [
            f"{len(names)} {what} (first: {names[0]})"
            for what, names in (
                ("not delivered", missing),
                ("not expected", extra),
                ("with other bytes", wrong),
            )
            if names
        ]
        raise WeightsError(
            f"{replica} did not get version {version} as it was published: tensors {', '.join(found)}. "
            "Samples from it would be off-policy, so the run stops here. The last published checkpoint is whole; "
            "resume the run, and if it happens again report the engine and its version."
        )


def prove_probe(
    trainer: Sequence[Sequence[float]],
    engine: Sequence[Sequence[float]],
    limit: float,
    model: str,
    replica: str,
) -> float:
    """The largest gap, nats, between two sides' log-probs of the same tokens; WeightsError if it is over the limit."""
    pairs = [
        pair for ours, theirs in zip(trainer, engine, strict=True) for pair in zip(ours, theirs, strict=True)
    ]
    gap = max((abs(a - b) for a, b in pairs), default=math.nan)
    if not gap <= limit:
        raise WeightsError(
            f"{replica} serves {model}, yet its log-probs on the probe batch differ from the trainer's by {gap:.3g} nats "
            f"(limit {limit:g}). The weights were sent but are not what it computes with: its samples would be off-policy, so "
            "the run stops here. Check that engine and trainer agree on architecture and precision; probe_limit sets the limit"
        )
    return gap
