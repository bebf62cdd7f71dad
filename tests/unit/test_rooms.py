"""The rule of the rooms (pyproject.toml, `lint-imports`): it covers every room, and finds what breaks it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RULE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]


def test_every_room_has_its_layer() -> None:
    (layers,) = (contract["layers"] for contract in RULE["contracts"] if contract["type"] == "layers")
    there = {
        f"selfloop.{folder}.{path.stem}"
        for folder in ("actors", "workflows")
        for path in (ROOT / folder).iterdir()
        if path.name not in ("__init__.py", "__pycache__")
    }
    assert {room for line in layers for room in line.split(" | ")} == there | {"selfloop.names"}


def test_at_most_one_import_is_excused() -> None:
    assert (
        len({excuse for contract in RULE["contracts"] for excuse in contract.get("ignore_imports", [])}) <= 1
    )


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("workflows/data/seeds.py", "", None),
        ("workflows/data/seeds.py", "from selfloop.workflows.errors import InputError", None),
        ("workflows/data/seeds.py", "import selfloop.workflows.flow.graph", "A room knows"),
        (
            "workflows/report/show.py",
            "def late():\n    import selfloop.workflows.executor.pools",
            "A room knows",
        ),
        ("workflows/sources/files.py", "from selfloop.workflows.recipes import RECIPES", "A room knows"),
        ("workflows/judges/base.py", "from selfloop.workflows.judges import verifiers", "No circles"),
        ("workflows/rules/keep.py", "from selfloop import DPO", "A room knows"),
        ("workflows/run/loop.py", "import ray", "Ray is known"),
        ("actors/train/trainer.py", "def late():\n    from ray import get", "Ray is known"),
        ("workflows/checks/model.py", "import vllm.config", "vLLM is known"),
        ("actors/train/rank.py", "import deepspeed", "DeepSpeed is known"),
        (
            "workflows/sources/__init__.py",
            "from selfloop.workflows.pocket.make import train",
            "Nothing needs",
        ),
    ],
)
def test_the_rule_finds_it(tmp_path: Path, module: str, line: str, broken: str | None) -> None:
    for folder, name in {"door": "", "actors": "actors", "workflows": "workflows"}.items():
        shutil.copytree(
            ROOT / folder,
            tmp_path / "selfloop" / name,
            ignore=shutil.ignore_patterns("base", "__pycache__"),
        )
    planted = tmp_path / "selfloop" / module
    planted.write_text(f"{planted.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache", "--config", str(ROOT / "pyproject.toml")],
        cwd=tmp_path, env={"PYTHONPATH": str(tmp_path), "PATH": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == (broken is not None), done.stdout + done.stderr
    told = [text for text in done.stdout.splitlines() if "BROKEN" in text]
    assert any(text.startswith(broken) for text in told) if broken else not told
