"""The streaming executor: runs a graph over Ray actors. The driver handles references only; rows stay in the object store.

Each node sends batches in order to the least loaded replica that serves its model, a bounded number in flight, and
releases results in order to its readers and to the writer. Nodes that need different versions of one pool run in turn;
what is released meanwhile is read back from its committed parts instead of pushing back.
"""

from __future__ import annotations

import time
from functools import partial
from itertools import takewhile

from selfloop.actors.train.telling import Told
from selfloop.workflows.errors import EngineError
from selfloop.workflows.executor.actors import Actors
from selfloop.workflows.executor.calls import Call, Calls, RowsLost, Write
from selfloop.workflows.executor.pools import Pool
from selfloop.workflows.executor.publish import Published
from selfloop.workflows.executor.training import TrainingCall
from selfloop.workflows.flow.graph import Graph, ModelRef
from selfloop.workflows.run.job import Job
from selfloop.workflows.run.node import Batch, Flow
from selfloop.workflows.run.outcome import Outcome
from selfloop.workflows.run.runner import PART_ROWS, Runner

__all__ = ["Executor"]

AHEAD = 4  # batches a node may be ahead of its slowest reader, beyond what fills the replicas
LOSSES = 20  # times an iteration goes on after a node was lost with rows on it
PART_SECONDS = 5.0  # a part is also written when its first batch has waited this long
IDLE_SECONDS = (
    0.2  # for an answer when nothing can be sent; then parts that are due and stuck engines are looked at
)
TRAINING_SECONDS = (
    0.02  # the same while a training runs: its end is no answer to a batch, and would be seen late
)
DRAIN_SECONDS = 1.0  # between two looks at a training that must end before an iteration goes back


class Executor(Runner):
    """Runs one iteration's graph at a time; the actors live on between iterations.

    streaming: False lets every node end before the next one starts, to compare with.
    """

    streaming = True

    def __init__(self, job: Job, actors: Actors, patience: float = 600.0):
        super().__init__(job)
        self.actors = actors
        self.calls = Calls(job, actors, patience)
        self.flushed: dict[str, float] = {}
        self.wanted = ""
        self.training: TrainingCall | None = None
        self.seen: tuple[int, str, str] = (0, "", "")

    def run(self, graph: Graph) -> Outcome:
        """Run every node that is not complete yet; returns the models made and the numbers measured."""
        gaps: dict[str, float | None] = {}
        for _ in range(LOSSES):
            self.begin(graph)
            self.outcome.gaps = gaps
            self.calls.begin(graph.iteration, {node.name: node.op for node in graph if node.op is not None})
            try:
                return self.go(graph)
            except RowsLost as loss:
                self.go_back(str(loss))
        raise EngineError(
            f"iteration {graph.iteration} lost rows {LOSSES} times because nodes of the cluster went away"
        )

    def go_back(self, node: str) -> None:
        """After the loss of a cluster node that held rows: go on from what is committed, as a resumed run does."""
        self.job.folder.event("lost", iteration=self.graph.iteration, node=node)
        self.calls.drain()
        while self.training is not None:
            self.training.wait(DRAIN_SECONDS)
            result = self.training.poll()
            if result is not None:
                call, self.training = self.training, None
                self.finish_training(call.flow, call.node.work, result)
        self.actors.mender.mend()

    def go(self, graph: Graph) -> Outcome:
        self.seen = (-1, "", "")
        while not all(flow.complete for flow in self.flows.values()):
            self.switch_models()
            sent = self.dispatch()
            idle = not sent and not self.calls.running and self.training is None
            self.flush(everything=idle)
            if idle and not self.calls.running and not self.advanced():
                names = ", ".join(self.unfinished())
                raise EngineError(
                    f"the executor has nothing left to do in iteration {graph.iteration}, yet these nodes are not complete: "
                    f"{names}. This is a fault of the executor; please report it"
                )
            self.collect(wait=0.0 if sent else IDLE_SECONDS)
        return self.outcome

    def unfinished(self) -> list[str]:
        return [name for name, flow in self.flows.items() if not flow.complete]

    def advanced(self) -> bool:
        """Whether the last look at all nodes completed one or made another model served, so that more may be sent now."""
        state = (len(self.unfinished()), self.actors.engines.model, self.wanted)
        changed, self.seen = state != self.seen, state
        return changed

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
                or not self.job.models.has(node.model)
            ):
                continue
            wanted = node.model.label
            if pool.model != wanted and pool.in_flight == 0 and not self.resting():
                model = Published(wanted, node.model.version, self.job.models.place(node.model))
                publish = partial(self.actors.publisher.publish, model)
                with self.job.doing(f"the engines get the weights of {wanted}"):
                    self.outcome.gaps[wanted] = self.actors.mender.until_alive(publish)
                self.job.folder.event("serve", model=wanted, replicas=len(pool.replicas))
            self.wanted = wanted
            return
        self.wanted = ""

    def active(self) -> set[str]:
        """Nodes that may run now: their model is served, or they need none, and so do the nodes before them. A node that
        waits for one that does not run must hold back none of its other inputs. Without streaming only the first."""
        names: list[str] = []
        for name, flow in self.flows.items():
            running = all(
                one.complete or (one.node.name in names and one is not flow.beside) for one in flow.inputs
            )
            if not flow.complete and running and self.may_run(flow):
                names.append(name)
        return set(names if self.streaming else names[:1])

    def may_run(self, flow: Flow) -> bool:
        node = flow.node
        if flow.barrier:
            return all(source.complete for source in flow.inputs) and all(
                self.job.models.has(model) for model in node.models
            )
        assert node.op is not None
        if node.op.place == "engine":
            assert node.model is not None
            served = node.model.label == self.actors.engines.model == self.wanted
            return served and self.job.models.has(node.model) and not self.resting()
        ready = all(self.job.models.has(model) for model in node.models)
        return ready and (node.op.place != "trainer" or node.model == self.measured())

    def resting(self) -> bool:
        """Whether engines get nothing more for now: a training runs on their GPUs, or could."""
        return self.actors.in_turn and any(
            flow.node.training is not None and not flow.complete and self.may_run(flow)
            for flow in self.flows.values()
        )

    def measured(self) -> ModelRef | None:
        """The model that may be measured now: loading another one for every batch would cost more than measuring it."""
        for flow in self.flows.values():
            op, model = flow.node.op, flow.node.model
            if op and op.place == "trainer" and not flow.complete and model and self.job.models.has(model):
                return model
        return None

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
        if any(one is None for one in data) or (flow.beside and not flow.beside.complete):
            return False
        data += flow.beside.whole() if flow.beside else []
        self.calls.send(Call(flow, flow.sent, pool, replica, tuple(data)))
        flow.sent += 1
        flow.in_flight += 1
        if flow.sent == 1:
            self.report(flow)
        return True

    def pool(self, flow: Flow) -> Pool:
        assert flow.node.op is not None
        return {"engine": self.actors.engines, "trainer": self.actors.trainer.pool}.get(
            flow.node.op.place, self.actors.workers
        )

    def send_barrier(self, flow: Flow) -> bool:
        """Run a gather or a summary on its whole inputs, once."""
        replica = self.actors.workers.free()
        if flow.known is not None:
            self.end(flow)
        if flow.sent or replica is None:
            return False
        inputs = [source.whole() for source in flow.inputs]
        args = (flow.batch_size, *inputs)
        self.calls.send(Call(flow, 0, self.actors.workers, replica, args, "gather"))
        flow.sent, flow.in_flight = 1, 1
        self.report(flow)
        return True

    def send_training(self, flow: Flow) -> bool:
        """Run a train node: its rows are read from their parts by the trainer's ranks. Other nodes go on meanwhile."""
        if flow.sent:
            if self.training is not None and self.training.flow is flow:
                result = self.training.poll()
                if result is not None:
                    node, self.training = self.training.node, None
                    self.finish_training(flow, node.work, result)
                elif (told := self.training.news()) is not None:
                    self.told(flow, told)
            return False
        if self.training is not None or self.actors.trainer.pool.in_flight:
            return False
        if self.actors.in_turn and self.actors.engines.in_flight:
            return False
        if self.carry_over(flow):
            return False
        self.told(flow, Told("its rows are gathered"))
        if self.actors.in_turn:
            self.actors.publisher.sleep()
        node = self.job.train_node(flow.node, self.graph, flow.inputs[0].whole())
        self.drop_steps(flow, node.work)
        self.job.folder.event("train", iteration=self.graph.iteration, node=flow.node.name)
        self.training = TrainingCall(flow, self.actors.trainer, node, self.job.folder.event)
        flow.sent, flow.in_flight = 1, 1
        return True

    # receiving

    def collect(self, wait: float) -> None:
        """Take in what has finished; wait a moment for the first if there was nothing to send."""
        if not self.calls.running and self.training is not None:
            self.training.wait(wait)
        for call, result in self.calls.finished(min(wait, TRAINING_SECONDS) if self.training else wait):
            if isinstance(call, Write):
                call.flow.committed(*result)
                self.note_commit(call.flow)
                continue
            whole = call.flow.barrier
            call.flow.finish(Batch(call.index, call.data, result if whole else [result]))
            if whole:
                self.split_barrier(call.flow)
            self.report(call.flow)

    # committing

    def flush(self, everything: bool) -> None:
        """Give the writer what has gathered: enough rows, waited long enough, or the last batches of a node. It writes in the
        order in which it is asked, so that no batch is committed before those that it was made from."""
        now = time.monotonic()
        for flow in self.flows.values():
            if not flow.waiting or flow.writing:
                continue
            since = self.flushed.setdefault(flow.node.name, now)
            ready = list(takewhile(partial(follows, flow), flow.waiting))
            ended = flow.total is not None and flow.released >= flow.total
            enough = sum(batch.rows for batch in ready) >= PART_ROWS
            if ready and (everything or ended or enough or now - since >= PART_SECONDS):
                self.write(flow, ready)
                del flow.waiting[: len(ready)]
                self.flushed.pop(flow.node.name, None)

    def write(self, flow: Flow, batches: list[Batch]) -> None:
        counts = [one for batch in batches for one in batch.counts]
        folder = str(self.job.folder.node(self.graph.iteration, flow.node.name))
        self.calls.write(
            flow, folder, flow.parts, len(flow.stored), counts, flow.about, *[batch.data for batch in batches]
        )
        flow.writing += len(counts)

    def split_barrier(self, flow: Flow) -> None:
        """A barrier's rows become batches of their own once they are committed."""
        whole = flow.waiting.pop()
        flow.buffer.clear()
        flow.known = flow.released = len(whole.counts)
        self.write(flow, [whole])

    def note_commit(self, flow: Flow) -> None:
        last = flow.parts - 1
        self.job.folder.event(
            "commit", iteration=self.graph.iteration, node=flow.node.name, part=last, batches=len(flow.stored)
        )
        self.end(flow)

    def model_made(self, label: str) -> None:
        self.actors.trainer.loaded = label


def follows(flow: Flow, batch: Batch) -> bool:
    """Whether the writer has all that a batch was made from."""
    return all(source.handed(index) for source, index in flow.needs(batch.index))
