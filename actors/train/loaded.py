"""The engine of a rank, and which folders' weights and moments it holds.

Served weights, float32 masters and optimizer moments stay in memory between train nodes. A folder's fingerprint says
whether they are still what is on disk; only then is nothing loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from selfloop.actors.train.disk import read_state, unpack_state
from selfloop.actors.train.model.adapters import STEM, Base, base_of, exported, fresh, prove_base, state_base
from selfloop.actors.train.model.heads import HEAD
from selfloop.actors.train.model.zero import Sharded, shape_of
from selfloop.actors.weights.folder import Fingerprint, Folder, fingerprint
from selfloop.workflows.errors import TrainerError

if TYPE_CHECKING:
    from torch import Tensor

    from selfloop.actors.train.collectives import Collectives
    from selfloop.actors.train.spec import TrainerSpec, TrainWork

__all__ = ["Loaded"]


class Masters(NamedTuple):
    """What float32 masters are of: the start's folder and its state, and the seed of adapters that are new."""

    folders: Fingerprint
    new: int | None = None


@dataclass
class Loaded:
    """served, masters, moments: what they are of; None: of no folder (half-way weights).

    head: the model has a scalar head. bases: what is known of the folders that adapters stand on.
    """

    spec: TrainerSpec
    collectives: Collectives
    head: bool = False
    served: Fingerprint | None = None
    masters: Masters | None = None
    moments: Fingerprint | None = None
    stepped: bool = False
    built: Sharded | None = None
    bases: dict[Fingerprint, Base] = field(default_factory=dict)

    @property
    def model(self) -> Sharded:
        """The engine; built anew after an error that may have left half a step in it."""
        if self.built is None:
            self.built = Sharded(self.spec, self.collectives.world, self.head)
            self.forget()
        return self.built

    def forget(self) -> None:
        """What is in memory is of no folder now."""
        self.served = self.masters = self.moments = None

    def drop_half_steps(self) -> None:
        """Give up an engine that may hold gradients of an unfinished step."""
        if self.stepped:
            self.release()

    def release(self) -> None:
        """Give up the engine and its memory."""
        if self.built is not None:
            self.built.engine.destroy()
            self.built, self.stepped = None, False

    def load(self, folder: str, state: str | None, *, masters: bool, seed: int = 0) -> None:
        """Have these weights in the module, and with `masters` ready to be trained. seed: of new adapters, which a
        training starts with where the state holds none."""
        model = self.model
        served, whole = self.marks(folder, state, seed)
        if self.served == served and (not masters or self.masters == whole):
            return
        self.served = None  # until all of them are in the module
        if masters and self.spec.lora:
            self.load_adapters(folder, state, seed)
        else:
            full = masters and state and list(Path(state).glob("master*.safetensors"))
            model.load(self.reader(Folder(state or "", "master") if full else Folder(folder)), masters)
        self.served = served
        if masters:
            self.masters = whole
        elif self.spec.lora:
            self.masters = None  # the base is another one now
        elif model.stage == 0:
            self.masters = Masters(served)  # without ZeRO the served weights are the masters

    def marks(self, folder: str, state: str | None, seed: int) -> tuple[Fingerprint, Masters]:
        """What tells whether the served weights, and the masters, of these folders are held already."""
        new = seed if self.spec.lora and state_base(state) is None else None
        return self.collectives.first((fingerprint(folder), Masters(fingerprint(folder, state), new)))

    def reader(self, source: Folder) -> Callable[[str], Tensor]:
        """Reads a checkpoint's tensors; a new scalar head is zero."""
        zeros = torch.zeros(self.model.shapes().get(HEAD, (0,)))
        return lambda name: zeros if name == HEAD and name not in source.files else source.read(name)

    def load_adapters(self, folder: str, state: str | None, seed: int, step: str | None = None) -> None:
        """The base, and the adapters of a step checkpoint, of the state, or new ones on the folder's weights."""
        model, old = self.model, state_base(state)
        base = self.prove_base(folder, state, old)
        weights = self.reader(Folder(base.folder))
        kept = step or (state if old else None)
        if kept:
            adapters = Folder(kept, STEM)
            head = adapters.read(exported(HEAD)) if exported(HEAD) in adapters.files else None
            model.load(
                lambda name: head if name == HEAD and head is not None else weights(name),
                True,
                lambda name: adapters.read(exported(name)),
            )
        else:
            shapes = {name: shape_of(param) for name, param in model.trained.items()}
            model.load(weights, True, lambda name: fresh(name, shapes[name], seed))
        model.base = base

    def prove_base(self, folder: str, state: str | None, old: Base | None) -> Base:
        """The base that adapters stand on, proven unchanged by the first rank."""
        error, base = None, None
        if self.collectives.rank == 0:
            try:
                if old is not None:
                    prove_base(state or "", old, self.base_of)
                base = old or self.base_of(folder)
            except TrainerError as met:
                error = met
        self.collectives.agree(error)
        base = self.collectives.first(base)
        assert base is not None  # the first rank has one, or all have raised
        return base

    def base_of(self, folder: str) -> Base:
        """`adapters.base_of`, hashed once for files that stay as they are."""
        mark = fingerprint(folder)
        if mark not in self.bases:
            self.bases[mark] = base_of(folder)
        return self.bases[mark]

    def take_up(self, work: TrainWork, step: str, about: dict[str, Any]) -> None:
        """The weights and moments of a step checkpoint of this work."""
        if self.spec.lora:
            self.load_adapters(work.start, work.start_state, work.seed, step)
        else:
            self.model.load(Folder(step, "master").read, masters=True)
        self.model.load_moments(Folder(step, "optimizer").read, about["optimizer_step"])

    def load_moments(self, work: TrainWork) -> dict[str, Tensor]:
        """A fresh optimizer, or the moments in the start's state. Returns the objective's running state, kept there."""
        about = read_state(work.start_state) if work.optimizer == "continued" else {}
        if "optimizer_step" not in about or about.get("head", False) != self.head:
            self.moments = None
            self.model.reset_moments()
            return {}
        if self.moments is None or self.moments != self.collectives.first(fingerprint(work.start_state)):
            source = Folder(work.start_state or "", "optimizer")
            self.model.load_moments(source.read, about["optimizer_step"])
        same = about.get("objective") == type(work.objective).__name__
        return unpack_state(about["objective_state"]) if same else {}

    def saved(self, work: TrainWork) -> None:
        """What is in memory is what this work left on disk."""
        self.served, self.masters = self.marks(work.out, work.state_out, work.seed)
        if self.spec.lora and not work.state_out:
            self.masters = None
        moments = self.collectives.first(fingerprint(work.state_out))
        self.moments = moments if work.optimizer == "continued" and work.state_out else None
        self.stepped = False
