"""The trainer: a DeepSpeed rank that turns rows and an objective into new weights, and knows no method.

Four places hold weights: the served ones in the module, the float32 masters, a checkpoint folder, and its state
folder. A rank remembers which folder's weights it holds, so that a train node that starts from what the last one made
loads nothing; one engine lives as long as the process.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from selfloop.workflows.errors import SelfloopError, TrainerError
from selfloop.workflows.objectives.base import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from selfloop.actors.batching import Plan
    from selfloop.actors.examples import Examples
    from selfloop.actors.training import StepFigures, Trainable
    from selfloop.actors.zero import Sharded

__all__ = ["TrainResult", "TrainWork", "TrainerRank", "TrainerSpec"]


@dataclass(frozen=True)
class TrainerSpec:
    """What ranks are started with. model: a Hugging Face folder (architecture, tokenizer). lr, batch_size: defaults of
    a train node. warmup: share of its steps. batch_size: examples an optimizer step, over all ranks. bfloat16 keeps
    float32 master weights; at ZeRO 0 it runs as ZeRO 1, with the same result."""

    model: str
    ranks: int = 1
    zero: int = 0
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int = 1
    lr: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float | None = 1.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: float = 0.0
    batch_size: int = 64
    tokens_per_micro_batch: int = 8192
    checkpoint_steps: int = 50
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class TrainWork:
    """One train node: role@version is made from `start` (and the float32 masters in `start_state`, if that is given).

    reference: folder of the model that reference log-probs are of. optimizer: `continued` takes up the moments in
    `start_state`, which a train node with `continued` leaves there. out, state_out: folders to write. step_dir: where
    step checkpoints go, for replay after a death.
    """

    role: str
    version: int
    start: str
    start_state: str | None
    reference: str | None
    objective: Objective
    table: pa.Table
    optimizer: Literal["fresh", "continued"]
    out: str
    state_out: str | None = None
    step_dir: str | None = None
    epochs: float = 1
    seed: int = 0
    lr: float | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class TrainResult:
    """What a train node made. checksum: of the receipt, a hash a served tensor. curve: one dict an optimizer step."""

    version: int
    checksum: str
    receipt: dict[str, str]
    steps: int
    metrics: dict[str, float]
    curve: list[dict[str, float]]


@dataclass
class _Held:
    """Fingerprints of the folders whose weights and moments this rank holds; None: nothing that a folder has."""

    served: Any = None
    masters: Any = None
    moments: Any = None
    proven: bool = False


@dataclass
class _Progress:
    """A train node under way."""

    key: str
    step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)


class TrainerRank:
    """One rank: in this process with a world of 1, or one of several that all get every call."""

    def __init__(
        self, spec: TrainerSpec, rank: int = 0, world: int = 1, master: tuple[str, int] = ("127.0.0.1", 0)
    ):
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        import torch

        from selfloop.actors.training import Ranks
        from selfloop.actors.zero import join_group

        if torch.get_num_threads() != spec.threads:
            torch.set_num_threads(spec.threads)
        join_group(spec.device, rank, world, master)
        small = torch.distributed.new_group(backend="gloo") if spec.device == "cuda" and world > 1 else None
        self.spec = spec
        self.ranks = Ranks(rank, world, small)
        self.current: tuple[str, str | None] = (spec.model, None)
        self._held = _Held()
        self._built: Sharded | None = None
        _ = self._model

    @property
    def _model(self) -> Sharded:
        """The engine; built anew after an error, which may have left half a step in it."""
        if self._built is None:
            from selfloop.actors.zero import Sharded

            self._built = Sharded(self.spec, self.ranks.world)
            self._held = _Held()
        return self._built

    # ---- the three calls

    def train(self, work: TrainWork) -> TrainResult:
        """Train, save, and hold the new weights. Every rank calls it with the same work; the first one's result counts.

        Raises TrainerError if there is nothing to train on, if a loss or gradient is not finite, or if a rank died;
        ObjectiveError, naming column and row, if the rows do not fit the objective.
        """
        try:
            return self._train(work)
        except RuntimeError as error:
            self._drop_half_steps()
            raise TrainerError(
                f"training {work.role}@{work.version} broke on rank {self.ranks.rank} of {self.ranks.world}: {error}. "
                "If a rank died or memory ran out, the step checkpoints are whole: start the ranks again (with a "
                "smaller trainer.tokens_per_micro_batch if it was memory) and training goes on from the last of them"
            ) from error
        except BaseException:
            self._drop_half_steps()
            raise

    def _drop_half_steps(self) -> None:
        """Give up an engine that may hold gradients of an unfinished step."""
        if self._built is not None and self._held.served is None:
            self._built.engine.destroy()
            self._built = None

    def logprobs(
        self, folder: str | None, contexts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Log-probs, nats, of each target's tokens after its context, without gradient. folder: whose weights; None:
        those of the last train node (or the initial model's)."""
        from selfloop.actors.examples import sequences_view
        from selfloop.actors.training import score

        if any(len(context) == 0 for context in contexts):
            raise TrainerError(
                "a context is empty: the first token of its target has nothing that predicts it"
            )
        if not any(len(target) for target in targets):
            return [[] for _ in targets]
        start, state = (folder, None) if folder is not None else self.current
        self._hold(start, state, masters=False)
        return score(
            self._model, self.ranks, sequences_view(contexts, targets), self.spec.tokens_per_micro_batch
        )

    def weights(self) -> tuple[dict[str, str], list[tuple[str, Tensor]]]:
        """A receipt (name -> hash) and the weights of the last train node, on the CPU in serving precision, under
        Hugging Face names. Every rank calls it; the first one returns them, the others nothing."""
        from selfloop.actors.weights import receipt_of

        self._hold(*self.current, masters=False)
        tensors = [(name, tensor.clone()) for name, tensor in self._model.served() if self.ranks.rank == 0]
        return receipt_of(tensors), tensors

    # ---- training

    def _train(self, work: TrainWork) -> TrainResult:
        from selfloop.actors.batching import Plan
        from selfloop.actors.examples import examples_of
        from selfloop.actors.training import Trainable

        began = time.perf_counter()
        examples = examples_of(work.table, work.objective)
        plan = Plan(len(examples), work.batch_size or self.spec.batch_size, work.epochs, work.seed)
        task = Trainable(
            self._model, self.ranks, examples, work.objective, plan, self.spec.tokens_per_micro_batch
        )
        progress = _Progress(self._key(work, examples, plan))
        if not self._resume(work, task, progress):
            self._begin(work, task)
        ready = time.perf_counter()
        first = progress.step
        padded = tokens = 0
        while progress.step < plan.steps:
            figures = self._step(work, task, progress)
            padded, tokens = padded + figures.padded, tokens + figures.tokens
            if progress.step % self.spec.checkpoint_steps == 0 and progress.step < plan.steps:
                self._save_step(work, task, progress)
        trained = time.perf_counter()
        receipt = self._save(work, task)
        from selfloop.actors.weights import checksum

        metrics = _means(progress.curve) | {
            "examples": float(len(examples)), "examples_left_out": float(examples.left_out), "steps": float(plan.steps),
            "padding": 1 - tokens / max(padded, 1), "resumed_at_step": float(first), "prepare_s": ready - began,
            "train_s": trained - ready, "save_s": time.perf_counter() - trained,
            "tokens_per_s": tokens / max(trained - ready, 1e-9),
        }  # fmt: skip
        return TrainResult(work.version, checksum(receipt), receipt, plan.steps, metrics, progress.curve)

    def _begin(self, work: TrainWork, task: Trainable) -> None:
        """Reference and old log-probs, then the start's weights and the optimizer."""
        wanted = task.needing("reference_logprobs")
        if wanted and work.reference is None:
            raise TrainerError(
                f"{type(work.objective).__name__} reads the reference log-probs of {', '.join(wanted)}, but this train "
                "node has no reference. Pass `reference=` to train (often the policy it starts from)"
            )
        apart = bool(wanted) and os.path.realpath(work.reference or "") != os.path.realpath(work.start)
        if apart:
            assert work.reference is not None
            self._hold(work.reference, None, masters=False)
            task.add_scores("reference_logprobs")
        self._hold(work.start, work.start_state, masters=True)
        self._set_moments(work, task)
        if wanted and not apart:
            task.add_scores("reference_logprobs")
            for view in task.needing("old_logprobs"):
                if (view, "reference_logprobs") in task.examples.values:
                    task.examples.values[view, "old_logprobs"] = task.examples.values[
                        view, "reference_logprobs"
                    ]
        if task.needing("old_logprobs"):
            task.add_scores("old_logprobs")
        if work.step_dir and task.plan.steps > self.spec.checkpoint_steps:
            from selfloop.actors.trainstate import save_scores

            self._alone(lambda: save_scores(work.step_dir or "", task.examples.values))

    def _step(self, work: TrainWork, task: Trainable, progress: _Progress) -> StepFigures:
        """One optimizer step and its line of the curve."""
        from selfloop.actors.training import StepError, schedule

        spec, index = self.spec, progress.step
        lr = schedule(spec.schedule, work.lr or spec.lr, spec.warmup, index, task.plan.steps)
        rows = task.plan.step(index)
        self._held = _Held(proven=self._held.proven)
        try:
            figures, norm = task.step(rows, lr)
        except StepError as error:
            path = Path(work.out).with_name(f"{Path(work.out).name}-failed-step-{index + 1:06d}.parquet")
            if self.ranks.rank == 0:
                import pyarrow.parquet as pq

                path.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(task.examples.table.take(rows), path)
            raise TrainerError(
                f"step {index + 1} of {task.plan.steps} of {work.role}@{work.version}: {error}. Its {len(rows)} rows "
                f"are in {path} for study. Nothing was published. Usual causes: a learning rate that is too high (it "
                f"was {lr:g}), extreme weights or advantages, or a start that is broken already"
            ) from error
        progress.step += 1
        line = {"step": float(progress.step), "loss": figures.loss, "lr": lr, "grad_norm": norm,
                "tokens": float(figures.tokens)}  # fmt: skip
        if len(figures.terms) > 1:
            line |= {f"loss_{name}": value for name, value in figures.terms.items()}
        line |= {name: total / max(count, 1) for name, (total, count) in sorted(figures.logs.items())}
        progress.curve.append(line)
        return figures

    # ---- what is in memory

    def _hold(self, folder: str, state: str | None, *, masters: bool) -> None:
        """Have these weights in the module, and with `masters` ready to be trained."""
        from selfloop.actors.logprobs import prove_head
        from selfloop.actors.trainstate import Folder, fingerprint

        held, model = self._held, self._model
        served, whole = self.ranks.first((fingerprint(folder), fingerprint(folder, state)))
        if held.served == served and (not masters or held.masters == whole):
            return
        source = Folder(folder)
        better = (
            Folder(state, "master")
            if masters and state and list(Path(state).glob("master*.safetensors"))
            else source
        )
        model.load(better.read, masters)
        held.served = served
        if masters or model.stage == 0:
            held.masters = whole if masters else fingerprint(folder)
        if not held.proven:
            prove_head(model.module, model.device)
            held.proven = True

    def _set_moments(self, work: TrainWork, task: Trainable) -> None:
        """A fresh optimizer, or the moments (and the objective's running state) that the start's state holds."""
        from selfloop.actors.trainstate import Folder, fingerprint, read_json, unpack_state

        about = read_json(work.start_state) if work.optimizer == "continued" else {}
        if "optimizer_step" not in about:
            self._model.reset_moments()
            return
        if about.get("objective") == type(work.objective).__name__:
            task.state = unpack_state(about["objective_state"])
        if self._held.moments is None or self._held.moments != self.ranks.first(
            fingerprint(work.start_state)
        ):
            self._model.load_moments(
                Folder(work.start_state or "", "optimizer").read, about["optimizer_step"]
            )

    # ---- what is on disk

    def _key(self, work: TrainWork, examples: Examples, plan: Plan) -> str:
        """Names the work, so that a step checkpoint of other work is not taken up."""
        spec = {
            name: value
            for name, value in asdict(self.spec).items()
            if name not in ("model", "checkpoint_steps")
        }
        about = [spec, work.role, work.version, work.optimizer, work.lr, plan.batch_size, plan.epochs, plan.seed,
                 type(work.objective).__name__, work.objective.model_dump(mode="json")]  # fmt: skip
        digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
        for name, view in examples.views.items():
            digest.update(name.encode())
            for array in (view.tokens, view.bounds, view.targets, view.target_bounds):
                digest.update(array.tobytes())
        for name in sorted(examples.columns):
            column = examples.columns[name]
            digest.update(name.encode() + (b"".join(part.tobytes() for part in column)))
        return digest.hexdigest()[:16]

    def _resume(self, work: TrainWork, task: Trainable, progress: _Progress) -> bool:
        """Take up the last step checkpoint of this very work, if there is one."""
        from selfloop.actors.trainstate import Folder, last_step, load_scores, unpack_state

        found = self.ranks.first(last_step(work.step_dir, progress.key)) if work.step_dir else None
        if found is None:
            return False
        path, about = found
        task.examples.values |= load_scores(work.step_dir or "")
        self._model.load(Folder(path, "master").read, masters=True)
        self._model.load_moments(Folder(path, "optimizer").read, about["optimizer_step"])
        self._held = _Held(proven=self._held.proven)
        task.state = unpack_state(about["objective_state"])
        progress.step, progress.curve = about["step"], about["curve"]
        return True

    def _save_step(self, work: TrainWork, task: Trainable, progress: _Progress) -> None:
        """A step checkpoint, whole or not at all; the one before goes."""
        if not work.step_dir:
            return
        from selfloop.actors.trainstate import drop_steps

        final = Path(work.step_dir) / f"step-{progress.step:06d}"
        about = {"key": progress.key, "step": progress.step, "curve": progress.curve}
        self._write_state(final, task, about, masters=True, moments=True)
        self._alone(lambda: drop_steps(work.step_dir or "", final))

    def _write_state(
        self, final: Path, task: Trainable, about: dict[str, Any], *, masters: bool, moments: bool
    ) -> None:
        """Masters, moments and the objective's running state, in a folder of their own."""
        from selfloop.actors.trainstate import commit_folder, pack_state, temporary, write_json, write_tensors

        model = self._model
        sizes = {name: 4 * _product(shape) for name, shape in model.shapes().items()}
        first = self.ranks.rank == 0
        tensors = [item for item in model.masters() if first] if masters else []
        moment = [item for item in model.moments() if first] if moments else []

        def write() -> None:
            path = temporary(final)
            if masters:
                write_tensors(path, iter(tensors), sizes, "master")
            if moments:
                write_tensors(
                    path, iter(moment), {name: 4 * tensor.numel() for name, tensor in moment}, "optimizer"
                )
                about["optimizer_step"] = model.moment_step()
            state = {"objective": type(task.objective).__name__, "objective_state": pack_state(task.state)}
            write_json(path / "state.json", {**about, **state})
            commit_folder(path, final)

        self._alone(write)

    def _save(self, work: TrainWork, task: Trainable) -> dict[str, str]:
        """Write the state, then the checkpoint, then drop the step checkpoints. Returns the receipt."""
        from selfloop.actors.trainstate import commit_folder, fingerprint, temporary, write_checkpoint

        model, keep = self._model, work.optimizer == "continued"
        if work.state_out:
            masters = self.spec.dtype != "float32"
            self._write_state(
                Path(work.state_out), task, {"version": work.version}, masters=masters, moments=keep
            )
        bytes_each = 4 if self.spec.dtype == "float32" else 2
        sizes = {name: bytes_each * _product(shape) for name, shape in model.shapes().items()}
        tensors = [item for item in model.served() if self.ranks.rank == 0]
        receipt: dict[str, str] = {}

        def write() -> None:
            path = temporary(work.out)
            receipt.update(write_checkpoint(work.start, path, iter(tensors), sizes, self.spec.dtype))
            commit_folder(path, work.out)
            if work.step_dir:
                shutil.rmtree(work.step_dir, ignore_errors=True)

        self._alone(write)
        self.current = (work.out, work.state_out)
        held = self.ranks.first(
            [fingerprint(work.out), fingerprint(*self.current), fingerprint(work.state_out)]
        )
        self._held.served, self._held.masters = held[0], held[1]
        self._held.moments = held[2] if keep and work.state_out else None
        return self.ranks.first(receipt)

    def _alone(self, write: Any) -> None:
        """Let the first rank write; all ranks learn how it went."""
        error: SelfloopError | None = None
        if self.ranks.rank == 0:
            try:
                write()
            except OSError as met:
                error = TrainerError(
                    f"the trainer cannot write its checkpoint: {met}. Free space or mend the folder's permissions, "
                    "then resume: nothing half written is left under its final name"
                )
        self.ranks.agree(error)


def _product(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _means(curve: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the steps of everything in the curve but the step and its rate, and the loss at the end."""
    names = dict.fromkeys(name for line in curve for name in line if name not in ("step", "lr"))
    means = {name: [line[name] for line in curve if name in line] for name in names}
    result = {name: sum(values) / len(values) for name, values in means.items()}
    return result | ({"loss_last": curve[-1]["loss"]} if curve else {})
