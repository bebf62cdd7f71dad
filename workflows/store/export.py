"""What is taken out of a run: a policy as other tools expect it, in the precision of the model that the run began with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from selfloop.workflows.errors import InputError

__all__ = ["export_policy"]


def export_policy(policy: Path, initial: Path, out: Path) -> str:
    """Copy a policy's folder to `out`, each tensor in the dtype that it has in `initial`. Returns the dtype of most weights.

    A run's own `policy/` holds what the engines served: float32 on CPU, twice the size of a bfloat16 model. Raises
    InputError if `out` exists.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    if out.exists():
        raise InputError(
            f"{out} exists, and an export never writes over anything. Name a folder that does not exist"
        )
    kinds = tensor_kinds(initial)
    usual = max(set(kinds.values()), key=list(kinds.values()).count)
    making = out.with_name(f".{out.name}.tmp")  # renamed when it is whole
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    for file in sorted(policy.iterdir()):
        if file.suffix != ".safetensors":
            shutil.copyfile(file, making / file.name)
            continue
        with safe_open(file, framework="pt") as held:
            tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
        cast = {name: value.to(getattr(torch, kinds.get(name, usual))) for name, value in tensors.items()}
        save_file(cast, making / file.name, metadata={"format": "pt"})
    path = making / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    path.write_text(json.dumps(config | {"dtype": usual}, indent=2) + "\n", encoding="utf-8")
    making.rename(out)
    return usual


def tensor_kinds(folder: Path) -> dict[str, str]:
    """torch's name of each tensor's dtype, from the headers of a model folder."""
    from safetensors import safe_open

    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    found: dict[str, str] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as held:
            for name in held.keys():  # noqa: SIM118
                found[name] = names.get(held.get_slice(name).get_dtype(), "float32")
    return found
