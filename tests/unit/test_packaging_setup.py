"""What set-up says on a machine that lacks something. Nothing is installed here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = (
    "bash",
    "dirname",
    "cat",
    "find",
    "sort",
    "sha256sum",
    "cut",
    "mkdir",
    "df",
    "awk",
    "grep",
    "tail",
    "tee",
    "env",
)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder of the few programs that this machine has; add links and scripts to it."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"{name} is not here")
        (programs / name).symlink_to(found)
    return programs


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def setup(machine: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": str(machine),
        "VENV": str(machine.parent / "venv"),
        "HOME": os.environ.get("HOME", "/"),
        **variables,
    }
    return subprocess.run(
        [str(machine / "bash"), str(ROOT / "tools" / "setup.sh"), *arguments],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_unknown_stack(machine: Path) -> None:
    done = setup(machine, "tpu")
    assert (done.returncode, done.stderr) == (1, "Set-up failed: STACK is 'tpu', and must be cpu or gpu.\n")


@pytest.mark.parametrize("version", ["Python 3.9.2", "Python 3.14.0"])
def test_wrong_python(machine: Path, version: str) -> None:
    script(machine / "python3", f'[ "$1" = --version ] && echo "{version}" && exit 0\nexit 1')
    done = setup(machine, "cpu")
    assert done.returncode == 1
    assert done.stderr == (
        f"Set-up failed: Python 3.11, 3.12 or 3.13 is needed, and this machine has {version}. Install one (sudo apt-get "
        "install python3 python3-pip on a recent Debian or Ubuntu), or name one: make setup PYTHON=/path/to/python3.12\n"
    )


def test_no_compiler(machine: Path) -> None:
    (machine / "python3").symlink_to(sys.executable)
    done = setup(machine, "cpu")
    assert done.returncode == 1
    assert done.stderr == (
        "Set-up failed: no C++ compiler was found, and DeepSpeed builds a small extension. Install one: sudo apt-get "
        "install g++\n"
    )


def test_no_disk_space(machine: Path) -> None:
    (machine / "python3").symlink_to(sys.executable)
    script(machine / "g++", "exit 0")
    (machine / "df").unlink()
    script(
        machine / "df",
        'echo "Filesystem 1024-blocks Used Available Capacity Mounted"; echo "x 9 9 1048576 9% /"',
    )
    done = setup(machine, "cpu")
    assert done.returncode == 1
    assert "Set-up failed: the cpu stack needs about 6 GiB of disk" in done.stderr
    assert "has 1 GiB free. Free some space, or clone elsewhere." in done.stderr


def test_no_network(machine: Path) -> None:
    script(machine / "python3", f"""case "$*" in
      *'config get'*) exit 1 ;;
      *'pip --version'*) exit 0 ;;
      *'install'*) echo 'NewConnectionError: failed to establish a new connection'; exit 1 ;;
      *'-m venv'*) mkdir -p "$VENV/bin"; ln -sf /bin/false "$VENV/bin/python"; exit 0 ;;
      *) exec {sys.executable} "$@" ;;
    esac""")  # fmt: skip
    (machine / "ln").symlink_to(shutil.which("ln") or "ln")
    script(machine / "g++", "exit 0")
    done = setup(machine, "cpu")
    assert done.returncode == 1
    assert done.stderr == (
        "Set-up failed: packages could not be fetched: no network, or its package index does not answer. Check the "
        f"connection (or pip's configuration) and try again; the log is {machine.parent}/venv/setup.log.\n"
    )


def test_the_second_time_is_immediate(machine: Path) -> None:
    """A finished environment whose key fits is left alone: nothing but the key is computed."""
    venv = machine.parent / "venv"
    (venv / "bin").mkdir(parents=True)
    script(venv / "bin" / "selfloop", "exit 0")
    text = (ROOT / "tools" / "setup.sh").read_text()
    start, end = text.index("key() {"), text.index("KEY=$(key)")
    key = subprocess.run(
        [str(machine / "bash"), "-c", f"cd {ROOT}; STACK=cpu\n{text[start:end]}\nkey"],
        env={"PATH": str(machine)}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    (venv / ".selfloop-key").write_text(key)
    done = setup(machine, "cpu")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
