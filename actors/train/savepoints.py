"""What a train node leaves on disk: step checkpoints to replay from, and at its end the state and the checkpoint."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfloop.actors.train import disk
from selfloop.actors.train.disk import commit_folder, half_written, temporary, write_json, write_tensors
from selfloop.actors.train.model.adapters import STEM, exported, write_config
from selfloop.actors.train.model.heads import head_settings
from selfloop.workflows.errors import StoreError
from selfloop.workflows.store.changes import made_under
from selfloop.workflows.store.disk import storing

if TYPE_CHECKING:
    from torch import Tensor

    from selfloop.actors.train.collectives import Collectives
    from selfloop.actors.train.loaded import Loaded
    from selfloop.actors.train.spec import TrainerSpec, TrainWork
    from selfloop.actors.train.step import Training

__all__ = ["Progress", "alone", "resume", "save", "save_step", "work_key"]


@dataclass
class Progress:
    """A train node under way. key: names the work. step: optimizer steps done. scored: reference and old log-probs are
    on disk, so that a replay need not load the reference again."""

    key: str
    step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    scored: bool = False


def work_key(spec: TrainerSpec, work: TrainWork, training: Training) -> str:
    """Names the work, so that a step checkpoint of other work is not taken up."""
    free = ("model", "checkpoint_steps", "gradient_checkpointing")
    shared = {name: value for name, value in asdict(spec).items() if name not in free}
    plan, examples = training.plan, training.examples
    about = [shared, work.role, work.version, work.optimizer, work.head, work.lr, work.span]
    about += [plan.batch_size, plan.epochs, plan.seed]
    about += [type(work.objective).__name__, work.objective.model_dump(mode="json")]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for name, view in examples.views.items():
        digest.update(name.encode())
        for array in (view.tokens, view.bounds, view.targets, view.target_bounds):
            digest.update(array.tobytes())
    for name in sorted(examples.columns):
        digest.update(name.encode() + b"".join(part.tobytes() for part in examples.columns[name]))
    for given in sorted(examples.values):
        digest.update("/".join(given).encode() + examples.values[given].tobytes())
    return digest.hexdigest()[:16]


def resume(loaded: Loaded, work: TrainWork, training: Training, progress: Progress) -> bool:
    """Take up the last step checkpoint of this very work, if there is one."""
    if not work.step_dir:
        return False
    found = training.collectives.first(disk.last_step(work.step_dir, progress.key))
    if found is None:
        return False
    path, about = found
    training.examples.values |= disk.load_scores(work.step_dir)
    loaded.take_up(work, path, about)
    training.state = disk.unpack_state(about["objective_state"])
    progress.step, progress.curve, progress.scored = about["step"], about["curve"], True
    return True


def save_step(work: TrainWork, training: Training, progress: Progress) -> None:
    """A step checkpoint, whole or not at all; the one before goes."""
    if work.step_dir:
        final = Path(work.step_dir) / f"step-{progress.step:06d}"
        made = made_under(asdict(training.model.spec))
        about = {"key": progress.key, "step": progress.step, "curve": progress.curve, "made": made}
        if not progress.scored:
            values = training.examples.values
            scores = sum(value.nbytes for value in values.values())
            alone(
                training.collectives,
                lambda: disk.save_scores(final.parent, values),
                final.parent / "scores",
                scores,
            )
            progress.scored = True
        _write_state(final, training, about, masters=True, moments=True)
        alone(training.collectives, lambda: disk.drop_steps(final), final)


def save(spec: TrainerSpec, work: TrainWork, training: Training) -> dict[str, str]:
    """Write the state, then the checkpoint. Returns the receipt, on every rank. The step checkpoints stay until the driver
    has noted the result: what dies before that need not train again."""
    if work.state_out:
        masters, moments = spec.dtype != "float32" or spec.lora is not None, work.optimizer == "continued"
        _write_state(
            Path(work.state_out), training, {"version": work.version}, masters=masters, moments=moments
        )
    width = 4 if spec.dtype == "float32" else 2  # bytes a number
    sizes = {name: width * prod(shape) for name, shape in training.model.shapes().items()}
    tensors = _on_first(training.collectives, training.model.served())
    receipt: dict[str, str] = {}

    def write() -> None:
        path = temporary(work.out)
        settings = {"dtype": spec.dtype} | (head_settings(training.model.module.model) if work.head else {})
        receipt.update(disk.write_checkpoint(work.start, path, iter(tensors), sizes, settings))
        commit_folder(path, work.out)

    alone(training.collectives, write, Path(work.out), sum(sizes.values()))
    return training.collectives.first(receipt)


def alone(collectives: Collectives, write: Callable[[], Any], final: Path, needed: int = 0) -> None:
    """Let the first rank write a folder of `needed` bytes; all ranks learn how it went. What is half written goes."""
    error: StoreError | None = None
    if collectives.rank == 0:
        try:
            with storing(final, "a checkpoint", needed):
                try:
                    write()
                except Exception:
                    shutil.rmtree(half_written(final), ignore_errors=True)  # it fills the disk
                    raise
        except StoreError as met:
            error = met
    collectives.agree(error)


def _write_state(
    final: Path, training: Training, about: dict[str, Any], *, masters: bool, moments: bool
) -> None:
    """Masters or adapters, moments and the objective's running state, in a folder of their own."""
    model, lora = training.model, training.model.spec.lora
    groups: dict[str, list[tuple[str, Tensor]]] = {}
    if masters:
        tensors = _on_first(training.collectives, model.masters())
        groups[STEM if lora else "master"] = [(exported(k), v) for k, v in tensors] if lora else tensors
    if moments:
        groups["optimizer"] = _on_first(training.collectives, model.moments())
        about["optimizer_step"] = model.moment_step()
    about |= {"base": asdict(model.base)} if lora else {}
    about |= {"head": True} if model.head else {}
    about["objective"] = type(training.objective).__name__
    about["objective_state"] = disk.pack_state(training.state)

    def write() -> None:
        path = temporary(final)
        for stem, tensors in groups.items():
            sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors}
            write_tensors(path, iter(tensors), sizes, stem)
        if lora:
            write_config(path, lora, model.head, model.base, model.pairs)
        write_json(path / "state.json", about)
        commit_folder(path, final)

    alone(
        training.collectives, write, final, sum(t.nbytes for tensors in groups.values() for _, t in tensors)
    )


def _on_first(collectives: Collectives, tensors: Iterator[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """All tensors on the first rank; the others only take part in gathering them."""
    return [item for item in tensors if collectives.rank == 0]
