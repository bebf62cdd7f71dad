"""What the trainer keeps on disk: Hugging Face checkpoints, training state, and step checkpoints.

Everything is written under a temporary name beside its place and renamed, so a folder that exists is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from selfloop.actors.weights.receipt import tensor_hash
from selfloop.workflows.data.files import read_json
from selfloop.workflows.store.disk import sync_folder

__all__ = ["commit_folder", "temporary", "write_checkpoint", "write_tensors"]

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 2**30  # as Hugging Face cuts checkpoints
SIDE_FILES = (".json", ".jinja", ".txt", ".model", ".tiktoken")


def half_written(final: str | Path) -> Path:
    """Where `temporary` makes its folder."""
    final = Path(final)
    return final.with_name(f".{final.name}.tmp")


def temporary(final: str | Path) -> Path:
    """An empty folder beside `final` under a temporary name."""
    path = half_written(final)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def commit_folder(path: Path, final: str | Path) -> None:
    """Give a finished temporary folder its name; a folder that had it is replaced."""
    final = Path(final)
    for file in path.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    if final.exists():
        old = final.with_name(f".{final.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
        path.rename(final)
        sync_folder(final.parent)
        shutil.rmtree(old, ignore_errors=True)
    else:
        path.rename(final)
        sync_folder(final.parent)


def write_tensors(
    path: Path,
    tensors: Iterator[tuple[str, Tensor]],
    sizes: Mapping[str, int],
    stem: str = "model",
    on_tensor: Callable[[str, Tensor], None] = lambda name, tensor: None,
) -> None:
    """Write tensors as they come, in files of at most 5 GB, with the usual index if there are several.

    sizes: bytes of each tensor, in the order they come.
    """
    plan: list[list[str]] = [[]]
    room = SHARD_BYTES
    for name, size in sizes.items():
        if size > room and plan[-1]:
            plan.append([])
            room = SHARD_BYTES
        plan[-1].append(name)
        room -= size
    files: dict[str, str] = {}
    for number, names in enumerate(plan, 1):
        shard: dict[str, Tensor] = {}
        for wanted in names:
            name, tensor = next(tensors)
            assert name == wanted, (name, wanted)
            on_tensor(name, tensor)
            shard[name] = tensor.contiguous()
        file = (
            f"{stem}.safetensors" if len(plan) == 1 else f"{stem}-{number:05d}-of-{len(plan):05d}.safetensors"
        )
        save_file(shard, path / file, metadata={"format": "pt"})
        files |= dict.fromkeys(names, file)
    if len(plan) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": files}
        (path / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def write_checkpoint(
    start: str,
    path: Path,
    tensors: Iterator[tuple[str, Tensor]],
    sizes: Mapping[str, int],
    settings: Mapping[str, Any],
) -> dict[str, str]:
    """A normal Hugging Face folder: the start's tokenizer, chat template and config with these settings, and these
    tensors. Returns the receipt, a hash a tensor."""
    receipt: dict[str, str] = {}

    def note(name: str, tensor: Tensor) -> None:
        receipt[name] = tensor_hash(tensor)

    write_tensors(path, tensors, sizes, on_tensor=note)
    for file in Path(start).iterdir():
        if file.suffix in SIDE_FILES and file.name != INDEX and file.is_file():
            shutil.copyfile(file, path / file.name)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config |= settings
    if "torch_dtype" in config:
        config["torch_dtype"] = settings["dtype"]
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return receipt


def write_json(path: Path, value: Any) -> None:
    """Settings beside tensors."""
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def pack_state(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """An objective's running state as JSON (floats in full precision)."""
    return {name: [str(value.dtype).removeprefix("torch."), value.tolist()] for name, value in state.items()}


def unpack_state(packed: Mapping[str, Any]) -> dict[str, Tensor]:
    """The inverse of `pack_state`."""
    return {name: torch.tensor(value, dtype=getattr(torch, kind)) for name, (kind, value) in packed.items()}


def read_state(folder: str | None) -> dict[str, Any]:
    """`state.json` of a state folder; empty if there is none."""
    return read_json(Path(folder) / "state.json") if folder else {}


def save_scores(folder: str | Path, values: Mapping[tuple[str, str], np.ndarray]) -> None:
    """Keep reference and old log-probs, so that a replay does not load the reference again."""
    path = temporary(Path(folder) / "scores")
    named: dict[str, Any] = {"/".join(name): value for name, value in values.items()}
    np.savez(path / "scores.npz", **named)
    commit_folder(path, Path(folder) / "scores")


def load_scores(folder: str) -> dict[tuple[str, str], np.ndarray]:
    """What `save_scores` kept."""
    with np.load(Path(folder) / "scores" / "scores.npz") as file:
        return {(name.split("/")[0], name.split("/")[1]): file[name] for name in file.files}


def last_step(folder: str, key: str) -> tuple[str, dict[str, Any]] | None:
    """The last whole step checkpoint of this work, and what its state.json says."""
    for path in sorted(Path(folder).glob("step-*"), reverse=True):
        about = read_state(str(path))
        if about.get("key") == key:
            return str(path), about
    return None


def drop_steps(keep: Path) -> None:
    """Delete every step checkpoint beside this one."""
    for path in keep.parent.glob("step-*"):
        if path != keep:
            shutil.rmtree(path, ignore_errors=True)
