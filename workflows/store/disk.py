"""The disk under a run: sizes as people say them, a full disk in one sentence, and names that outlast a power cut."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from selfloop.workflows.errors import StoreError

__all__ = ["append", "is_full", "replacing", "size", "storing", "sync_folder", "unwritten"]

MIB, GIB = 2**20, 2**30
FULL = (errno.ENOSPC, errno.EDQUOT)


def size(count: float) -> str:
    """Bytes in MiB, rounded up, and from one GiB on in GiB."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{max(-(-int(count) // MIB), 0)} MiB"


def is_full(error: BaseException) -> bool:
    """Whether the disk (or a quota) is full. Libraries that write in Rust or copy trees only say so in their text."""
    said = str(error)
    return getattr(error, "errno", None) in FULL or "No space left on device" in said or "os error 28" in said


def unwritten(folder: str | Path, what: str, error: BaseException, needed: int = 0) -> str:
    """The sentence for what could not be written. needed: its bytes, where they are known."""
    place = Path(folder).absolute()
    if not is_full(error):
        why = getattr(error, "strerror", None) or error
        return (
            f"{what} could not be written to {place}: {why}. Mend the folder, then resume the run: nothing that was "
            "committed is lost"
        )
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    short = max(max(needed, rest_of_run(place)) - free, MIB)
    return (
        f"the disk of {place} is full ({size(free)} free): {what} could not be written. Free at least {size(short)} there, then "
        "resume the run: nothing that was committed is lost"
    )


def rest_of_run(place: Path) -> int:
    """Bytes that the run around this folder will still write, judged by its largest complete iteration; 0: none yet."""
    run = next((one for one in (place, *place.parents) if (one / "config.json").is_file()
                and (one / "environment.json").is_file()), None)  # fmt: skip
    if run is None:
        return 0
    done, running = list[int](), 0
    for folder in run.glob("iteration=*"):
        used = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        if '"complete": true' in read(folder / "manifest.json"):
            done.append(used)
        else:
            running += used
    config = json.loads(read(run / "config.json") or "{}").get("config", {})
    left = max(int(config.get("iterations", 1)) + 1 - len(done), 0)
    kept = (config.get("checkpoints") or {}).get("keep") or left
    return max(max(done, default=0) * min(left, kept) - running, 0)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


@contextmanager
def storing(folder: str | Path, what: str, needed: int = 0) -> Generator[None]:
    """Whatever keeps `what` from being written becomes a StoreError in one sentence."""
    try:
        yield
    except Exception as error:  # safetensors raises its own kind
        if isinstance(error, OSError) or is_full(error):
            raise StoreError(unwritten(folder, what, error, needed)) from error
        raise


@contextmanager
def replacing(path: Path, what: str, needed: int = 0) -> Generator[IO[bytes]]:
    """A file that takes the place of `path` once it is whole and on disk, so that there is the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storing(path.parent, what, needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's names to disk, and its own name: a rename is not there after a power cut before that."""
    for place in (folder, folder.parent):
        handle = os.open(place, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def append(path: Path, data: bytes, sync: bool = False) -> None:
    """Append all of the data or nothing: what a full disk cuts short is taken back."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        before, rest = os.fstat(file).st_size, memoryview(data)
        try:
            while rest:
                rest = rest[os.write(file, rest) :]
            if sync:
                os.fsync(file)
        except OSError:
            os.ftruncate(file, before)
            raise
    finally:
        os.close(file)
