"""The run folder: what is committed stays, what is not does not count."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from datasets import load_dataset

from selfloop.workflows.data.batches import Counts
from selfloop.workflows.errors import InputError, RunLockedError, StoreError
from selfloop.workflows.store.changes import differences
from selfloop.workflows.store.folder import RunFolder
from selfloop.workflows.store.parts import Stored, list_parts, read_stored, row_hash, write_part

ROWS = pa.table({"prompt_id": ["a", "a", "b", "c"], "sample": [0, 1, 0, 0], "text": ["x", "y", "z", "é"]})


def test_a_part_gives_its_batches_back(tmp_path: Path) -> None:
    tables = [ROWS.slice(0, 2), ROWS.slice(0, 0), ROWS.slice(2, 2)]
    write_part(str(tmp_path), 0, 0, tables, [Counts(2), Counts(0), Counts(2)])
    write_part(str(tmp_path), 1, 3, [ROWS], [Counts(4, failed=1)])
    first, second = list_parts(tmp_path)
    assert (first.first, second.first, first.rows) == (0, 3, 4)
    assert [batch.rows for batch in first.stored()] == [2, 0, 2]
    assert read_stored(first.stored())[2].to_pylist() == ROWS.slice(2, 2).to_pylist()
    assert second.batches == (Counts(4, failed=1),)


def test_an_interrupted_write_is_no_part(tmp_path: Path) -> None:
    (tmp_path / ".part-00000.parquet.77.tmp").write_bytes(b"half")
    assert list_parts(tmp_path) == []
    (tmp_path / "part-00000.parquet").write_bytes(b"half")
    with pytest.raises(StoreError, match="is not a part"):
        list_parts(tmp_path)


def test_the_row_hash_does_not_depend_on_order_or_batches() -> None:
    shuffled = ROWS.take([3, 0, 2, 1])
    assert row_hash([ROWS]) == row_hash([shuffled.slice(0, 1), shuffled.slice(1)])
    assert row_hash([ROWS]) != row_hash([ROWS.slice(1)])


def test_datasets_reads_parts_as_they_are(tmp_path: Path) -> None:
    write_part(str(tmp_path / "pair"), 0, 0, [ROWS], [Counts(4)])
    loaded = load_dataset(
        "parquet",
        data_files=str(tmp_path / "pair" / "*.parquet"),
        split="train",
        cache_dir=str(tmp_path / "c"),
    )
    assert loaded["text"][:4] == ["x", "y", "z", "é"]


def test_a_run_of_another_config_is_not_written_to(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert folder.open({"seed": 1, "trainer": {"lr": 0.1}}) is False
    folder.commit_node(0, "evaluation", {})
    folder.close()
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    with pytest.raises(InputError, match=r"trainer\.lr was 0\.1 and is now 0\.2"):
        RunFolder(tmp_path / "run").open({"seed": 1, "trainer": {"lr": 0.2}})
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


def test_the_same_config_goes_on(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open({"seed": 1})
    folder.close()
    again = RunFolder(tmp_path / "run")
    assert again.open({"seed": 1}) is True
    again.close()


def test_more_iterations_extend_a_run_and_fewer_are_refused(tmp_path: Path) -> None:
    for iterations in (2, 5, 5):
        folder = RunFolder(tmp_path / "run")
        folder.open({"seed": 1, "iterations": iterations})
        assert folder.config() == {"seed": 1, "iterations": iterations}
        folder.commit_iteration(0, {})
        folder.close()
    with pytest.raises(InputError, match="iterations was 5 and is now 3"):
        RunFolder(tmp_path / "run").open({"seed": 1, "iterations": 3})


def test_a_second_driver_is_refused(tmp_path: Path) -> None:
    first = RunFolder(tmp_path / "run")
    first.open({})
    with pytest.raises(RunLockedError, match="another driver"):
        RunFolder(tmp_path / "run").open({})
    first.close()


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        RunFolder(tmp_path).open({})


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.open({})
    folder.close()
    (tmp_path / "config.json").write_text(json.dumps({"format": 99, "config": {}}))
    with pytest.raises(InputError, match="format 99"):
        RunFolder(tmp_path).open({})


def test_the_manifest_counts_iterations(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.completed() == -1
    folder.commit_node(0, "evaluation", {"rows": 3})
    assert folder.completed() == -1
    folder.commit_iteration(0, {})
    folder.commit_node(1, "sample", {"rows": 9})
    assert folder.completed() == 0 and folder.manifest(1)["nodes"]["sample"]["rows"] == 9


def test_differences_name_the_keys() -> None:
    assert differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "d": 4}) == [
        "a.b was 1 and is now 3", "c was 2 and is now null", "d was null and is now 4",
    ]  # fmt: skip


def test_stored_batches_can_be_read_anywhere(tmp_path: Path) -> None:
    part = write_part(str(tmp_path), 0, 0, [ROWS], [Counts(4)])
    assert read_stored([Stored(part.path, 1, 2)])[0]["text"].to_pylist() == ["y", "z"]


def test_the_config_of_somebody_else_is_no_run(tmp_path: Path) -> None:
    """A model's config.json, or one with a key `config`: nothing beside it is taken for ours and deleted."""
    for held in ({"hidden_size": 64}, {"config": {"a": 1}}):
        (tmp_path / "config.json").write_text(json.dumps(held))
        (tmp_path / "model").mkdir(exist_ok=True)
        with pytest.raises(InputError, match="is not empty and is no run"):
            RunFolder(tmp_path).open({"a": 2})
        assert (tmp_path / "model").is_dir() and json.loads((tmp_path / "config.json").read_text()) == held


def test_a_folder_that_is_refused_is_not_held(tmp_path: Path) -> None:
    """Also while somebody keeps the error (a notebook does): the next `open` of this process takes the folder."""
    folder = RunFolder(tmp_path / "run")
    folder.open({"iterations": 1, "a": 1})
    folder.commit_iteration(0, {})
    folder.close()
    other = RunFolder(tmp_path / "run")
    with pytest.raises(InputError, match="another config") as kept:
        other.open({"iterations": 1, "a": 2})
    assert kept.value is not None
    assert RunFolder(tmp_path / "run").open({"iterations": 1, "a": 1})


def test_nodes_of_grow_are_nodes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_part(str(folder.node(1, "grow/round-1/sample")), 0, 0, [pa.table({"a": [1]})], [Counts(rows=1)], {})
    assert list(folder.nodes(1)) == ["grow/round-1/sample"] and folder.committed()
