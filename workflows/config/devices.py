"""Which devices a run asks for, and where: one placement group, engines and trainer beside each other or apart."""

from __future__ import annotations

import os
from dataclasses import dataclass

from selfloop.workflows.config.settings import Config

__all__ = ["Shares", "bundles", "joins", "shares"]


def joins() -> bool:
    """Whether RAY_ADDRESS or a job names a cluster to join."""
    return bool(os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"))


@dataclass(frozen=True)
class Shares:
    """CPUs and GPUs of one generator replica and of one trainer rank."""

    generator: dict[str, float]
    rank: dict[str, float]


def shares(config: Config, gpus: int) -> Shares:
    """What one actor of each kind takes; without an explicit number, a GPU each where there are GPUs."""
    default = 1.0 if gpus else 0.0
    generator, trainer = config.generator, config.trainer
    return Shares(
        {"CPU": float(generator.threads), "GPU": default if generator.gpus is None else generator.gpus},
        {"CPU": float(trainer.threads), "GPU": default if trainer.gpus is None else trainer.gpus},
    )


def bundles(config: Config, gpus: int) -> list[dict[str, float]]:
    """The bundles of the placement group. `separate`: generators first, then ranks, a bundle each.

    `colocated`: the i-th generator and the i-th rank share bundle i and take turns; it is as large as the larger one.
    """
    share = shares(config, gpus)
    generators = [share.generator] * config.generator.replicas
    ranks = [share.rank] * config.trainer.ranks
    if config.placement == "separate":
        return [clean(bundle) for bundle in generators + ranks]
    count = max(len(generators), len(ranks))
    padded = [
        (generators[i] if i < len(generators) else {}, ranks[i] if i < len(ranks) else {})
        for i in range(count)
    ]
    return [clean({kind: max(a.get(kind, 0), b.get(kind, 0)) for kind in ("CPU", "GPU")}) for a, b in padded]


def clean(bundle: dict[str, float]) -> dict[str, float]:
    """Without the resources it does not ask for."""
    return {kind: amount for kind, amount in bundle.items() if amount}
