"""Which errors of Ray mean that an actor is dead, or that rows went with a node."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError

__all__ = ["deaths", "died", "rows_lost"]

PING_SECONDS = 10.0


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
