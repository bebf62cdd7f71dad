"""Run folders as they lie, for whoever only reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from selfloop.workflows.errors import InputError

__all__ = ["iterations_of", "list_nodes", "open_run"]


def open_run(run: str | Path) -> tuple[Path, dict[str, Any]]:
    """(folder, config) of a run. Raises InputError where there is none."""
    folder = Path(run).expanduser()
    path = folder / "config.json"
    if not path.is_file():
        runs = sorted(child.parent.name for child in folder.parent.glob("*/config.json"))
        known = f" Runs beside it: {', '.join(runs[:8])}" if runs else ""
        what = "has no config.json, so it is no run" if folder.is_dir() else "does not exist"
        raise InputError(
            f"run folder {folder} {what}. Name the folder of a run, e.g. runs/quickstart.{known}"
        )
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}. Restore the file, or name another run") from error
    return folder, held.get("config", held)


def iterations_of(folder: Path) -> list[int]:
    """Iterations that have a folder, in order."""
    names = (child.name for child in folder.glob("iteration=*") if child.is_dir())
    return sorted(int(name.partition("=")[2]) for name in names if name.partition("=")[2].isdigit())


def list_nodes(folder: Path, iteration: int) -> dict[str, list[Path]]:
    """The committed parts of each node of an iteration, in the order in which the nodes were written."""
    home = folder / f"iteration={iteration:04d}"
    found = {child.name: sorted(child.glob("part-*.parquet")) for child in home.iterdir() if child.is_dir()}
    found = {name: parts for name, parts in found.items() if parts}
    return dict(sorted(found.items(), key=lambda item: (item[1][0].stat().st_mtime_ns, item[0])))
