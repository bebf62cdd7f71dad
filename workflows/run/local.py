"""The local runtime: a graph in this process, node by node, without Ray. Breakpoints work."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pyarrow as pa

from selfloop.actors.train.rank import TrainerScorer
from selfloop.workflows.data.batches import Counts
from selfloop.workflows.flow.asks import Engine
from selfloop.workflows.flow.graph import Graph
from selfloop.workflows.flow.verbs.base import Context, Op
from selfloop.workflows.flow.verbs.batch import run_batch, run_streams
from selfloop.workflows.models.codec import Codec
from selfloop.workflows.run.job import Job, make_job
from selfloop.workflows.run.loop import Runtime
from selfloop.workflows.run.node import Flow
from selfloop.workflows.run.outcome import Outcome
from selfloop.workflows.run.runner import PART_ROWS, Runner
from selfloop.workflows.run.setup import Setup
from selfloop.workflows.store.folder import RunFolder
from selfloop.workflows.store.parts import write_part

__all__ = ["LocalRuntime", "local_runtime"]


class LocalRuntime(Runner):
    """Runs nodes in order with one engine and one trainer, which any object of their interface can be."""

    def __init__(self, job: Job, engine: Engine, trainer: Any, codec: Codec):
        super().__init__(job)
        self.engine = engine
        self.trainer = trainer
        self.codec = codec
        self.serving = ""

    def run(self, graph: Graph) -> Outcome:
        """Run every node that is not complete yet."""
        self.begin(graph)
        for flow in self.flows.values():
            self.prepare(flow)
            if flow.complete:
                continue
            if flow.node.training is not None:
                self.train(flow)
            elif flow.barrier:
                self.barrier(flow)
            else:
                self.stream(flow)
        return self.outcome

    def stream(self, flow: Flow) -> None:
        """Run a per-batch node; parts are committed on the way."""
        self.report(flow)
        waiting: list[tuple[pa.Table, Counts]] = []
        for index in range(flow.sent, flow.total or 0):
            tables = [source.fetch(place) for source, place in flow.needs(index)]
            tables += flow.beside.whole() if flow.beside else []
            waiting.append(asyncio.run(run_batch(*self.ready(flow), tables, timed=False)))
            if sum(counts.rows for _, counts in waiting) >= PART_ROWS:
                self.commit(flow, waiting)
                waiting = []
        if waiting:
            self.commit(flow, waiting)
        self.end(flow)

    def barrier(self, flow: Flow) -> None:
        """Run a gather or a summary on its whole inputs."""
        if flow.known is None:
            self.report(flow)
            streams = [source.whole() for source in flow.inputs]
            ran = run_streams(*self.ready(flow), streams, flow.batch_size, timed=False)
            table, (first, *others) = asyncio.run(ran)
            self.commit(flow, [(table, first), *((table.slice(0, 0), counts) for counts in others)])
            flow.known = 1 + len(others)
        self.end(flow)

    def ready(self, flow: Flow) -> tuple[Op, Context]:
        """The node's op with its context, once the engine serves its model."""
        node = flow.node
        assert node.op is not None
        context = self.job.context(node, self.graph.iteration)
        if node.op.place == "engine":
            self.serve(context.model, context.version, context.folder)
            context.engine, context.codec = self.engine, self.codec
        if node.op.place == "trainer":
            context.scorer = TrainerScorer(self.trainer)
        return node.op, context

    def serve(self, label: str, version: int, folder: str) -> None:
        if self.serving != label:
            from selfloop.actors.weights.folder import folder_tensors

            self.engine.load(version, folder_tensors(folder, "float32"))
            self.serving = label

    def commit(self, flow: Flow, batches: list[tuple[pa.Table, Counts]]) -> None:
        folder = str(self.job.folder.node(self.graph.iteration, flow.node.name))
        tables, counts = [table for table, _ in batches], [counts for _, counts in batches]
        flow.writing += len(batches)
        flow.committed(write_part(folder, flow.parts, len(flow.stored), tables, counts, flow.about), "")

    def train(self, flow: Flow) -> None:
        if self.carry_over(flow):
            return
        flow.in_flight += 1
        node = self.job.train_node(flow.node, self.graph, flow.inputs[0].whole())
        self.drop_steps(flow, node.work)
        self.trainer.tell = partial(self.told, flow)
        self.finish_training(flow, node.work, self.trainer.train(node.opened()))


def local_runtime(setup: Setup, folder: RunFolder, engine: Any, trainer: Any) -> tuple[Runtime, Job]:
    """The same run in this process: an engine and a trainer of any kind, no Ray (tests, breakpoints)."""
    from selfloop.workflows.models.codec import Codec

    job = make_job(setup, folder, {})
    return LocalRuntime(job, engine, trainer, Codec(setup.folder)), job
