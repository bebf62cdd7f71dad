"""LoRA adapters on a frozen base (peft's layers): what trains is small, what is published is merged.

The module holds the base and the adapters apart. Its weights under Hugging Face names are the merged ones, so engines,
receipts and references see a normal checkpoint; the state folder holds the adapters in peft's own format and names
the base that they stand on, with a checksum of its tensors.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from selfloop.actors.train.disk import read_state
from selfloop.actors.weights.folder import Folder
from selfloop.actors.weights.receipt import checksum, tensor_hash
from selfloop.workflows.data.seeds import derive_seed
from selfloop.workflows.errors import TrainerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from selfloop.workflows.config import Lora

__all__ = [
    "STEM",
    "Base",
    "Pair",
    "add_adapters",
    "base_of",
    "exported",
    "fresh",
    "merged",
    "plain",
    "state_base",
]

STEM = "adapter_model"
ADAPTER = "default"


@dataclass(frozen=True)
class Base:
    """What adapters stand on: a checkpoint folder, and a checksum of its tensors as they are stored."""

    folder: str
    checksum: str


@dataclass(frozen=True)
class Pair:
    """The adapter of one weight: names of A (rank, in) and B (out, rank); the weight gets B A scaling more."""

    a: str
    b: str
    scaling: float
    transposed: bool


def add_adapters(model: Any, lora: Lora, head: bool) -> dict[str, Pair]:
    """Put adapters on the model's linear layers and freeze everything else but a scalar head.

    Returns the adapter of each weight, by the weight's Hugging Face name. Raises TrainerError if no layer is meant.
    """
    from peft import inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    try:
        inject_adapter_in_model(peft_config(lora, head), model, ADAPTER)
    except ValueError as error:
        raise TrainerError(
            f"trainer.lora.targets={lora.targets!r} cannot be followed for {type(model).__name__}: {error}. Name linear "
            "layers such as q_proj, or leave it out for all of them"
        ) from error
    pairs: dict[str, Pair] = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            layer: Any = module
            if type(layer).__name__ != "Linear":
                raise TrainerError(
                    f"trainer.lora.targets={lora.targets!r} means {name}, which is no linear layer. Leave it out"
                )
            a, b = (f"{name}.lora_{side}.{ADAPTER}.weight" for side in "AB")
            pairs[f"{name}.weight"] = Pair(a, b, layer.scaling[ADAPTER], bool(layer.fan_in_fan_out))
    if head:
        model.score.weight.requires_grad_(True)
    return pairs


def peft_config(lora: Lora, head: bool, **more: Any) -> Any:
    """The setting as peft knows it."""
    from peft import LoraConfig, TaskType

    alpha: Any = lora.scale  # peft says int, and takes any number
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    kind = TaskType.SEQ_CLS if head else TaskType.CAUSAL_LM
    sizes = {"r": lora.rank, "lora_alpha": alpha, "lora_dropout": lora.dropout}
    return LoraConfig(target_modules=targets, task_type=kind, **sizes, **more)


def dropouts(model: nn.Module) -> list[nn.Module]:
    """The adapters' dropout layers."""
    named = model.named_modules()
    return [one for name, one in named if isinstance(one, nn.Dropout) and ".lora_dropout." in name]


def plain(name: str) -> str:
    """A parameter's Hugging Face name."""
    return name.replace(".base_layer.", ".")


def exported(name: str) -> str:
    """A trained parameter's name in peft's files."""
    return "base_model.model." + name.replace(f".{ADAPTER}.", ".")


def fresh(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """A new adapter's tensor: B is zero, A is drawn as peft draws it, by its own name and the train node's seed."""
    value = torch.zeros(shape, dtype=torch.float32)
    if ".lora_A." in name:
        generator = torch.Generator().manual_seed(derive_seed(seed, name) % 2**63)  # torch's seeds are signed
        nn.init.kaiming_uniform_(value, a=math.sqrt(5), generator=generator)
    return value


def merged(weight: Tensor, a: Tensor, b: Tensor, pair: Pair) -> Tensor:
    """The weight with its adapter in it, in the weight's precision (summed up in float32)."""
    delta = b.float() @ a.float()
    delta = (delta.T if pair.transposed else delta) * pair.scaling
    return (weight.float() + delta).to(weight.dtype)


def base_of(folder: str) -> Base:
    """This folder as a base."""
    source = Folder(folder)
    hashes = {name: tensor_hash(source.read(name)) for name in sorted(source.files)}
    return Base(os.path.abspath(folder), checksum(hashes))


def state_base(state: str | None) -> Base | None:
    """The base of the adapters that a state folder holds; None if it holds none."""
    about = read_state(state).get("base")
    return Base(**about) if about else None


def prove_base(state: str, wanted: Base, now: Callable[[str], Base]) -> None:
    """Raise TrainerError unless the base of a state's adapters is there and unchanged. now: `base_of`."""
    if not Path(wanted.folder).is_dir():
        raise TrainerError(
            f"the adapters in {state} stand on the model in {wanted.folder}, which is not there any more. Put it back: "
            "without it they cannot be trained further"
        )
    found = now(wanted.folder)
    if found.checksum != wanted.checksum:
        raise TrainerError(
            f"the adapters in {state} stand on the model in {wanted.folder}, whose tensors have changed since (checksum "
            f"{found.checksum} instead of {wanted.checksum}). Put the old model back, or start a new run from this one"
        )


def write_config(path: Path, lora: Lora, head: bool, base: Base, targets: Iterable[str]) -> None:
    """peft's adapter_config.json, so that `PeftModel.from_pretrained(base, path)` reads the folder."""
    modules = sorted({name.removesuffix(".weight").rsplit(".", 1)[-1] for name in targets})
    more: dict[str, Any] = {"modules_to_save": ["score"]} if head else {}
    more |= {"inference_mode": True, "base_model_name_or_path": base.folder}
    config = peft_config(lora.model_copy(update={"targets": tuple(modules)}), head, **more)
    about = {
        name: sorted(value) if isinstance(value, set) else value for name, value in config.to_dict().items()
    }
    (path / "adapter_config.json").write_text(json.dumps(about, indent=2, default=str), encoding="utf-8")
