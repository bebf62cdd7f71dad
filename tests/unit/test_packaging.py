"""What is installed and what is committed."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("actors", "configs", "door", "workflows")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# Names of files that hold other people's text word for word, or name what must not be in the others.
QUOTES = {"LICENSE", "tests/unit/test_packaging.py"}


def committed() -> list[Path]:
    """Files that git tracks or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("this is no git checkout")
    return [
        path
        for name in listed.stdout.splitlines()
        if (path := ROOT / name).is_file() and not path.is_symlink()
    ]


def texts() -> list[tuple[str, str]]:
    """(name, text) of the committed text files."""
    found: list[tuple[str, str]] = []
    for path in committed():
        data = path.read_bytes()
        if b"\x00" not in data[:8192] and path.suffix not in (".safetensors", ".png"):
            found.append((path.relative_to(ROOT).as_posix(), data.decode("utf-8")))
    return found


def test_the_package_list_is_the_list_of_folders() -> None:
    inits = (path for folder in FOLDERS for path in (ROOT / folder).rglob("__init__.py"))
    folders = (path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in inits)
    packages = sorted("selfloop" if folder == "door" else f"selfloop.{folder}" for folder in folders)
    assert PROJECT["tool"]["setuptools"]["packages"] == packages


def test_every_folder_with_code_is_a_package() -> None:
    bare = {path.parent for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    assert [str(folder) for folder in sorted(bare) if not (folder / "__init__.py").exists()] == []


def test_the_wheel_holds_only_selfloop_with_configs_and_pocket_base(tmp_path: Path) -> None:
    copy = tmp_path / "source"
    for path in committed():
        name = path.relative_to(ROOT)
        if name.parts[0] in FOLDERS or name.as_posix() in ("pyproject.toml", "README.md", "LICENSE"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(path.read_bytes())
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=copy, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"selfloop"}
    for needed in ("__init__.py", "names.py", "workflows/cli/commands.py", "configs/quickstart.yaml", "workflows/pocket/base/model.safetensors",
                   "workflows/pocket/base/chat_template.jinja", "actors/generate/generator.py"):  # fmt: skip
        assert f"selfloop/{needed}" in names
    configs = {path.name for path in (ROOT / "configs").glob("*.yaml")}
    assert {
        name.rsplit("/", 1)[1] for name in names if re.fullmatch(r"selfloop/configs/[^/]+\.yaml", name)
    } == configs
    licences = [name for name in names if name.endswith("LICENSE")]
    assert licences, "the wheel has no licence"


def test_no_lock_file_and_nothing_big() -> None:
    names = {path.name for path in committed()}
    assert not names & {"uv.lock", "poetry.lock", "Pipfile.lock"}
    big = {path.relative_to(ROOT).as_posix() for path in committed() if path.stat().st_size > 8 * 2**20}
    assert big == set()


def test_constraints_are_names_and_versions() -> None:
    for path in sorted((ROOT / "constraints").glob("*.txt")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                assert re.fullmatch(r"[\w.-]+(==[\w.!]+| ; sys_platform == 'never')", line), (
                    f"{path.name}: {line}"
                )


def test_no_registry_hosts_or_machine_paths_are_committed() -> None:
    host = re.compile(
        r"https?://[^\s\"')]*(pypi|pythonhosted|/simple\b|artifactory|nexus|jfrog|npmjs)|--(extra-)?index-url[ =]|find-links[ =]\S*://",
        re.IGNORECASE,
    )
    machine = re.compile(r"(?<![\w.{}])/(root|work|opt|home/\w+|Users/\w+|mnt/\w+)/[\w.]")
    found = [
        f"{name}:{number}: {line.strip()[:80]}"
        for name, text in texts()
        if name not in QUOTES
        for number, line in enumerate(text.splitlines(), 1)
        if host.search(line) or machine.search(line)
    ]
    assert found == []


def test_the_command_is_installed() -> None:
    assert PROJECT["project"]["scripts"] == {"selfloop": "selfloop.workflows.cli:main"}


def test_extras_are_there() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    assert {"cpu", "gpu", "dev", "math", "wandb", "mlflow"} <= set(extras)
    assert [name.split("==")[1] for name in extras["cpu"] if name.startswith("vllm")] == [
        name.split("==")[1] for name in extras["gpu"] if name.startswith("vllm")
    ]
