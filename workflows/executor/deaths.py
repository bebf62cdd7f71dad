"""What happens when actors of a run die: fresh ones stand in for them, engines with proven weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ray.exceptions import RayError

from selfloop.workflows.executor.pools import Pool, Replica, deaths, died, rows_lost
from selfloop.workflows.executor.publish import ASLEEP, Publisher

__all__ = ["Mender"]

T = TypeVar("T")

TRIES = 5  # times the actors are mended before their deaths are the user's to look at


class Mender:
    """Replaces dead actors. others: pools that serve no model."""

    def __init__(self, publisher: Publisher, *others: Pool):
        self.publisher = publisher
        self.engines = publisher.engines
        self.trainer = publisher.trainer
        self.others = others

    def until_alive(self, work: Callable[[], T], mend: Callable[[], None] | None = None) -> T:
        """The result of `work`, which asks many actors; where one of them is dead, `mend` (all of them) and ask again."""
        for attempt in range(TRIES):
            try:
                return work()
            except RayError as error:
                lost = died(error) or rows_lost(error) or self.trainer.dead() is not None
                if not lost or attempt == TRIES - 1:
                    raise
                (mend or self.mend)()
        raise AssertionError("not reached")

    def mend(self) -> None:
        """Put fresh actors in the places of dead ones. Engines serve nothing until they are published to again."""
        for pool in (self.engines, *self.others):
            pool.mend()
        self.trainer.mend()
        self.engines.model = ""

    def revive(self, pool: Pool, replica: Replica) -> None:
        """Start a fresh actor for a dead one; an engine gets the current weights, proven, before it answers."""
        if pool is self.trainer.pool:
            self.trainer.rebuild()
            return
        pool.replace(replica)
        if pool is not self.engines or pool.model in ("", ASLEEP):
            return

        def mend() -> None:  # but for the other engines, which go on serving
            if deaths([replica.actor]):
                pool.replace(replica)
            self.trainer.mend()

        self.until_alive(lambda: self.publisher.catch_up(replica), mend)
