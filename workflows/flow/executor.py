"""The streaming executor: runs a graph over Ray actors. The driver handles references only; rows stay in the object store.

Each node sends batches in order to the least loaded replica that serves its model, a bounded number in flight, and
releases results in order to its readers and to the writer. Nodes that need different versions of one pool run in turn;
what is released meanwhile is read back from its committed parts instead of pushing back.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from selfloop.workflows.errors import EngineError, SelfloopError
from selfloop.workflows.flow.cluster import Actors
from selfloop.workflows.flow.flows import Batch, Flow
from selfloop.workflows.flow.graph import Graph
from selfloop.workflows.flow.job import Job, Meta
from selfloop.workflows.flow.outcome import Outcome
from selfloop.workflows.flow.pools import Pool, Replica
from selfloop.workflows.flow.runner import PART_ROWS, Runner

__all__ = ["Executor"]

AHEAD = 4  # batches a node may be ahead of its slowest reader, beyond what fills the replicas
PART_SECONDS = 5.0  # a part is also written when its first batch has waited this long
TRIES = 3  # times a batch is sent again after its replica died


@dataclass
class Call:
    """A batch on its way: where it was sent, and what it needs to be sent again."""

    flow: Flow
    index: int
    pool: Pool | None
    replica: Replica | None
    data: Any
    tries: int = 1


@dataclass
class Write:
    """A part on its way to the disk."""

    flow: Flow
    batches: list[Meta]


class Executor(Runner):
    """Runs one iteration's graph at a time; the actors live on between iterations."""

    def __init__(self, job: Job, actors: Actors):
        super().__init__(job)
        self.actors = actors
        self.calls: dict[Any, Call | Write] = {}
        self.shared: dict[str, Any] = {}
        self.flushed: dict[str, float] = {}
        self.wanted = ""

    def run(self, graph: Graph) -> Outcome:
        """Run every node that is not complete yet; returns the models made and the numbers measured."""
        self.begin(graph)
        self.shared = {node.name: ray.put(node.op) for node in graph if node.op is not None}
        try:
            while not all(flow.complete for flow in self.flows.values()):
                self.switch_models()
                sent = self.dispatch()
                self.flush()
                self.collect(wait=not sent)
        finally:
            self.flows, self.shared = {}, {}
        return self.outcome

    # which model each pool serves

    def switch_models(self) -> None:
        """Let the engine pool serve what the first unfinished engine node needs, once nothing else runs on it."""
        pool = self.actors.engines
        for flow in self.flows.values():
            node = flow.node
            if (
                flow.complete
                or node.op is None
                or node.op.place != "engine"
                or node.model is None
                or not self.job.has(node.model)
            ):
                continue
            wanted = self.job.label(node.model)
            if pool.model != wanted and pool.in_flight == 0:
                self.outcome.gaps[wanted] = self.actors.serve(
                    wanted, node.model.version, self.job.place(node.model)
                )
                self.job.folder.event("serve", model=wanted, replicas=len(pool.replicas))
            self.wanted = wanted
            return
        self.wanted = ""

    def active(self) -> set[str]:
        """Nodes that may run now: their model is served, or they need none."""
        return {name for name, flow in self.flows.items() if not flow.complete and self.may_run(flow)}

    def may_run(self, flow: Flow) -> bool:
        node = flow.node
        if flow.barrier:
            return all(source.complete for source in flow.inputs) and all(
                self.job.has(model) for model in node.models
            )
        assert node.op is not None
        if node.op.place == "engine":
            assert node.model is not None
            label = self.job.label(node.model) if self.job.has(node.model) else ""
            return label == self.actors.engines.model == self.wanted
        return all(self.job.has(model) for model in node.models)

    # sending

    def dispatch(self) -> int:
        """Send every batch that may be sent, last nodes first, so that the pipeline drains."""
        active = self.active()
        sent = 0
        for name in reversed(list(self.flows)):
            flow = self.flows[name]
            if name not in active:
                continue
            while self.send_next(flow, active):
                sent += 1
        for flow in self.flows.values():
            flow.evict(active)
        return sent

    def send_next(self, flow: Flow, active: set[str]) -> bool:
        """Send the flow's next batch if its inputs, a replica and room for its rows are there."""
        if flow.node.training is not None:
            return self.send_training(flow)
        if flow.barrier:
            return self.send_barrier(flow)
        count = flow.total
        if count is not None and flow.sent >= count:
            self.end(flow)
            return False
        pool = self.pool(flow)
        replica = pool.free()
        if count is None or replica is None or flow.backlog(active) >= AHEAD + 2 * len(pool.replicas):
            return False
        needs = flow.needs(flow.sent)
        data = [source.fetch(index) for source, index in needs]
        if any(one is None for one in data):
            return False
        self.send(Call(flow, flow.sent, pool, replica, data))
        flow.sent += 1
        flow.in_flight += 1
        return True

    def pool(self, flow: Flow) -> Pool:
        assert flow.node.op is not None
        return {"engine": self.actors.engines, "trainer": self.actors.trainer.pool}.get(
            flow.node.op.place, self.actors.workers
        )

    def send(self, call: Call) -> None:
        """Hand a batch to its replica."""
        node = call.flow.node
        assert call.replica is not None
        call.replica.in_flight += 1
        context = self.job.context(node, self.graph.iteration)
        method = call.replica.actor.run.options(num_returns=2)
        data, meta = method.remote(self.shared[node.name], context, *call.data)
        self.calls[meta] = call
        call.data = (call.data, data)
        self.job.folder.event(
            "batch", iteration=self.graph.iteration, node=node.name, batch=call.index, on=call.replica.name
        )

    def send_barrier(self, flow: Flow) -> bool:
        """Run a gather or a summary on its whole inputs, once."""
        replica = self.actors.workers.free()
        if flow.known is not None:
            self.end(flow)
        if flow.sent or replica is None:
            return False
        inputs = [[source.fetch(index) for index in range(source.total or 0)] for source in flow.inputs]
        replica.in_flight += 1
        method = replica.actor.gather.options(num_returns=2)
        context = self.job.context(flow.node, self.graph.iteration)
        data, meta = method.remote(self.shared[flow.node.name], context, self.job.batch_size, *inputs)
        self.calls[meta] = Call(flow, 0, self.actors.workers, replica, (inputs, data))
        flow.sent, flow.in_flight = 1, 1
        return True

    def send_training(self, flow: Flow) -> bool:
        """Start a train node: its rows are read from their parts by the trainer's ranks."""
        if flow.sent or self.actors.trainer.busy:
            return False
        self.actors.before_training()
        source = flow.inputs[0]
        stored = [source.fetch(index) for index in range(source.total or 0)]
        result = self.actors.trainer.train(self.job.train_work(flow.node, self.graph), stored)
        self.calls[result] = Call(flow, 0, None, None, None)
        flow.sent, flow.in_flight = 1, 1
        self.job.folder.event("train", iteration=self.graph.iteration, node=flow.node.name)
        return True

    # receiving

    def collect(self, wait: bool) -> None:
        """Take in what has finished; wait a moment for the first if there was nothing to send."""
        if not self.calls:
            return
        done, _ = ray.wait(list(self.calls), num_returns=1, timeout=0.2 if wait else 0)
        if done and len(self.calls) > 1:
            done, _ = ray.wait(list(self.calls), num_returns=len(self.calls), timeout=0)
        for ref in done:
            call = self.calls.pop(ref)
            if isinstance(call, Write):
                call.flow.committed(*self.get(ref, call.flow))
                self.note_commit(call.flow)
            else:
                self.receive(ref, call)

    def receive(self, ref: Any, call: Call) -> None:
        if call.replica is not None:
            call.replica.in_flight -= 1
        try:
            result = self.get(ref, call.flow)
        except RayActorError as error:
            self.again(call, error)
            return
        if call.flow.node.training is not None:
            self.finish_training(call.flow, result)
            return
        _, data = call.data
        splits = result.pop("splits", None)
        call.flow.finish(Batch(call.index, data, result))
        if splits is not None:
            self.split_barrier(call.flow, splits)
        self.report(call.flow)

    def get(self, ref: Any, flow: Flow) -> Any:
        """A result, or the typed error behind a failed call. A dead actor's RayActorError passes."""
        try:
            return ray.get(ref)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, SelfloopError):
                raise cause from None
            raise EngineError(
                f"node {flow.node.name!r} broke: {type(cause).__name__}: {cause}\n{error}"
            ) from None

    def again(self, call: Call, error: RayActorError) -> None:
        """A replica died: start another in its place, give it the weights, and send the batch again."""
        if call.replica is None or call.pool is None:
            raise EngineError(
                f"the trainer died while training node {call.flow.node.name!r}: {error}"
            ) from error
        if call.tries >= TRIES:
            raise EngineError(
                f"batch {call.index} of node {call.flow.node.name!r} ended {call.tries} replicas of {call.pool.name}; "
                f"it was not sent again. The last one: {error}"
            )
        self.job.folder.event("died", replica=call.replica.name, node=call.flow.node.name, batch=call.index)
        self.actors.revive(call.pool, call.replica)
        self.send(Call(call.flow, call.index, call.pool, call.replica, call.data[0], call.tries + 1))

    # committing

    def flush(self) -> None:
        """Give the writer what has gathered: enough rows, waited long enough, or the last batches of a node."""
        now = time.monotonic()
        for flow in self.flows.values():
            if not flow.waiting or flow.writing:
                continue
            since = self.flushed.setdefault(flow.node.name, now)
            rows = sum(batch.meta["rows"] for batch in flow.waiting)
            ended = flow.total is not None and flow.released >= flow.total
            if ended or rows >= PART_ROWS or now - since >= PART_SECONDS:
                self.write(flow, flow.waiting)
                flow.waiting = []
                self.flushed.pop(flow.node.name, None)

    def write(self, flow: Flow, batches: list[Batch]) -> None:
        metas = [
            meta
            for batch in batches
            for meta in (batch.meta if isinstance(batch.meta, list) else [batch.meta])
        ]
        folder = str(self.job.folder.node(self.graph.iteration, flow.node.name))
        first = len(flow.stored)
        ref = self.actors.writer.write.remote(
            folder, flow.parts, first, metas, *[batch.data for batch in batches]
        )
        flow.writing += 1
        self.calls[ref] = Write(flow, metas)

    def split_barrier(self, flow: Flow, splits: list[int]) -> None:
        """A barrier's rows become batches of their own once they are committed."""
        whole = flow.waiting.pop()
        flow.buffer.clear()
        flow.known = flow.released = len(splits)
        counts: list[Meta] = [{**whole.meta, "rows": splits[0]}, *({"rows": rows} for rows in splits[1:])]
        self.write(flow, [Batch(0, whole.data, counts)])  # type: ignore[arg-type]

    def note_commit(self, flow: Flow) -> None:
        last = flow.parts - 1
        self.job.folder.event(
            "commit", iteration=self.graph.iteration, node=flow.node.name, part=last, batches=len(flow.stored)
        )
        self.end(flow)

    def model_made(self, label: str, receipt: dict[str, str]) -> None:
        self.actors.trained(label, receipt)
