"""A run as both runtimes see it: its folder, sources and models, and what a node is told, keyed by and may lose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from selfloop.actors.train.spec import TrainNode, TrainWork
from selfloop.actors.train.telling import Told
from selfloop.workflows.data.batches import Counts
from selfloop.workflows.data.seeds import derive_seed
from selfloop.workflows.errors import FailedRowsError
from selfloop.workflows.flow.graph import Graph, Node
from selfloop.workflows.flow.provenance import Writers, writers_of
from selfloop.workflows.flow.verbs.base import Context
from selfloop.workflows.flow.verbs.source import Saved, Source
from selfloop.workflows.models.codec import ENCODING
from selfloop.workflows.run.models import Models
from selfloop.workflows.run.setup import Setup
from selfloop.workflows.run.sources import Sources
from selfloop.workflows.run.watch import Stage
from selfloop.workflows.store.changes import made_under
from selfloop.workflows.store.failures import first_failure
from selfloop.workflows.store.folder import RunFolder
from selfloop.workflows.store.keys import content_key
from selfloop.workflows.store.parts import Rows

__all__ = ["Job", "make_job"]


@dataclass
class Job:
    """One run: everything a runtime needs beside its actors. span: iterations that one curve of the learning rate goes
    over; None: each train node has its own. versions: of what an actor runs on, by kind of actor."""

    folder: RunFolder
    seed: int
    batch_size: int
    sources: Sources
    models: Models
    max_failed_rows: float
    graph_of: Callable[[int], Graph]
    versions: Mapping[str, Any] = field(default_factory=dict)
    reuse: RunFolder | None = None
    span: int | None = None
    progress: Callable[[str, Stage | Told], None] = lambda node, state: None
    doing: Callable[[str], AbstractContextManager[None]] = lambda what: nullcontext()
    say: Callable[[str], None] = lambda text: None

    # what a node is told

    def context(self, node: Node, iteration: int) -> Context:
        """What the node's op is told of the run."""
        made = Context(node.name, iteration, self.seed)
        if node.model is not None:
            made.model, made.version = node.model.label, node.model.version
            made.folder = self.models.place(node.model).folder
        return made

    def train_node(self, node: Node, graph: Graph, rows: Sequence[Rows]) -> TrainNode:
        """A train node with the batches that it learns from, as a trainer takes it."""
        training = node.training
        assert training is not None
        place, start = self.models.place, self.models.place(training.start)
        out = self.models.out(node, graph)
        work = TrainWork(
            role=training.role,
            node=node.name,
            version=graph.iteration,
            start=start.folder,
            start_state=start.state,
            reference=place(training.reference).folder if training.reference else None,
            frozen={name: place(model).folder for name, model in training.frozen},
            objective=training.objective,
            optimizer=training.optimizer,
            epochs=training.epochs,
            seed=derive_seed(self.seed, graph.iteration, node.name),
            lr=training.lr,
            batch_size=training.batch_size,
            head=training.start.head != "none",
            span=(graph.iteration, self.span) if self.span else (1, 1),
            out=str(out),
            state_out=str(out.with_name(f"{out.name}-state")),
            step_dir=str(out.with_name(f".{out.name}-steps")),
        )
        writers = Writers(node.name, writers_of(graph, node.inputs[0], self.graph_of))
        return TrainNode(work, rows, writers)

    # keys and failures

    def under(self, node: Node) -> dict[str, Any]:
        """Of the settings of the actors that run this node now, those that may change in a run."""
        return made_under(self.of_actors(node).get("settings", {}))

    def of_actors(self, node: Node) -> Mapping[str, Any]:
        return self.versions.get("trainer" if node.op is None else node.op.place, {})

    def key(
        self, node: Node, graph: Graph, keys: Mapping[str, str], made: Sequence[dict[str, Any]] = ()
    ) -> str:
        """The node's content key, once its inputs and models are known. made: the settings under which it was made,
        several where they changed on its way; none: those of now."""
        run: dict[str, Any] = {"seed": self.seed, "iteration": graph.iteration, **self.of_actors(node)}
        if made and "settings" in run:
            run["settings"] = {**run["settings"], **made[-1]}
            run |= {"before": list(made[:-1])} if len(made) > 1 else {}
        if node.models:
            run["encoding"] = ENCODING
        if isinstance(node.op, Source | Saved):
            run["rows"] = self.sources.hash(node.op)
        if node.training and self.span:
            # one that was trained already keeps what it was trained with, also when the run was extended since
            entry = self.folder.manifest(graph.iteration)["nodes"].get(node.name, {})
            run["span"] = entry.get("span", self.span)
        places = {model.name: self.models.place(model) for model in node.models}
        models = {name: place.checksum or place.folder for name, place in places.items()}
        return content_key(node, keys, models, run)

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

    def check_failures(self, iteration: int, node: str, counted: Counts, done: bool) -> None:
        """Stop when more rows or verdicts failed than the config allows (asked once there are enough, and at the end)."""
        rows, failed, what, column, where = counted.rows, counted.failed or 0, "rows", "status", "error"
        for name, (states, _) in counted.verdicts.items():
            if states.get("failed", 0) > failed:
                failed, what = states["failed"], f"verdicts ({name})"
                column, where = f"{name}_state", f"{name}_judgements"
        if failed and (done or rows >= 1000) and failed > self.max_failed_rows * rows:
            why = first_failure([part.path for part in self.folder.parts(iteration, node)], column)
            raise FailedRowsError(
                f"node {node!r}: {failed} of {rows} {what} failed, more than max_failed_rows={self.max_failed_rows:g} allows. "
                f"The first: {why or 'no reason is noted'}. The column `{where}` of its rows in {self.folder.path} has them "
                "all; mend that, or raise max_failed_rows"
            )


def make_job(setup: Setup, folder: RunFolder, versions: dict[str, Any]) -> Job:
    """The run of a config in a folder, for either runtime."""
    config = setup.config
    return Job(
        folder,
        config.seed,
        config.batch_size,
        Sources(folder, config.seed, setup.sources, setup.hashes),
        Models(folder),
        config.max_failed_rows,
        setup.planner.graph,
        versions,
        reuse=RunFolder(config.reuse) if config.reuse else None,
        span=config.iterations if config.trainer.schedule.over == "run" else None,
    )
