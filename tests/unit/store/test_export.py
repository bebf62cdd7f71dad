"""A policy that leaves its run has the precision that the run's model came with, and everything beside its weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from selfloop.workflows.errors import InputError
from selfloop.workflows.pocket.source import POCKET_MODEL
from selfloop.workflows.store.export import export_policy, tensor_kinds


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """The pocket model as a run keeps it: in float32."""
    folder = Path(shutil.copytree(POCKET_MODEL, tmp_path / "policy"))
    tensors = {name: value.float() + 1e-3 for name, value in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32", "torch_dtype": "float32"}))
    return folder


def test_an_export_has_the_dtype_of_the_input(served: Path, tmp_path: Path) -> None:
    assert set(tensor_kinds(served).values()) == {"float32"}
    assert export_policy(served, POCKET_MODEL, tmp_path / "out") == "bfloat16"
    assert tensor_kinds(tmp_path / "out") == tensor_kinds(POCKET_MODEL)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and "torch_dtype" not in config
    assert {file.name for file in (tmp_path / "out").iterdir()} == {file.name for file in served.iterdir()}
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as made:
        before = load_file(served / "model.safetensors")
        for name in made.keys():  # noqa: SIM118
            assert made.get_tensor(name).equal(before[name].bfloat16())
    assert set(tensor_kinds(served).values()) == {"float32"}  # the run's own stays


def test_a_tensor_that_the_input_kept_in_float32_stays_so(served: Path, tmp_path: Path) -> None:
    initial = Path(shutil.copytree(POCKET_MODEL, tmp_path / "initial"))
    tensors = load_file(initial / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, initial / "model.safetensors")
    export_policy(served, initial, tmp_path / "out")
    assert tensor_kinds(tmp_path / "out")["model.norm.weight"] == "float32"


def test_nothing_is_written_over(served: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="never writes over"):
        export_policy(served, POCKET_MODEL, tmp_path / "out")
