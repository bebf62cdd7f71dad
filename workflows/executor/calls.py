"""What is in flight: batches on replicas and parts on their way to the disk, and what happens when an actor dies.

Executing is at-least-once: a batch whose replica died is sent again, to a fresh actor that has loaded the current
weights; one that ends its replicas again and again is sent row by row, and the row that does it becomes a failed row.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from selfloop.workflows.data.batches import Counts, count_batch
from selfloop.workflows.errors import EngineError, SelfloopError, StoreError
from selfloop.workflows.executor.actors import Actors
from selfloop.workflows.executor.pools import Pool, Replica, died, rows_lost
from selfloop.workflows.run.job import Job
from selfloop.workflows.run.node import Flow
from selfloop.workflows.store.disk import is_full, unwritten
from selfloop.workflows.store.parts import packed, read_batches

__all__ = ["Call", "Calls", "RowsLost", "Write"]

TRIES = 3  # times a batch is sent whole before it is sent row by row


class RowsLost(Exception):
    """Rows that were not committed yet went with the node that held them."""


@dataclass
class Call:
    """A batch on its way. args: what the replica's method gets after the op and the context."""

    flow: Flow
    index: int
    pool: Pool
    replica: Replica
    args: tuple[Any, ...]
    method: str = "run"
    generation: int = 0
    tries: int = 1
    data: Any = None


@dataclass
class Write:
    """A part on its way to the disk."""

    flow: Flow
    args: tuple[Any, ...]


class Calls:
    """Sends, waits and sends again."""

    def __init__(self, job: Job, actors: Actors, patience: float):
        self.job = job
        self.actors = actors
        self.patience = patience
        self.running: dict[Any, Call | Write] = {}
        self.ops: dict[str, Any] = {}
        self.iteration = 0

    def begin(self, iteration: int, ops: dict[str, Any]) -> None:
        """A new iteration: its ops, put into the object store once."""
        self.iteration, self.ops, self.running = (
            iteration,
            {name: ray.put(op) for name, op in ops.items()},
            {},
        )

    def send(self, call: Call) -> None:
        """Hand a batch to its replica."""
        node, replica = call.flow.node, call.replica
        if not replica.in_flight:
            replica.heard = time.monotonic()
        replica.in_flight += 1
        call.generation = replica.generation
        method = getattr(replica.actor, call.method).options(num_returns=2)
        given = (self.ops[node.name], self.job.context(node, self.iteration), *map(packed, call.args))
        call.data, meta = method.remote(*given)
        if call.pool is self.actors.trainer.pool:  # a forward over several ranks needs every one of them
            for rank in self.actors.trainer.ranks[1:]:
                rank.run.remote(*given)
        self.running[meta] = call
        self.job.folder.event(
            "batch", iteration=self.iteration, node=node.name, batch=call.index, on=replica.name
        )

    def write(self, flow: Flow, *args: Any) -> None:
        """Hand consecutive batches to the writer."""
        writer = self.actors.writers.replicas[0].actor
        self.running[writer.write.remote(*args)] = Write(flow, args)

    def finished(self, wait: float) -> Iterator[tuple[Call | Write, Any]]:
        """What has come back, at least one if any comes within `wait` seconds; deaths are dealt with here."""
        if not self.running:
            return
        done, _ = ray.wait(list(self.running), num_returns=1, timeout=wait)
        if done and len(self.running) > 1:
            done, _ = ray.wait(list(self.running), num_returns=len(self.running), timeout=0)
        for ref in done:
            call = self.running.pop(ref, None)
            if call is None:
                continue
            try:
                result = ray.get(ref)
            except RayError as error:
                began = time.monotonic()
                result = self.failed(call, error)
                self.not_heard_since(began)
                if result is None:
                    continue
            else:
                self.heard(call)
            yield call, result
        self.kill_the_stuck()

    def heard(self, call: Call | Write) -> None:
        if isinstance(call, Call) and call.generation == call.replica.generation:
            call.replica.in_flight -= 1
            call.replica.heard = time.monotonic()

    def not_heard_since(self, began: float) -> None:
        """While an actor was started anew nobody's answers were taken: that time counts against no replica."""
        for replica in self.actors.engines.replicas:
            replica.heard += time.monotonic() - began

    def failed(self, call: Call | Write, error: RayError) -> Counts | None:
        """What becomes of a call that failed: sent again after a death, else the typed error behind it is raised."""
        name = call.flow.node.name
        if rows_lost(error):
            raise RowsLost(name) from error
        if died(error):
            return self.died(call, error)
        if isinstance(call, Call) and call.pool is self.actors.trainer.pool:
            if call.generation != call.replica.generation:
                return self.died(call, error)  # the group was rebuilt under it
            dead = self.actors.trainer.dead()  # one rank lost its peer
            if dead is not None:
                return self.died(call, dead)
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, SelfloopError):
            raise cause from None
        if is_full(cause):
            raise StoreError(unwritten(self.job.folder.path, f"what node {name!r} keeps", cause)) from None
        raise EngineError(f"node {name!r} broke: {type(cause).__name__}: {cause}\n{error}") from None

    def drain(self) -> None:
        """Let everything in flight end, whatever becomes of it."""
        if self.running:
            done, _ = ray.wait(list(self.running), num_returns=len(self.running), timeout=self.patience)
            for ref in done:
                with suppress(RayError):  # their errors are known, or of no more interest
                    ray.get(ref)
        self.running = {}
        for pool in (self.actors.engines, self.actors.workers, self.actors.trainer.pool):
            for replica in pool.replicas:
                replica.in_flight = 0

    # deaths

    def died(self, call: Call | Write, error: RayError) -> Counts | None:
        """An actor died with this call on it: put another in its place once, then send the call again."""
        if isinstance(call, Write):
            self.job.folder.event("died", replica="writer", node=call.flow.node.name)
            self.actors.writers.mend()
            self.write(call.flow, *call.args)
            return None
        replica = call.replica
        self.job.folder.event("died", replica=replica.name, node=call.flow.node.name, batch=call.index)
        if call.generation == replica.generation:
            self.actors.mender.revive(call.pool, replica)
        if call.tries >= TRIES:
            return self.row_by_row(call, error)
        call.tries += 1
        self.send(call)
        return None

    def kill_the_stuck(self) -> None:
        """An engine that has answered nothing for too long is ended, and its batches are sent again as after a death."""
        now = time.monotonic()
        for replica in self.actors.engines.replicas:
            if replica.in_flight and now - replica.heard > self.patience:
                self.job.folder.event("stuck", replica=replica.name, seconds=round(now - replica.heard))
                replica.heard = now
                ray.kill(replica.actor, no_restart=True)

    def row_by_row(self, call: Call, error: RayError) -> Counts:
        """Find the row that ends its replicas: it becomes a failed row, all others are computed."""
        node = call.flow.node
        assert node.op is not None
        if not node.op.fails or call.method != "run":
            raise EngineError(
                f"batch {call.index} of node {node.name!r} ended {call.tries} {call.pool.name} actors: {error}"
            )
        self.job.folder.event("row by row", node=node.name, batch=call.index)
        given = call.args[0]
        whole = read_batches([ray.get(given) if isinstance(given, ray.ObjectRef) else given])[0]
        context = self.job.context(node, self.iteration)
        tables: list[pa.Table] = []
        for piece in prompt_groups(whole):
            try:
                refs = call.replica.actor.run.options(num_returns=2).remote(
                    self.ops[node.name], context, piece, *call.args[1:]
                )
                tables += read_batches([ray.get(refs, timeout=self.patience)[0]])
            except (RayActorError, GetTimeoutError) as death:
                self.actors.mender.revive(call.pool, call.replica)
                tables.append(
                    node.op.failed(piece, context, f"it ended the {call.pool.name}: {type(death).__name__}")
                )
        table = pa.concat_tables(tables, promote_options="default")
        call.data = ray.put(packed(table))
        return count_batch(table, 0.0)


def prompt_groups(table: pa.Table) -> Iterator[pa.Table]:
    """One table a prompt group."""
    ids = table["prompt_id"].to_pylist()
    starts = [place for place in range(len(ids)) if place == 0 or ids[place] != ids[place - 1]]
    for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        yield table.slice(start, end - start)
