"""How a version travels from the trainer to the engines, and how its arrival is proven.

The trainer packs its weights into buckets of the object store (shared memory on one machine). Each engine loads them
and returns a receipt, a hash per tensor of what arrived; `prove` compares it with what was sent.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from selfloop.workflows.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Bucket",
    "checksum",
    "folder_tensors",
    "pack",
    "prove_receipt",
    "receipt_of",
    "tensor_hash",
    "unpack",
]

BUCKET_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Bucket:
    """Many tensors in one block of bytes: one message of the object store, read there without a copy."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    data: np.ndarray  # (bytes,), uint8


def pack(tensors: Iterable[tuple[str, Tensor]], limit: int = BUCKET_BYTES) -> Iterator[Bucket]:
    """Buckets of at most `limit` bytes (a larger tensor has one of its own), in the order of the tensors."""
    held: list[tuple[str, Tensor]] = []
    size = 0
    for name, tensor in tensors:
        if held and size + tensor.nbytes > limit:
            yield bucket_of(held)
            held, size = [], 0
        held.append((name, tensor))
        size += tensor.nbytes
    if held:
        yield bucket_of(held)


def bucket_of(tensors: Sequence[tuple[str, Tensor]]) -> Bucket:
    import torch

    flat = [tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for _, tensor in tensors]
    return Bucket(
        tuple(name for name, _ in tensors),
        tuple(tuple(tensor.shape) for _, tensor in tensors),
        tuple(str(tensor.dtype).removeprefix("torch.") for _, tensor in tensors),
        torch.cat(flat).numpy(),
    )


def unpack(buckets: Iterable[Bucket]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of buckets. They share the buckets' memory, which may be read-only: do not write to them."""
    import torch

    for bucket in buckets:
        flat = torch.from_numpy(bucket.data if bucket.data.flags.writeable else bucket.data.copy())
        offset = 0
        for name, shape, dtype in zip(bucket.names, bucket.shapes, bucket.dtypes, strict=True):
            kind = getattr(torch, dtype)
            size = math.prod(shape) * kind.itemsize
            piece = flat[offset : offset + size]
            offset += size
            aligned = piece if piece.data_ptr() % kind.itemsize == 0 else piece.clone()
            yield name, aligned.view(kind).reshape(shape)


def folder_tensors(folder: str, dtype: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a Hugging Face checkpoint folder (safetensors only), in serving precision."""
    import torch
    from safetensors import safe_open

    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise WeightsError(f"{folder} has no safetensors file to load weights from")
    tied = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")).get(
        "tie_word_embeddings", False
    )
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                if not (tied and name == "lm_head.weight"):
                    yield name, file.get_tensor(name).to(getattr(torch, dtype))


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
