"""One node while it runs: which batches were sent, released in order, committed, and what its readers still need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfloop.workflows.data.batches import Counts
from selfloop.workflows.flow.graph import Graph, Node
from selfloop.workflows.flow.verbs.source import Saved, Source
from selfloop.workflows.run.job import Job
from selfloop.workflows.store.parts import Part, Stored

__all__ = ["Batch", "Flow", "make_flows"]

UNCOMMITTED = (
    32  # batches a node may be ahead of the disk before that holds it back: a part is of many batches
)


@dataclass
class Batch:
    """A finished batch: a reference to its rows, and their counts; of a barrier's rows those of each batch that they make."""

    index: int
    data: Any
    counts: Sequence[Counts]

    @property
    def rows(self) -> int:
        return sum(one.rows for one in self.counts)


@dataclass
class Flow:
    """A node's state. Batches leave it in order; a batch's rows are held only until it is committed and read."""

    node: Node
    inputs: list[Flow]
    readers: list[Flow] = field(default_factory=list)
    fixed: list[Any] | None = None  # a source's batches
    sent: int = 0
    released: int = 0
    in_flight: int = 0
    finished: dict[int, Batch] = field(default_factory=dict)  # not yet released
    buffer: dict[int, Any] = field(default_factory=dict)  # released, not yet committed and read
    waiting: list[Batch] = field(default_factory=list)  # released, not yet given to the writer
    writing: int = 0  # batches that the writer has
    stored: list[Stored] = field(default_factory=list)  # committed
    parts: int = 0
    checksums: list[str] = field(default_factory=list)
    complete: bool = False
    known: int | None = None  # number of batches, when it cannot be derived (a barrier's)
    key: str = ""  # content key, once the models it needs are known
    had: set[str] = field(default_factory=set)  # that key, and those of before settings changed on its way
    written: str = ""  # content key that its committed parts carry
    made: list[dict[str, Any]] = field(
        default_factory=list
    )  # `store.changes.made_under` of its committed parts, in order
    batch_size: int = 0  # prompts a batch
    counted: Counts = field(default_factory=Counts)

    @property
    def about(self) -> dict[str, Any]:
        """What its parts and its entry in the manifest say of how it was made."""
        return {"key": self.key, "batch_size": self.batch_size, "made": self.made}

    @property
    def barrier(self) -> bool:
        return self.node.training is not None or (self.node.op is not None and self.node.op.barrier)

    @property
    def in_turn(self) -> bool:
        """Whether its batches are those of one input after the other."""
        return self.node.op is not None and self.node.op.takes == "in turn"

    @property
    def beside(self) -> Flow | None:
        """The input that every batch gets whole, once it is complete."""
        more = self.inputs[len(self.node.row_inputs) :]
        return more[0] if more and not self.barrier else None

    def followers(self, active: set[str]) -> list[Flow]:
        """The active readers that take batch after batch."""
        return [
            flow
            for flow in self.readers
            if flow.node.name in active and not flow.barrier and flow.beside is not self
        ]

    @property
    def total(self) -> int | None:
        """How many batches it will have; None while a barrier before it has not ended."""
        if self.fixed is not None:
            return len(self.fixed)
        if self.barrier:
            return self.known
        totals = [flow.total for flow in (self.inputs[:1] if self.beside else self.inputs)]
        if any(count is None for count in totals):
            return None
        counts = [count for count in totals if count is not None]
        return sum(counts) if self.in_turn else max(counts)

    def fetch(self, index: int) -> Any:
        """A batch's rows: a table or reference while held, else where they are committed; None if not there yet."""
        if self.fixed is not None:
            return self.fixed[index]
        if index in self.buffer:
            return self.buffer[index]
        return self.stored[index] if index < len(self.stored) else None

    def whole(self) -> list[Any]:
        """All batches of a complete node, as a barrier reads them: committed ones from their parts."""
        return list(self.stored if self.fixed is None else self.fixed)

    def needs(self, index: int) -> list[tuple[Flow, int]]:
        """The input batches that batch `index` is made from."""
        if self.in_turn:
            for flow in self.inputs:
                count = flow.total or 0
                if index < count:
                    return [(flow, index)]
                index -= count
            raise IndexError(index)
        if self.beside:
            return [(self.inputs[0], index)]
        return [(flow, index) for flow in self.inputs]

    def finish(self, batch: Batch) -> None:
        """A batch came back: release it and its followers if it is their turn."""
        self.in_flight -= 1
        self.finished[batch.index] = batch
        while self.released in self.finished:
            ready = self.finished.pop(self.released)
            self.buffer[ready.index] = ready.data
            self.waiting.append(ready)
            self.released += 1

    def committed(self, part: Part, checksum: str) -> None:
        """A part of this node exists now."""
        self.writing -= len(part.batches)
        self.take(part)
        self.checksums.append(checksum)

    def take(self, part: Part) -> None:
        """Count a part's batches as committed."""
        self.stored += part.stored()
        self.counted = sum(part.batches, self.counted)
        self.parts += 1

    def resume(self, parts: Iterable[Part]) -> None:
        """Go on after these committed parts. Those behind a gap are deleted: what comes instead may be cut otherwise."""
        for part in parts:
            if part.first == len(self.stored):
                self.written, self.made = part.about.get("key", ""), part.about.get("made", [])
                self.take(part)
            else:
                Path(part.path).unlink(missing_ok=True)
        self.sent = self.released = len(self.stored)
        if self.barrier and self.stored:
            self.sent, self.known = 1, len(self.stored)

    def handed(self, index: int) -> bool:
        """Whether the writer has this batch, or its node is given: what is made of it is committed after it."""
        return self.fixed is not None or index < len(self.stored) + self.writing

    def evict(self, active: set[str]) -> None:
        """Let go of rows that are committed and that no active reader still has to read."""
        oldest = min((flow.sent for flow in self.followers(active)), default=None)
        limit = len(self.stored) if oldest is None else min(len(self.stored), oldest)
        if any(flow.in_turn for flow in self.readers):
            limit = len(self.stored)
        for index in [index for index in self.buffer if index < limit]:
            del self.buffer[index]

    def backlog(self, active: set[str]) -> int:
        """Batches released or in flight that an active reader has not taken yet, or that wait for the writer."""
        readers = [flow for flow in self.followers(active) if not flow.in_turn]
        unread = max((self.sent - flow.sent for flow in readers), default=0)
        return max(unread, self.sent - len(self.stored) - UNCOMMITTED)


def make_flows(graph: Graph, job: Job) -> dict[str, Flow]:
    """The state of every node at the start of an iteration, with what is already committed taken over."""
    flows: dict[str, Flow] = {}
    for node in graph:
        flow = Flow(node, [flows[name] for name in node.inputs])
        flows[node.name] = flow
        for source in flow.inputs:
            source.readers.append(flow)
    sizes = batch_sizes(graph, job)
    for name, flow in flows.items():
        flow.batch_size = sizes[name]
        if isinstance(flow.node.op, Source | Saved):
            flow.fixed = list(job.sources.batches(flow.node.op, flow.batch_size))
            flow.complete = True
        elif flow.node.training is None:
            flow.resume(job.folder.parts(graph.iteration, name))
    return flows


def batch_sizes(graph: Graph, job: Job) -> dict[str, int]:
    """Prompts a batch of each node: what it was started with, and the nodes that are cut into the same batches with it.

    These are the nodes between two barriers, and those behind sources that take the same rows: their batches are joined.
    """
    heads: dict[Any, Any] = {}

    def head(name: Any) -> Any:
        while name in heads:
            name = heads[name]
        return name

    for node in graph:
        same: list[Any] = list(node.row_inputs)
        if isinstance(node.op, Source | Saved):
            same = [node.op.taken]
        elif node.op is None or node.op.cuts:
            same = []
        for other in same:
            if head(other) != head(node.name):
                heads[head(other)] = head(node.name)
    begun = {head(name): size for name, size in job.begun(graph).items()}
    return {node.name: begun.get(head(node.name), job.batch_size) for node in graph}
