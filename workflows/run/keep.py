"""Which checkpoints stay on disk."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from selfloop.workflows.run.setup import Setup
from selfloop.workflows.store.folder import RunFolder

__all__ = ["prune"]


def prune(setup: Setup, folder: RunFolder, index: int) -> None:
    """Delete the checkpoints before the last `checkpoints.keep`, but none that the next iteration goes back to, and none of
    a role that was carried over since."""
    keep = setup.config.checkpoints.keep
    if keep is None:
        return
    models = [model for node in setup.planner.graph(index + 1) for model in node.models]
    back = max((index - model.version for model in models if model.node is None and model.version), default=0)
    held: dict[str, Any] = {}
    kept: set[str] = set()  # folders that a model of a later iteration is in; some models were carried over
    first = index + 1 - max(keep, back + 1)
    for past in range(1, index + 1):
        held |= folder.manifest(past)["roles"]
        if past >= first:
            kept |= {made[name] for made in held.values() for name in ("folder", "state") if made[name]}
    for old in range(1, first):
        for made in folder.manifest(old)["roles"].values():
            for name in {made["folder"], made["state"]} - kept - {None}:
                path = Path(folder.resolved(name))
                if path.parent == folder.iteration(old):
                    shutil.rmtree(path, ignore_errors=True)
