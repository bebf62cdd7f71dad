"""Tensors of checkpoint folders (safetensors only)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from selfloop.workflows.errors import TrainerError, WeightsError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Fingerprint", "Folder", "fingerprint", "folder_tensors"]

Fingerprint = tuple[tuple[str, int, int, int], ...]
"""Of each tensor file of a folder: its real path, size, time of change, inode."""


def folder_tensors(folder: str, dtype: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a Hugging Face checkpoint folder (safetensors only), in serving precision."""
    import torch

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


class Folder:
    """Tensors of the safetensors files of a folder, by name."""

    def __init__(self, path: str | Path, prefix: str = ""):
        self.path = Path(path)
        self.files: dict[str, Any] = {}
        for file in sorted(self.path.glob(f"{prefix}*.safetensors")):
            opened = safe_open(file, framework="pt")
            self.files |= dict.fromkeys(opened.keys(), opened)
        if not self.files:
            raise TrainerError(
                f"{self.path} holds no {prefix}*.safetensors file, so there are no weights to start from. Selfloop "
                "reads safetensors only; convert the checkpoint with transformers' save_pretrained"
            )

    def read(self, name: str) -> Tensor:
        """One tensor. Raises TrainerError if the checkpoint lacks it."""
        if name not in self.files:
            raise TrainerError(
                f"{self.path} lacks the tensor {name} (it has {len(self.files)}, such as {next(iter(self.files))}). "
                "The checkpoint belongs to another architecture, or to one whose tensors are renamed while loading"
            )
        return self.files[name].get_tensor(name)


def fingerprint(*paths: str | None) -> Fingerprint:
    """Changes when a tensor file of these folders does."""
    found: list[tuple[str, int, int, int]] = []
    for path in paths:
        for file in sorted(Path(path).glob("*.safetensors")) if path else []:
            about = file.stat()
            found.append((os.path.realpath(file), about.st_size, about.st_mtime_ns, about.st_ino))
    return tuple(found)
