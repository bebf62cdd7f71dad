"""What both runtimes share: the run folder, the sources in their seeded order, and where each model's weights are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from selfloop.workflows.data.batches import Meta, column_hash
from selfloop.workflows.data.seeds import derive_seed
from selfloop.workflows.errors import FailedRowsError, StoreError
from selfloop.workflows.flow.graph import Graph, ModelRef, Node
from selfloop.workflows.flow.provenance import Writers, writers_of
from selfloop.workflows.flow.verbs.base import Context
from selfloop.workflows.flow.verbs.source import Source
from selfloop.workflows.models.codec import ENCODING
from selfloop.workflows.run.setup import Setup
from selfloop.workflows.store.changes import made_under
from selfloop.workflows.store.checkpoint import Place
from selfloop.workflows.store.failures import first_failure
from selfloop.workflows.store.folder import RunFolder
from selfloop.workflows.store.keys import content_key
from selfloop.workflows.store.parts import Stored

__all__ = ["Job", "carried", "make_job", "permutation"]


def permutation(rows: int, seed: int, epoch: int) -> np.ndarray:
    """The seeded order of a source in one epoch."""
    return np.random.Generator(np.random.PCG64(derive_seed(seed, "order", epoch))).permutation(rows)


def carried(node: Node, graph: Graph) -> ModelRef:
    """Which model a train node leaves as it is: its start if that was made in this iteration or nobody keeps the result,
    else its role's last one, which for a role that is trained from the initial policy every time is not its start."""
    training = node.training
    assert training is not None
    kept = any(model.node == node.name for model in graph.outputs.values())
    if training.start.node is not None or not kept:
        return training.start
    return ModelRef(training.role, graph.iteration - 1)


@dataclass
class Job:
    """One run: everything a runtime needs beside its actors. span: iterations that one curve of the learning rate goes
    over; None: each train node has its own."""

    folder: RunFolder
    seed: int
    batch_size: int
    sources: Mapping[str, pa.Table]
    max_failed_rows: float
    graph_of: Callable[[int], Graph]
    places: dict[str, Place] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)  # by kind of actor: engine, trainer
    reuse: RunFolder | None = None
    span: int | None = None
    progress: Callable[[str, Meta], None] = lambda node, state: None
    doing: Callable[[str], AbstractContextManager[None]] = lambda what: nullcontext()
    say: Callable[[str], None] = lambda text: None
    hashes: dict[str, dict[str, str]] = field(default_factory=dict)

    # sources

    def source_rows(self, source: Source) -> pa.Table:
        """The rows of a source node, in the order of its seeded permutation (held-out prompts keep their own)."""
        table = self.sources[source.source]
        if table.num_rows == 0:
            raise StoreError(f"the source {source.source!r} has no rows")
        rows = table
        if source.source != "heldout":
            rows = table.take(pa.array(self.order(source, table.num_rows)))
        return rows.select([name for name in rows.column_names if name in source.has])

    def order(self, source: Source, rows: int) -> np.ndarray:
        """Which rows the source node takes: `count` along one permutation an epoch. Where an iteration runs over the end
        of an epoch, a row that it has taken already is not taken again."""
        count, start = min(source.count, rows), source.start
        epochs = range(start // rows, (start + max(count, 1) - 1) // rows + 1)
        orders = [permutation(rows, derive_seed(self.seed, source.source), epoch) for epoch in epochs]
        taken = np.concatenate(orders)[start - epochs[0] * rows :][:count]
        _, first = np.unique(taken, return_index=True)
        return taken[np.sort(first)]

    def begun(self, graph: Graph) -> dict[str, int]:
        """The batch size of every node that has a committed part."""
        entries = self.folder.manifest(graph.iteration)["nodes"]
        found: dict[str, int] = {}
        for node in graph:
            parts = self.folder.parts(graph.iteration, node.name) if node.training is None else []
            about = parts[0].about if parts else entries.get(node.name, {})
            if about.get("batch_size"):
                found[node.name] = about["batch_size"]
        return found

    def source_batches(self, source: Source, batch_size: int) -> Sequence[pa.Table | Stored]:
        """The batches of a source node: slices of its rows, or the committed batches of an earlier node."""
        if source.source.startswith("@"):
            iteration, node = source.source[1:].split("/", 1)
            found = [batch for part in self.folder.parts(int(iteration), node) for batch in part.stored()]
            entry = self.folder.manifest(int(iteration))["nodes"].get(node, {})
            if len(found) != entry.get("batches", len(found)):
                raise StoreError(
                    f"rows of node {node!r} of iteration {iteration} are gone: {len(found)} of {entry['batches']} batches are "
                    f"in {self.folder.node(int(iteration), node)}. Put its parts back; or delete that iteration's folder and "
                    "all later ones, and resume: they are made again"
                )
            return found
        table = self.source_rows(source).combine_chunks()
        return [table.slice(start, batch_size) for start in range(0, table.num_rows, batch_size)]

    # models

    def place(self, model: ModelRef) -> Place:
        return self.places[self.label(model)]

    def label(self, model: ModelRef) -> str:
        """The name of a model among the places."""
        return model.label

    def has(self, model: ModelRef) -> bool:
        return self.label(model) in self.places

    def train_work(self, node: Node, graph: Graph) -> dict[str, Any]:
        """The arguments of a TrainWork but for its table, and `writers`: whose rows that may hold."""
        training = node.training
        assert training is not None
        start, made = self.place(training.start), self.made_folder(node, graph)
        return {
            "role": training.role,
            "node": node.name,
            "version": graph.iteration,
            "start": start.folder,
            "start_state": start.state,
            "reference": self.place(training.reference).folder if training.reference else None,
            "frozen": {name: self.place(model).folder for name, model in training.frozen},
            "objective": training.objective,
            "optimizer": training.optimizer,
            "epochs": training.epochs,
            "seed": derive_seed(self.seed, graph.iteration, node.name),
            "lr": training.lr,
            "batch_size": training.batch_size,
            "head": training.start.head != "none",
            "span": (graph.iteration, self.span) if self.span else (1, 1),
            "out": str(made),
            "state_out": str(made.with_name(f"{made.name}-state")),
            "step_dir": str(made.with_name(f".{made.name}-steps")),
            "writers": Writers(node.name, writers_of(graph, node.inputs[0], self.graph_of)),
        }

    def made_folder(self, node: Node, graph: Graph) -> Path:
        """Where a train node's checkpoint goes: iteration=…/policy, or beside its node when it is thrown away."""
        for role, model in graph.outputs.items():
            if model.node == node.name:
                return self.folder.iteration(graph.iteration) / role
        return self.folder.node(graph.iteration, node.name) / "model"

    def before(self, node: Node, graph: Graph) -> Place | None:
        """The model that a train node leaves as it is where it has nothing to learn. None: there is none yet that has the
        scalar head which is asked for."""
        training = node.training
        assert training is not None
        last = carried(node, graph)
        if self.has(last):
            return self.place(last)
        return None if training.start.head == "new" else self.place(training.start)

    def trained(self, node: Node, graph: Graph, place: Place) -> None:
        """Note where the model that a train node made is."""
        self.places[self.label_of(node, graph)] = place

    def label_of(self, node: Node, graph: Graph) -> str:
        """The label of the model that a train node makes."""
        assert node.training is not None
        return self.label(ModelRef(node.training.role, graph.iteration, node.name))

    def settle(self, graph: Graph) -> dict[str, Place]:
        """The models an iteration ended in, by role, under their plain names (policy@3) from now on."""
        before = f"@{graph.iteration - 1}"
        for name in [name for name in self.places if name.endswith(before)]:
            self.places[f"{name.removesuffix(before)}@{graph.iteration}"] = self.places[name]
        for role, model in graph.outputs.items():
            self.places[f"{role}@{graph.iteration}"] = self.place(model)
        return {role: self.place(model) for role, model in graph.outputs.items()}

    # keys and counts

    def under(self, node: Node) -> Meta:
        """Of the settings of the actors that run this node now, those that may change in a run."""
        return made_under(self.of_actors(node).get("settings", {}))

    def of_actors(self, node: Node) -> Mapping[str, Any]:
        return self.versions.get("trainer" if node.op is None else node.op.place, {})

    def key(self, node: Node, graph: Graph, keys: Mapping[str, str], made: Sequence[Meta] = ()) -> str:
        """The node's content key, once its inputs and models are known. made: the settings under which it was made,
        several where they changed on its way; none: those of now."""
        run: dict[str, Any] = {"seed": self.seed, "iteration": graph.iteration, **self.of_actors(node)}
        if made and "settings" in run:
            run["settings"] = {**run["settings"], **made[-1]}
            run |= {"before": list(made[:-1])} if len(made) > 1 else {}
        if node.models:
            run["encoding"] = ENCODING
        if isinstance(node.op, Source):
            run["rows"] = self.source_hash(node.op)
        if node.training and self.span:
            entry = self.folder.manifest(graph.iteration)["nodes"].get(node.name, {})
            run["span"] = entry.get(
                "span", self.span
            )  # what is trained already was before the run was extended
        models = {model.name: self.place(model).checksum or self.place(model).folder for model in node.models}
        return content_key(node, keys, models, run)

    def source_hash(self, source: Source) -> str:
        """What a source's rows are made of: its table, or the content key of the earlier node that it reads."""
        if source.source.startswith("@"):
            iteration, node = source.source[1:].split("/", 1)
            return self.folder.manifest(int(iteration))["nodes"].get(node, {}).get("key", "")
        if source.source not in self.hashes:
            table = self.sources[source.source]
            self.hashes[source.source] = {name: column_hash(table[name]) for name in table.column_names}
        hashes = self.hashes[source.source]
        return " ".join(f"{name} {hashes[name]}" for name in sorted(source.has) if name in hashes)

    def context(self, node: Node, iteration: int) -> Context:
        """What the node's op is told of the run."""
        made = Context(node.name, iteration, self.seed)
        if node.model is not None:
            made.model, made.version = self.label(node.model), node.model.version
            made.folder = self.place(node.model).folder
        return made

    def check_failures(self, iteration: int, node: str, counted: Meta, done: bool) -> None:
        """Stop when more rows or verdicts failed than the config allows (asked once there are enough, and at the end)."""
        rows, failed, what, column = counted.get("rows", 0), counted.get("failed", 0), "rows", "status"
        for name, states in counted.items():
            if isinstance(states, dict) and states.get("failed", 0) > failed:
                failed, what, column = states["failed"], f"verdicts ({name.removesuffix('_state')})", name
        if failed and (done or rows >= 1000) and failed > self.max_failed_rows * rows:
            why = first_failure([part.path for part in self.folder.parts(iteration, node)], column)
            where = "error" if column == "status" else f"{column.removesuffix('_state')}_judgements"
            raise FailedRowsError(
                f"node {node!r}: {failed} of {rows} {what} failed, more than max_failed_rows={self.max_failed_rows:g} allows. "
                f"The first: {why or 'no reason is noted'}. The column `{where}` of its rows in {self.folder.path} has them "
                "all; mend that, or raise max_failed_rows"
            )


def make_job(setup: Setup, folder: RunFolder, versions: dict[str, Any]) -> Job:
    """The run of a config in a folder, for either runtime."""
    config = setup.config
    return Job(
        folder, config.seed, config.batch_size, setup.sources, config.max_failed_rows, versions=versions,
        reuse=RunFolder(config.reuse) if config.reuse else None, graph_of=setup.planner.graph,
        span=config.iterations if config.trainer.schedule.over == "run" else None, hashes=setup.hashes,
    )  # fmt: skip
