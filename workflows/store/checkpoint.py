"""A checkpoint of a run: where a model's weights lie, and what proves that they are these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from selfloop.workflows.store.folder import RunFolder

__all__ = ["Place"]


@dataclass(frozen=True)
class Place:
    """Where a model's weights are: a Hugging Face folder, the folder of its fp32 state if any, and its receipt."""

    folder: str
    state: str | None = None
    receipt: Mapping[str, str] | None = None
    checksum: str = ""

    @classmethod
    def of(cls, entry: Mapping[str, Any], run: RunFolder) -> Place:
        """The place that an entry of a run's manifest names."""
        folders = {name: entry[name] and run.resolved(entry[name]) for name in ("folder", "state")}
        return cls(**{**entry, **folders})

    def entry(self, run: RunFolder) -> dict[str, Any]:
        """What the run's manifest keeps of it: paths within the run are from its folder."""
        folders = {"folder": run.inside(self.folder), "state": self.state and run.inside(self.state)}
        return {**asdict(self), **folders}
