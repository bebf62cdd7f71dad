"""The trainer: one process that turns rows and an objective into new weights, and knows no method.

Four places hold weights: the served ones in the module, the float32 masters, a checkpoint folder, and its state
folder. A rank remembers which folder's weights it holds, so that a train node that starts from what the last one made
loads nothing; one engine lives as long as the process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from selfloop.actors.train.spec import TrainerSpec, TrainResult, TrainWork
from selfloop.actors.train.telling import Teller, Told
from selfloop.workflows.errors import ObjectiveError, TrainerError
from selfloop.workflows.models.lengths import positions_of, trained_limit

if TYPE_CHECKING:
    from torch import Tensor

    from selfloop.actors.train.figures import StepFigures
    from selfloop.actors.train.loaded import Loaded
    from selfloop.actors.train.rows.examples import Examples
    from selfloop.actors.train.savepoints import Progress
    from selfloop.actors.train.step import Training

__all__ = ["Trainer"]

TICK = 1e-9  # seconds: a training that was done already has taken no time, and is not divided by it


class Trainer:
    """One process's trainer: alone (a world of 1), or one rank of several that all get every call. tell: hears how far
    a training is."""

    tell: Callable[[Told], None] = staticmethod(lambda told: None)

    def __init__(
        self, spec: TrainerSpec, rank: int = 0, world: int = 1, master: tuple[str, int] = ("127.0.0.1", 0)
    ):
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        import torch

        from selfloop.actors.train.collectives import Collectives
        from selfloop.actors.train.model.zero import join_group

        if torch.get_num_threads() != spec.threads:
            torch.set_num_threads(spec.threads)
        join_group(spec.device, rank, world, master)
        small = torch.distributed.new_group(backend="gloo") if spec.device == "cuda" and world > 1 else None
        self.spec = spec
        self.longest = trained_limit(positions_of(spec.model), spec.max_model_len)
        self.collectives = Collectives(rank, world, small)
        self.models: dict[bool, Loaded] = {}
        self.current: tuple[str, str | None, bool] = (spec.model, None, False)
        _ = self.loaded(False).model

    def loaded(self, head: bool) -> Loaded:
        """The engine for models with a scalar head, or for those without. A GPU holds one of them at a time."""
        from selfloop.actors.train.loaded import Loaded

        if self.spec.device == "cuda":
            for other, loaded in self.models.items():
                if other != head:
                    loaded.release()
        return self.models.setdefault(head, Loaded(self.spec, self.collectives, head))

    def train(self, work: TrainWork) -> TrainResult:
        """Train, save, and hold the new weights. Every rank calls it with the same work; the first one's result counts.

        Raises TrainerError if there is nothing to train on, if a loss or gradient is not finite, or if a rank died;
        ObjectiveError, naming node, column and row, if the rows do not fit the objective.
        """
        try:
            return self._train(work)
        except BaseException as error:
            self.loaded(work.head).drop_half_steps()
            if isinstance(error, ObjectiveError):
                raise ObjectiveError(
                    f"node {work.node!r}, which makes {work.role}@{work.version}: {error}"
                ) from error
            if not isinstance(error, RuntimeError):
                raise
            raise TrainerError(
                f"training {work.role}@{work.version} broke on rank {self.collectives.rank} of "
                f"{self.collectives.world}: {error}. If a rank died or memory ran out, the step checkpoints are whole: "
                "start the ranks again (with a smaller trainer.tokens_per_micro_batch if it was memory) and training "
                "goes on from the last of them"
            ) from error

    def logprobs(
        self, folder: str | None, contexts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Log-probs, nats, of each target's tokens after its context, without gradient; none where both are longer than the model
        takes. folder: whose weights; None: those of the last train node (or the initial model's)."""
        return self._score("logprobs", folder, contexts, targets)

    def values(
        self, folder: str, contexts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """A critic's value before each of the target's tokens: of the state in which that token is chosen. A model that
        was never trained as one says 0."""
        return self._score("values", folder, contexts, targets)

    def rewards(
        self, folder: str, contexts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> list[float]:
        """A reward model's number at the last token of each target after its context."""
        from selfloop.workflows.models.facts import has_head

        if not has_head(folder):
            raise TrainerError(
                f"{folder} holds a language model without a scalar head, so it has no reward to give. Train one first: "
                "model.adapt(ScalarHead()).train(pairs, BradleyTerry(), …, role='reward')"
            )
        return [reward for (reward,) in self._score("rewards", folder, contexts, targets)]

    def _score(
        self,
        what: str,
        folder: str | None,
        contexts: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
    ) -> list[list[float]]:
        from selfloop.actors.train.rows.views import sequences_view
        from selfloop.actors.train.scores import score

        if any(len(context) == 0 for context in contexts):
            raise TrainerError(
                "a context is empty: the first token of its target has nothing that predicts it. Give at least the "
                "chat template's opening tokens as context"
            )
        if what != "rewards" and not any(len(target) for target in targets):
            return [[] for _ in targets]
        fits = [
            len(head) + len(tail) <= (self.longest or np.inf)
            for head, tail in zip(contexts, targets, strict=True)
        ]
        if not all(fits):
            some = [
                [one for one, fit in zip(lists, fits, strict=True) if fit] for lists in (contexts, targets)
            ]
            found = iter(self._score(what, folder, *some))
            return [next(found) if fit else [np.nan] if what == "rewards" else [] for fit in fits]
        if not contexts:
            return []
        start, state, _ = (folder, None, False) if folder is not None else self.current
        loaded = self.loaded(what != "logprobs")
        loaded.load(start, state, masters=False)
        view = sequences_view(contexts, targets)
        return score(loaded.model, self.collectives, view, self.spec.tokens_per_micro_batch, what)

    def weights(self) -> tuple[dict[str, str], list[tuple[str, Tensor]]]:
        """A receipt (name -> hash) and the weights of the last train node, on the CPU in serving precision, under
        Hugging Face names. Every rank calls it; the first one returns them, the others nothing."""
        from selfloop.actors.weights.receipt import receipt_of

        folder, state, head = self.current
        loaded = self.loaded(head)
        loaded.load(folder, state, masters=False)
        tensors = [
            (name, tensor.clone()) for name, tensor in loaded.model.served() if self.collectives.rank == 0
        ]
        return receipt_of(tensors), tensors

    def _train(self, work: TrainWork) -> TrainResult:
        from selfloop.actors.train.model.teachers import extra_of
        from selfloop.actors.train.rows.examples import examples_of
        from selfloop.actors.train.rows.plan import Plan
        from selfloop.actors.train.savepoints import Progress, resume, save, work_key
        from selfloop.actors.train.step import Training
        from selfloop.actors.weights.receipt import checksum

        began, spec, teller = time.perf_counter(), self.spec, Teller(self.tell)
        loaded = self.loaded(work.head)
        examples = examples_of(work.table, work.objective, self.longest)
        plan = Plan(len(examples), work.batch_size or spec.batch_size, work.epochs, work.seed)
        training = Training(
            loaded.model, self.collectives, examples, work.objective, plan, spec.tokens_per_micro_batch
        )
        training.extra, training.doing = extra_of(spec, work, loaded.model), teller.doing
        progress = Progress(work_key(spec, work, training))
        if not resume(loaded, work, training, progress):
            self._begin(work, training)
        ready, first = time.perf_counter(), progress.step
        loaded.forget()
        teller.begin(first, plan.steps)
        seen = [self._step_and_save(work, training, progress, teller) for _ in range(first, plan.steps)]
        trained = time.perf_counter()
        teller.doing("its checkpoint is written")
        receipt = save(spec, work, training)
        self.current = (work.out, work.state_out, work.head)
        loaded.saved(work)
        metrics = {
            **_means(progress.curve),
            **_figures(examples, seen),
            "steps": float(plan.steps),
            "resumed_at_step": float(first),
            "prepare_s": ready - began,
            "train_s": trained - ready,
            "save_s": time.perf_counter() - trained,
            "tokens_per_s": sum(one.tokens for one in seen) / max(trained - ready, TICK),
        }
        return TrainResult(work.version, checksum(receipt), receipt, plan.steps, metrics, progress.curve)

    def _begin(self, work: TrainWork, training: Training) -> None:
        """Reference and old log-probs, the start's weights and the optimizer. A reference that is the start itself is not
        loaded apart."""
        loaded, wanted = self.loaded(work.head), training.needing("reference_logprobs")
        if wanted and work.reference is None:
            raise TrainerError(
                f"{type(work.objective).__name__} reads the reference log-probs of {', '.join(view for view, _ in wanted)}, "
                "but this train node has no reference. Pass `reference=` to train (often the policy it starts from)"
            )
        if wanted and os.path.realpath(work.reference or "") != os.path.realpath(work.start):
            loaded.load(work.reference or "", None, masters=False)
            training.add_reference()
        loaded.load(work.start, work.start_state, masters=True, seed=work.seed)
        training.state = loaded.load_moments(work)
        training.add_start()

    def _step_and_save(
        self, work: TrainWork, training: Training, progress: Progress, teller: Teller
    ) -> StepFigures:
        """One optimizer step, its line of the curve, and a step checkpoint where one is due."""
        from selfloop.actors.train.savepoints import save_step
        from selfloop.actors.train.step import StepError, schedule

        spec, index = self.spec, progress.step
        (place, of), steps = work.span, training.plan.steps
        at = (place - 1) * steps + index
        lr = schedule(spec.schedule, work.lr or spec.lr, spec.warmup, at, of * steps, spec.floor)
        self.loaded(work.head).stepped = True
        try:
            figures, norm = training.step(index, lr)
        except StepError as error:
            rows = training.plan.step(index)
            path = Path(work.out).with_name(f"{Path(work.out).name}-failed-step-{index + 1:06d}.parquet")
            if self.collectives.rank == 0:
                _write_rows(path, training.examples.table.take(rows))
            raise TrainerError(
                f"step {index + 1} of {training.plan.steps} of {work.role}@{work.version}: {error}. Its {len(rows)} rows "
                f"are in {path} for study. Nothing was published. Usual causes: a learning rate that is too high (it "
                f"was {lr:g}), extreme weights or advantages, or a start that is broken already"
            ) from error
        progress.step += 1
        line = figures.line(progress.step, lr, norm)
        progress.curve.append(line)
        teller.stepped(line)
        if progress.step % spec.checkpoint_steps == 0 and progress.step < training.plan.steps:
            save_step(work, training, progress)
        return figures


def _write_rows(path: Path, rows: pa.Table) -> None:
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, path)


def _figures(examples: Examples, seen: Sequence[StepFigures]) -> dict[str, float]:
    """What was learned from, and what share of the forwards' cells was padding, and of the tokens a shared context."""
    tokens, filled, cells = (
        sum(getattr(figures, name) for figures in seen) for name in ("tokens", "filled", "cells")
    )
    return {
        "examples": float(len(examples)),
        "examples_left_out": float(sum(examples.left_out.values())),
        **{f"examples_{why}": float(rows) for why, rows in examples.left_out.items()},
        "padding": 1 - filled / max(cells, 1),
        "shared": 1 - filled / max(tokens, 1),
    }


def _means(curve: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the steps of everything in the curve but the step and its rate, and the loss at the end."""
    names = dict.fromkeys(name for line in curve for name in line if name not in ("step", "lr"))
    means = {name: [line[name] for line in curve if name in line] for name in names}
    result = {name: sum(values) / len(values) for name, values in means.items()}
    return result | ({"loss_last": curve[-1]["loss"]} if curve else {})
