"""Weights on their way from the trainer to the engines, in blocks of bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Bucket", "pack", "unpack"]

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
