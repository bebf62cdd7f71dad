"""Opening a run for whoever only reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from selfloop.workflows.errors import InputError

__all__ = ["open_run"]


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
