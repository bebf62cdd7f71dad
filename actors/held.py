"""The engine of a rank, and which folders' weights and moments it holds.

Served weights, float32 masters and optimizer moments stay in memory between train nodes. A folder's fingerprint says
whether they are still what is on disk; only then is nothing loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfloop.actors.trainstate import Folder, fingerprint, read_json, unpack_state
from selfloop.actors.zero import Sharded

if TYPE_CHECKING:
    from torch import Tensor

    from selfloop.actors.trainer import TrainerSpec, TrainWork
    from selfloop.actors.training import Ranks

__all__ = ["Held"]


@dataclass
class Held:
    """served, masters, moments: fingerprints of the folders they are of; None: of no folder (half-way weights)."""

    spec: TrainerSpec
    ranks: Ranks
    served: Any = None
    masters: Any = None
    moments: Any = None
    stepped: bool = False
    built: Sharded | None = None

    @property
    def model(self) -> Sharded:
        """The engine; built anew after an error that may have left half a step in it."""
        if self.built is None:
            self.built = Sharded(self.spec, self.ranks.world)
            self.forget()
        return self.built

    def forget(self) -> None:
        """What is in memory is of no folder now."""
        self.served = self.masters = self.moments = None

    def drop_half_steps(self) -> None:
        """Give up an engine that may hold gradients of an unfinished step."""
        if self.built is not None and self.stepped:
            self.built.engine.destroy()
            self.built, self.stepped = None, False

    def load(self, folder: str, state: str | None, *, masters: bool) -> None:
        """Have these weights in the module, and with `masters` ready to be trained."""
        model = self.model
        served, whole = self.ranks.first((fingerprint(folder), fingerprint(folder, state)))
        if self.served == served and (not masters or self.masters == whole):
            return
        source = Folder(folder)
        if masters and state and list(Path(state).glob("master*.safetensors")):
            source = Folder(state, "master")
        self.served = None
        model.load(source.read, masters)
        self.served = served
        if masters or model.stage == 0:
            self.masters = whole if masters else served

    def load_moments(self, work: TrainWork) -> dict[str, Tensor]:
        """A fresh optimizer, or the moments in the start's state. Returns the objective's running state, kept there."""
        about = read_json(work.start_state) if work.optimizer == "continued" else {}
        if "optimizer_step" not in about:
            self.moments = None
            self.model.reset_moments()
            return {}
        if self.moments is None or self.moments != self.ranks.first(fingerprint(work.start_state)):
            source = Folder(work.start_state or "", "optimizer")
            self.model.load_moments(source.read, about["optimizer_step"])
        same = about.get("objective") == type(work.objective).__name__
        return unpack_state(about["objective_state"]) if same else {}

    def saved(self, work: TrainWork) -> None:
        """What is in memory is what this work left on disk."""
        marks = [fingerprint(work.out), fingerprint(work.out, work.state_out), fingerprint(work.state_out)]
        self.served, self.masters, moments = self.ranks.first(marks)
        self.moments = moments if work.optimizer == "continued" and work.state_out else None
        self.stepped = False
