"""A full disk: one sentence, and nothing half written."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from selfloop.workflows.data.batches import Counts
from selfloop.workflows.errors import StoreError
from selfloop.workflows.store import disk
from selfloop.workflows.store.disk import append, is_full, size, storing, unwritten
from selfloop.workflows.store.folder import RunFolder
from selfloop.workflows.store.parts import list_parts, write_part

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
SENTENCE = r"the disk of \S+ is full \(\d+ MiB free\): .+ could not be written\. Free at least \d+ MiB there, then resume the run: "


def test_sizes_are_said_as_people_say_them() -> None:
    assert [size(count) for count in (0, 1, 2**20, 2**20 + 1, 2**30 - 1, 2**30, 1.5 * 2**30)] == [
        "0 MiB", "1 MiB", "1 MiB", "2 MiB", "1024 MiB", "1.0 GiB", "1.5 GiB",
    ]  # fmt: skip


def test_full_disks_are_known_by_number_and_by_words() -> None:
    assert is_full(FULL) and is_full(OSError(errno.EDQUOT, "quota"))
    assert is_full(Exception("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert not is_full(OSError(errno.EACCES, "Permission denied"))


def test_the_sentence_names_folder_and_amount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        disk.shutil, "disk_usage", lambda _: disk.shutil._ntuple_diskusage(2**30, 2**30, 2**20)
    )
    assert unwritten(tmp_path / "a", "rows", FULL, 5 * 2**20) == (
        f"the disk of {tmp_path} is full (1 MiB free): rows could not be written. Free at least 4 MiB there, then resume the "
        "run: nothing that was committed is lost"
    )
    folder = RunFolder(tmp_path / "run")
    folder.open({"iterations": 3})
    (folder.iteration(1) / "policy").mkdir(parents=True)
    (folder.iteration(1) / "policy" / "w").write_bytes(bytes(9 * 2**20))
    for index in range(2):
        folder.commit_iteration(index, {})
    assert "Free at least 18 MiB there" in unwritten(
        folder.path, "rows", FULL
    )  # two more iterations like the first
    folder.close()


def test_an_append_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "events.jsonl", os.write
    append(path, b"one\n")
    room = [2]

    def write(file: int, data: Any) -> int:
        if not room[0]:
            raise FULL
        room[0] -= (took := real(file, data[: room[0]]))
        return took

    monkeypatch.setattr(disk.os, "write", write)
    with pytest.raises(OSError, match="No space left"):
        append(path, b"two\n")
    assert path.read_bytes() == b"one\n"


def test_other_errors_are_not_called_a_full_disk(tmp_path: Path) -> None:
    denied = PermissionError(errno.EACCES, "Permission denied")
    with (
        pytest.raises(StoreError, match=r"rows could not be written to .*: Permission denied"),
        storing(tmp_path, "rows"),
    ):
        raise denied
    with pytest.raises(ValueError, match="mine"), storing(tmp_path, "rows"):
        raise ValueError("mine")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path, leave: int = 0) -> None:
    usage = disk.shutil.disk_usage(place)
    (place / "filler").write_bytes(os.urandom(usage.free - leave))


def test_everything_that_a_run_writes_says_the_same_on_a_full_disk(small: Path) -> None:
    from selfloop.workflows.config import Config
    from selfloop.workflows.report.trackers import Trackers

    folder = RunFolder(small / "run")
    folder.open({"iterations": 1})
    folder.event("iteration", iteration=1)
    trackers = Trackers(folder.path, Config(recipe="grpo", trackers=("tensorboard",)))
    rows = pa.table({"text": [os.urandom(100).hex() for _ in range(2000)]})
    write_part(str(folder.node(1, "sample")), 0, 0, [rows], [Counts(2000)])
    fill(small, leave=8192)
    with pytest.raises(StoreError, match=SENTENCE):
        write_part(str(folder.node(1, "sample")), 1, 1, [rows], [Counts(2000)])
    (small / "filler2").write_bytes(bytes(disk.shutil.disk_usage(small).free))
    with pytest.raises(StoreError, match=SENTENCE):
        folder.commit_node(1, "sample", {"rows": 2000, "why": "x" * 5000})
    for write in (
        lambda: folder.event("batch", why="x" * 5000),
        lambda: trackers.log(1, {"loss" * 2000: 1.0}),
    ):
        with pytest.raises(StoreError, match=SENTENCE):
            write()
    trackers.close()
    assert [part.rows for part in list_parts(folder.node(1, "sample"))] == [2000]
    assert not list(small.rglob("*.tmp"))
    assert len((folder.path / "events.jsonl").read_text().splitlines()) == 1
    assert not (folder.path / "metrics.jsonl").read_bytes()
    folder.close()


def test_a_checkpoint_that_does_not_fit_says_it_and_leaves_the_disk(small: Path) -> None:
    import torch

    from selfloop.actors.train.collectives import Collectives
    from selfloop.actors.train.disk import commit_folder, temporary, write_tensors
    from selfloop.actors.train.savepoints import alone

    final, tensors = small / "policy", [("w", torch.zeros(2**20))]

    def write() -> None:
        path = temporary(final)
        write_tensors(path, iter(tensors), {"w": 2**22})
        commit_folder(path, final)

    with pytest.raises(StoreError, match=SENTENCE):
        alone(Collectives(0, 1), write, final, 2**22)
    assert list(small.iterdir()) == []
