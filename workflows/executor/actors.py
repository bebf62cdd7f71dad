"""The actors of a run on Ray: started once, alive for the whole run."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from selfloop.actors.generate.generator import Generator
from selfloop.actors.judge.worker import Worker
from selfloop.workflows.config import Config
from selfloop.workflows.config.devices import bundles, shares
from selfloop.workflows.errors import EngineError
from selfloop.workflows.executor.deaths import Mender
from selfloop.workflows.executor.pools import Pool
from selfloop.workflows.executor.publish import START_SECONDS, Publisher
from selfloop.workflows.executor.specs import Specs
from selfloop.workflows.executor.training import TrainerGroup

__all__ = ["Actors"]

RESERVE_SECONDS = 120.0  # for Ray to hand over devices that its own count says are there
COLOCATED_SHARE = 0.49  # of a bundle that an engine and a rank share: two of them fit, however Ray rounds
ENGINE_BATCHES = 4  # in flight on one engine, so that it never drains at a batch border
ENGINE_CALLS = 64  # far more: a ping, a load or a probe must not wait in line behind batches
WORKER_BATCHES = 4


class Actors:
    """All actors of a run. `publisher` gives engines their weights, `mender` replaces who died."""

    def __init__(self, config: Config, specs: Specs, gpus: int):
        self.specs = specs
        self.config = config
        self.group = self.reserve(bundles(config, gpus))
        share = shares(config, gpus)
        self.engine_options = [
            self.options(share.generator, index) for index in range(config.generator.replicas)
        ]
        offset = 0 if config.placement == "colocated" else config.generator.replicas
        ranks = [self.options(share.rank, offset + index) for index in range(config.trainer.ranks)]
        self.trainer = TrainerGroup(specs.trainer, ranks, specs.fake)
        self.engines = Pool("generator", config.generator.replicas, ENGINE_BATCHES, self.start_engine)
        self.workers = Pool("worker", 1, WORKER_BATCHES, self.start_worker)
        self.writers = Pool("writer", 1, WORKER_BATCHES, self.start_worker)
        self.publisher = Publisher(self.engines, self.trainer, specs)
        self.mender = Mender(self.publisher, self.workers, self.writers)

    def reserve(self, wanted: list[dict[str, float]]) -> PlacementGroup:
        group = placement_group(wanted, strategy="PACK")
        if not group.wait(timeout_seconds=RESERVE_SECONDS):
            raise EngineError(
                f"the cluster did not give the run its devices within {RESERVE_SECONDS:.0f} s: {wanted}. Other jobs may hold them"
            )
        return group

    def options(self, share: dict[str, float], index: int) -> dict[str, Any]:
        """Ray options of an actor in bundle `index`; colocated actors share it, so each asks for a fraction."""
        part = COLOCATED_SHARE if self.config.placement == "colocated" else 1.0
        return {
            "num_cpus": share["CPU"] * part,
            "num_gpus": share["GPU"] * part,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self.group, placement_group_bundle_index=index
            ),
        }

    def start_engine(self, index: int) -> Any:
        actor = ray.remote(Generator).options(max_concurrency=ENGINE_CALLS, **self.engine_options[index])
        return actor.remote(self.specs.engine, "policy@0", self.specs.trust_remote_code)

    def start_worker(self, _: int) -> Any:
        return ray.remote(Worker).options(num_cpus=0).remote()

    def wait_until_ready(self) -> None:
        """Return once every actor has started; an error in any start is raised here."""

        def ready() -> None:
            pools = (self.engines, self.workers, self.writers)
            asked = [replica.actor.ready.remote() for pool in pools for replica in pool.replicas]
            ray.get([*asked, *self.trainer.joined], timeout=START_SECONDS)

        self.mender.until_alive(ready)

    @property
    def in_turn(self) -> bool:
        """Whether engines and ranks share GPUs, so that engines sleep while ranks train."""
        return self.config.placement == "colocated" and self.specs.engine.device == "cuda"

    def close(self) -> None:
        for actors in (self.engines, self.workers, self.trainer, self.writers):
            actors.close()
        remove_placement_group(self.group)
