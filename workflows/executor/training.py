"""The trainer's ranks as a group of actors, and a training under way that survives the death of one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from selfloop.actors.train.rank import RankActor
from selfloop.actors.train.spec import TrainerSpec, TrainNode
from selfloop.actors.train.telling import Told
from selfloop.workflows.errors import SelfloopError, StoreError, TrainerError
from selfloop.workflows.executor.pools import Pool, deaths, died
from selfloop.workflows.run.node import Flow
from selfloop.workflows.store.disk import is_full, unwritten

__all__ = ["TrainerGroup", "TrainingCall"]

TRIES = 5  # times a training is started before its deaths are the user's to look at
NEWS_SECONDS = 1.0  # between two questions how far a training is
MEASURES = 2  # batches in flight of `measure` nodes: one is computed, the next lies ready


class TrainerGroup:
    """The driver's handle of all rank actors. All take part in every call; the first one's answer counts. `loaded`: the
    model they hold."""

    def __init__(self, spec: TrainerSpec, options: Sequence[dict[str, Any]], fake: bool = False):
        self.spec = spec
        self.options = options
        self.fake = fake
        self.loaded = ""
        self.pool = Pool("trainer", 1, MEASURES, self.start)

    def start(self, _: int) -> Any:
        """Start all ranks; the pool knows the first."""
        self.loaded = ""
        remote: Any = ray.remote
        made = remote(concurrency_groups={"beside": 1})(RankActor)
        self.ranks: list[Any] = [
            made.options(**options).remote(self.spec, index, self.fake)
            for index, options in enumerate(self.options)
        ]
        address = self.ranks[0].address.remote()
        self.joined = [rank.join.remote(address) for rank in self.ranks]
        return self.ranks[0]

    def train(self, node: TrainNode) -> list[Any]:
        """Start training on every rank; the references resolve to their TrainResults."""
        self.loaded = ""
        return [rank.train.remote(node) for rank in self.ranks]

    def logprobs(
        self, folder: str | None, contexts: list[list[int]], targets: list[list[int]]
    ) -> list[list[float]]:
        """Log-probs under the weights of a folder (None: the ones now loaded)."""
        return ray.get([rank.logprobs.remote(folder, contexts, targets) for rank in self.ranks])[0]

    def rebuild(self) -> None:
        """End all ranks and start the group anew, e.g. because one of them died."""
        self.close()
        self.pool.replace(self.pool.replicas[0])

    def mend(self) -> None:
        """Start the group anew if one of its ranks is dead."""
        if self.dead() is not None:
            self.rebuild()

    def dead(self) -> RayError | None:
        """The error of a rank that is dead, if any is (asked when another rank lost its peer)."""
        return next(iter(deaths(self.ranks).values()), None)

    def close(self) -> None:
        for rank in self.ranks:
            ray.kill(rank, no_restart=True)


class TrainingCall:
    """A train node under way. A rank that dies ends the group, which is rebuilt and goes on from its last checkpoint."""

    def __init__(self, flow: Flow, group: TrainerGroup, node: TrainNode, event: Callable[..., None]):
        self.flow = flow
        self.group = group
        self.node = node
        self.event = event
        self.tries = 0
        self.asked: tuple[float, Any] = (0.0, None)
        self.start()

    def start(self) -> None:
        self.tries += 1
        self.refs = self.group.train(self.node)
        self.generation = self.group.pool.replicas[0].generation

    def wait(self, seconds: float) -> None:
        """Wait for a rank to end, at most this long."""
        ray.wait(self.refs, num_returns=1, timeout=seconds)

    def poll(self) -> Any:
        """The result once all ranks are done, None before."""
        done, running = ray.wait(self.refs, num_returns=len(self.refs), timeout=0)
        try:
            results = ray.get(done)
        except RayActorError as error:
            if not died(error):
                raise
            return self.again(error)
        except RayTaskError as error:
            if self.rebuilt:
                return self.again(error)
            dead = self.group.dead()
            if dead is not None:
                return self.again(dead)
            cause = error.cause
            if isinstance(cause, SelfloopError):
                raise cause from None
            name = self.flow.node.name
            if is_full(cause):
                raise StoreError(
                    unwritten(Path(self.node.work.out), "what the trainer keeps", cause)
                ) from None
            raise TrainerError(f"node {name!r} broke: {type(cause).__name__}: {cause}\n{error}") from None
        return None if running else results[0]

    def news(self) -> Told | None:
        """What the first rank says of its training; asked once a second, and never waited for."""
        (at, asked), now = self.asked, time.monotonic()
        if asked is None:
            if now - at >= NEWS_SECONDS:
                progress = self.group.ranks[0].progress.options(concurrency_group="beside")
                self.asked = (now, progress.remote())
            return None
        if ray.wait([asked], timeout=0)[0]:
            self.asked = (at, None)
            with suppress(RayError):  # of a rank that died: `poll` deals with it
                return ray.get(asked)
        return None

    def again(self, error: Exception) -> None:
        self.event("died", replica="trainer", node=self.flow.node.name)
        if self.tries >= TRIES:
            raise TrainerError(
                f"node {self.flow.node.name!r}: the trainer died {self.tries} times, so it was not started again. Too little "
                f"memory is the usual reason: lower trainer.tokens_per_micro_batch, or raise trainer.zero. The last one: {error}"
            )
        if not self.rebuilt:
            self.group.rebuild()
        self.start()

    @property
    def rebuilt(self) -> bool:
        """Whether the group was started anew for another call since."""
        return self.generation != self.group.pool.replicas[0].generation
