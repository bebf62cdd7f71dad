"""Pools of replicas: actors of one kind, each with a bounded number of batches in flight."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray

from selfloop.workflows.executor.deaths import deaths

__all__ = ["Pool", "Replica"]


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

    def every(self, method: str, *args: Any, timeout: float | None = None) -> list[Any]:
        """Call a method on all replicas and wait for all."""
        return ray.get([getattr(one.actor, method).remote(*args) for one in self.replicas], timeout=timeout)

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
