"""Pools of replicas: actors of one kind, each with a bounded number of batches in flight, and which of them are dead."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError

__all__ = ["Pool", "Replica", "deaths", "died", "rows_lost"]

PING_SECONDS = 10.0  # a dead actor is told of at once; one that has not answered by then is busy or starts


@dataclass
class Replica:
    """One actor and what is in flight on it. generation: how many actors have stood in this place before."""

    name: str
    actor: Any
    in_flight: int = 0
    generation: int = 0
    heard: float = field(default_factory=time.monotonic)  # when it last answered, or was sent work while idle


class Pool:
    """Replicas that `make(index)` starts; work goes to the least loaded one."""

    def __init__(self, name: str, size: int, limit: int, make: Callable[[int], Any]):
        self.name = name
        self.limit = limit
        self.make = make
        self.replicas = [Replica(f"{name}-{index}", make(index)) for index in range(size)]
        self.model = ""

    def free(self) -> Replica | None:
        """The least loaded replica, if any may take one more batch."""
        replica = min(self.replicas, key=lambda one: one.in_flight)
        return replica if replica.in_flight < self.limit else None

    @property
    def in_flight(self) -> int:
        return sum(replica.in_flight for replica in self.replicas)

    def replace(self, replica: Replica) -> None:
        """Start a fresh actor in the place of a dead one."""
        ray.kill(replica.actor, no_restart=True)
        replica.actor = self.make(self.replicas.index(replica))
        replica.generation += 1
        replica.in_flight, replica.heard = 0, time.monotonic()

    def mend(self) -> None:
        """Put fresh actors in the places of dead ones."""
        for place in deaths([replica.actor for replica in self.replicas]):
            self.replace(self.replicas[place])

    def close(self) -> None:
        for replica in self.replicas:
            ray.kill(replica.actor, no_restart=True)


def died(error: BaseException) -> bool:
    """Whether an actor's process or node ended; one that could not even start is broken, and not to be started again."""
    return isinstance(error, RayActorError) and not error.actor_init_failed


def rows_lost(error: BaseException) -> bool:
    """Whether rows in the object store went with the node that held them."""
    cause = error.cause if isinstance(error, RayTaskError) else None
    return isinstance(error, ObjectLostError) or isinstance(cause, ObjectLostError)


def deaths(actors: list[Any]) -> dict[int, RayError]:
    """Which of these actors are dead, by place, with the error; a busy or a starting one is not."""
    refs = [actor.ready.remote() for actor in actors]
    answered, _ = ray.wait(refs, num_returns=len(refs), timeout=PING_SECONDS)
    found: dict[int, RayError] = {}
    for place, ref in enumerate(refs):
        try:
            if ref in answered:
                ray.get(ref)
        except RayActorError as error:
            if not died(error):
                raise
            found[place] = error
    return found
