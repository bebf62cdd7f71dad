"""The run folder: everything a run produced, committed piece by piece, readable by anybody.

runs/NAME/ config.json environment.json events.jsonl metrics.jsonl tensorboard/ iteration=0003/{<node>/part-*.parquet,
manifest.json, policy/, state/}
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from selfloop.workflows.data.files import read_json
from selfloop.workflows.errors import InputError, RunLockedError
from selfloop.workflows.store.changes import changes, unconfirmed
from selfloop.workflows.store.disk import append, replacing, storing
from selfloop.workflows.store.environment import environment
from selfloop.workflows.store.parts import Part, list_parts, part_files

__all__ = ["FORMAT", "RunFolder", "write_json"]

CHANGED = {
    2: "parts have content keys",
    3: "content keys know values beside code, and manifests paths from the run folder",
    4: "answers are read by other rules, which may give other scores",
    5: "content keys no longer know where code lives",
}  # what came with each format; a run of an older one is read, and no longer gone on with or taken from
FORMAT = max(CHANGED)
OWN = ("config.json", "environment.json", "events.jsonl", "metrics.jsonl", "error.log", "tensorboard", "mlruns", "wandb",
       ".lock", "model", "code", "iteration=*")  # fmt: skip


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that it is either the old one or the new one, never half of it."""
    data = (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
    with replacing(path, path.name, len(data)) as file:
        file.write(data)


class RunFolder:
    """A run's folder. `open` creates it, or takes an existing one of the same config; it holds the driver's lock."""

    def __init__(self, path: str | Path):
        self.path = Path(path).absolute()
        self._lock: IO[str] | None = None
        self._made: list[Path] = []  # folders that `open` made, the run's own first

    def open(self, config: dict[str, Any], confirmed: bool = False) -> bool:
        """Take the folder for this config and lock it. True if it holds a run already, which then goes on. confirmed: the
        user has said yes to what `store.changes.unconfirmed` finds.

        A start that ended before it committed anything is no run: its folder is taken over. Raises InputError if the
        folder holds a run of another config, RunLockedError if another driver works on it.
        """
        if self.config() is None:
            self.refuse_strangers()
        self.refuse_older()
        self._made = [place for place in (self.path, *self.path.parents) if not place.exists()]
        with storing(self.path, "the run folder"):
            self.path.mkdir(parents=True, exist_ok=True)
        self.lock()
        existing = self.config()
        try:
            return self.take(existing, config, confirmed)
        except BaseException:
            if existing is None:
                self.undo()
            self.close()
            raise

    def take(self, existing: dict[str, Any] | None, config: dict[str, Any], confirmed: bool) -> bool:
        """Write the config into the locked folder, which holds the run of `existing`. True if that goes on."""
        if existing is not None:
            changed = changes(existing, config)
            if not changed.refused and self.format == FORMAT:
                question = unconfirmed(existing, config) if self.committed() else None
                if question and not confirmed:
                    raise InputError(question)
                if existing != config:
                    self.note(config=config)
                    self.event("config", changed=changed.noted + changed.free)
                return True
            if self.committed():
                raise InputError(f"{self.path} holds a run of another config: {changed.refusal}")
            self.clear()
        write_json(self.path / "config.json", {"format": FORMAT, "config": config})
        write_json(self.path / "environment.json", environment() | {"folder": os.getcwd()})
        return False

    def refuse_strangers(self) -> None:
        """Raises InputError where a folder without a run holds something else."""
        there = self.path.iterdir() if self.path.is_dir() else ()
        strangers = sorted(path.name for path in there if not path.name.startswith("."))
        if strangers:
            raise InputError(
                f"{self.path} is not empty and is no run ({strangers[0]} is in it). Choose another --run-dir"
            )

    def refuse_older(self) -> None:
        """Raises InputError for a run of an older format, which is not gone on with and of which nothing is taken."""
        if self.format == FORMAT or not self.committed():
            return
        since = "; ".join(what for number, what in CHANGED.items() if number > self.format)
        raise InputError(
            f"{self.path} has format {self.format}, and this Selfloop goes on with runs of format {FORMAT} only, also to take "
            f"rows from them: since then {since}. Use the Selfloop that made it (environment.json names it), or start a new "
            "run, with another --run-dir or --again, and without reuse of it. show, chat, why and export still read it"
        )

    def lock(self) -> None:
        """Hold the folder until this process ends, however it ends. Raises RunLockedError where another process does."""
        self._lock = open(self.path / ".lock", "a+", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "its process is not known"
            self.close()
            raise RunLockedError(
                f"another driver is working on {self.path} ({holder}). Wait until it ends, or stop that process"
            ) from error
        with suppress(OSError):  # who holds it is a courtesy
            self._lock.truncate(0)
            self._lock.write(f"process {os.getpid()} on {platform.node()}, since {time.strftime('%F %T')}\n")
            self._lock.flush()

    def close(self) -> None:
        if self._lock is not None:
            with suppress(OSError):  # what is left in its buffer is of no use to anybody
                self._lock.close()
            self._lock = None

    def clear(self) -> None:
        """Remove everything of a run but the lock."""
        for path in [path for name in OWN for path in self.path.glob(name) if path.name != ".lock"]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def undo(self) -> None:
        """Remove what `open` and all after it wrote, and the folders that it made; what was there before stays."""
        self.clear()
        (self.path / ".lock").unlink(missing_ok=True)
        for place in self._made:
            with suppress(OSError):  # something else is in it
                place.rmdir()

    def committed(self) -> bool:
        """Whether a run has committed anything here: rows or a model."""
        places = ("iteration=*/manifest.json", "iteration=*/**/part-*.parquet")
        return any(True for place in places for _ in self.path.glob(place))

    def record(self) -> dict[str, Any]:
        """All of config.json: the config, and what was found out when the run began; empty for a folder without a run."""
        file = self.path / "config.json"
        try:
            held = read_json(file)
        except ValueError as error:
            raise InputError(f"{file} is broken ({error}). Restore it, or name another folder") from error
        if not {"format", "config"} <= held.keys():  # somebody else's, as that of a model
            return {}
        if held.get("format", 0) > FORMAT:
            raise InputError(
                f"{self.path} has format {held['format']}, and this Selfloop reads up to {FORMAT}. Use a newer Selfloop"
            )
        return held

    @property
    def format(self) -> int:
        """The format of its run; today's for a folder without a run."""
        return self.record().get("format", FORMAT)

    def note(self, **facts: Any) -> None:
        """Keep facts in config.json."""
        write_json(self.path / "config.json", {**self.record(), **facts})

    def config(self) -> dict[str, Any] | None:
        """The config the folder was made with, or None for a folder without a run."""
        held = self.record()
        return held["config"] if held else None

    def started_in(self) -> Path | None:
        """The working folder of the command that made the run, which may be gone: relative paths and modules of the config are
        meant from there."""
        folder = Path(read_json(self.path / "environment.json").get("folder", ""))
        return folder if folder.is_absolute() else None

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

    def iterations(self) -> list[int]:
        """Iterations that have a folder, in order."""
        names = (path.name.partition("=")[2] for path in self.path.glob("iteration=*") if path.is_dir())
        return sorted(int(name) for name in names if name.isdigit())

    def nodes(self, index: int) -> dict[str, list[Path]]:
        """The files of the committed parts of each node, in the order in which the nodes were written."""
        place = self.iteration(index)
        folders = {
            file.parent for file in place.rglob("part-*.parquet")
        }  # of grow's nodes: grow/round-1/sample
        found = {path.relative_to(place).as_posix(): part_files(path) for path in folders}
        found = {name: files for name, files in found.items() if files}
        return dict(sorted(found.items(), key=lambda item: (item[1][0].stat().st_mtime_ns, item[0])))

    def policy(self, index: int) -> Path:
        """Where the policy is that an iteration ended in: in its folder, or where it was carried over from."""
        here, held = self.iteration(index) / "policy", self.manifest(index)["roles"].get("policy")
        return here if held is None or here.is_dir() else Path(self.resolved(held["folder"]))

    def parts(self, index: int, name: str) -> list[Part]:
        """Committed parts of a node."""
        return list_parts(self.node(index, name))

    def manifest(self, index: int) -> dict[str, Any]:
        """What is complete of an iteration: {nodes: {name: ...}, roles: {role: ...}, complete: bool}."""
        none = {"format": FORMAT, "iteration": index, "nodes": {}, "roles": {}, "complete": False}
        return read_json(self.iteration(index) / "manifest.json") or none

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
        with storing(self.path, "events.jsonl"):
            append(self.path / "events.jsonl", (line + "\n").encode())
