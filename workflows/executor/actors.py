"""The actors of a run on Ray: started once, alive for the whole run, and how weights get from the trainer to the engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from selfloop.actors.generate.generator import Generator, Probe
from selfloop.actors.generate.spec import EngineSpec
from selfloop.actors.judge.worker import Worker
from selfloop.actors.train.spec import TrainerSpec
from selfloop.actors.weights.receipt import prove_probe, prove_receipt
from selfloop.workflows.config import Config
from selfloop.workflows.config.devices import bundles, shares
from selfloop.workflows.data.schema import Message
from selfloop.workflows.errors import EngineError
from selfloop.workflows.executor.deaths import deaths, died, rows_lost
from selfloop.workflows.executor.pools import Pool, Replica
from selfloop.workflows.executor.training import TrainerGroup
from selfloop.workflows.store.checkpoint import Place

__all__ = ["Actors", "Specs"]

T = TypeVar("T")

LOAD_SECONDS = 600.0
START_SECONDS = 900.0
PROBE_TOKENS = 4
ENGINE_BATCHES = 4  # in flight on one engine, so that it never drains at a batch border
WORKER_BATCHES = 4

TRIES = 5  # times the actors are mended before their deaths are the user's to look at


@dataclass(frozen=True)
class Specs:
    """What the actors are started with."""

    engine: EngineSpec
    trainer: TrainerSpec
    probe_messages: list[list[Message]]
    probe_limit: float
    trust_remote_code: bool = False

    @property
    def fake(self) -> bool:
        return self.engine.engine == "fake"


class Actors:
    """All actors of a run."""

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
        self.writer = self.start_worker(0)
        self.asleep = False
        self.current: tuple[str, int, Place] = ("", 0, Place(""))
        self.expected: dict[str, Mapping[str, str]] = {}

    def reserve(self, wanted: list[dict[str, float]]) -> PlacementGroup:
        group = placement_group(wanted, strategy="PACK")
        if not group.wait(timeout_seconds=120):
            raise EngineError(
                f"the cluster did not give the run its devices within 120 s: {wanted}. Other jobs may hold them"
            )
        return group

    def options(self, share: dict[str, float], index: int) -> dict[str, Any]:
        """Ray options of an actor in bundle `index`; colocated actors share it, so each asks for a fraction."""
        part = 0.49 if self.config.placement == "colocated" else 1.0
        return {
            "num_cpus": share["CPU"] * part,
            "num_gpus": share["GPU"] * part,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self.group, placement_group_bundle_index=index
            ),
        }

    def start_engine(self, index: int) -> Any:
        actor = ray.remote(Generator).options(max_concurrency=64, **self.engine_options[index])
        return actor.remote(self.specs.engine, "policy@0", self.specs.trust_remote_code)

    def start_worker(self, _: int) -> Any:
        return ray.remote(Worker).options(num_cpus=0).remote()

    def wait_until_ready(self) -> None:
        """Return once every actor has started; an error in any start is raised here."""

        def ready() -> None:
            pools = [*self.engines.replicas, *self.workers.replicas]
            asked = [replica.actor.ready.remote() for replica in pools]
            ray.get([*asked, self.writer.ready.remote(), *self.trainer.joined], timeout=START_SECONDS)

        self.until_alive(ready)

    # weights

    def serve(self, label: str, version: int, place: Place) -> float | None:
        """Let every replica serve this model, prove it, and return the probe's gap in nats. Deaths are mended."""
        return self.until_alive(lambda: self.publish(label, version, place))

    def publish(self, label: str, version: int, place: Place) -> float | None:
        self.current = (label, version, place)
        source = self.source(label, place)
        receipts = self.engines.every("load", label, version, source, timeout=LOAD_SECONDS)
        for replica, receipt in zip(self.engines.replicas, receipts, strict=True):
            prove_receipt(self.sent(label, place), receipt, version, replica.name)
        self.engines.model = label
        self.asleep = False
        return self.probe(self.engines.replicas)

    def load(self, replica: Replica) -> None:
        """Give a fresh replica the current weights, proven, before it answers."""
        label, version, place = self.current
        receipt: Mapping[str, str] = ray.get(
            replica.actor.load.remote(label, version, place.folder), timeout=START_SECONDS
        )
        prove_receipt(self.sent(label, place), receipt, version, replica.name)

    def source(self, label: str, place: Place) -> Any:
        """References to the trainer's buckets if it holds this model, else the checkpoint folder."""
        if label != self.trainer.loaded:
            return place.folder
        self.trainer.receipt, buckets = ray.get(
            [rank.weights.remote() for rank in self.trainer.ranks], timeout=LOAD_SECONDS
        )[0]
        return buckets

    def sent(self, label: str, place: Place) -> Mapping[str, str]:
        """The receipt that must come back for this model. From a folder an engine takes the tensors in its own precision."""
        if label == self.trainer.loaded:
            return self.trainer.receipt
        if place.receipt is not None and self.specs.engine.dtype == self.specs.trainer.dtype:
            return place.receipt
        if place.folder not in self.expected:
            self.expected[place.folder] = ray.get(
                self.engines.replicas[0].actor.expected.remote(place.folder)
            )
        return self.expected[place.folder]

    def probe(self, replicas: Sequence[Replica]) -> float | None:
        """Compare engines' log-probs on a fixed batch with the trainer's; the largest gap in nats."""
        if self.specs.fake:
            return None
        label, _, place = self.current
        asked = [one.actor.probe.remote(self.specs.probe_messages, PROBE_TOKENS) for one in replicas]
        found: list[Probe] = ray.get(asked, timeout=LOAD_SECONDS)
        folder = None if label == self.trainer.loaded else place.folder
        gaps = []
        for replica, probe in zip(replicas, found, strict=True):
            ours = self.trainer.logprobs(folder, [ids for ids, _, _ in probe], [ids for _, ids, _ in probe])
            theirs = [values for _, _, values in probe]
            gaps.append(prove_probe(ours, theirs, self.specs.probe_limit, label, replica.name))
        return max(gaps)

    def trained(self, label: str, receipt: Mapping[str, str]) -> None:
        """The trainer now holds this model."""
        self.trainer.loaded, self.trainer.receipt = label, receipt

    @property
    def in_turn(self) -> bool:
        """Whether engines and ranks share GPUs, so that engines sleep while ranks train."""
        return self.config.placement == "colocated" and self.specs.engine.device == "cuda"

    def before_training(self) -> None:
        """Where they take turns, engines give their memory back; they load and prove weights again before they answer."""
        if self.in_turn and not self.asleep:
            for replica in self.engines.replicas:
                try:
                    ray.get(replica.actor.sleep.remote(), timeout=LOAD_SECONDS)
                except RayActorError:  # a dead one holds no memory, and is replaced when it shall serve
                    continue
            self.engines.model, self.asleep = "asleep", True

    # deaths

    def until_alive(self, work: Callable[[], T]) -> T:
        """The result of `work`, which asks many actors; where one of them is dead, all dead ones are replaced first."""
        for attempt in range(TRIES):
            try:
                return work()
            except RayError as error:
                lost = died(error) or rows_lost(error) or self.trainer.dead() is not None
                if not lost or attempt == TRIES - 1:
                    raise
                self.mend()
        raise AssertionError("not reached")

    def mend(self) -> None:
        """Put fresh actors in the places of dead ones. Engines serve nothing until they are published to again."""
        for pool in (self.engines, self.workers):
            pool.mend()
        if deaths([self.writer]):
            self.writer = self.start_worker(0)
        if self.trainer.dead() is not None:
            self.trainer.rebuild()
        self.engines.model = ""

    def revive(self, pool: Pool, replica: Replica) -> None:
        """Start a fresh actor for a dead one; an engine gets the current weights, proven, before it answers."""
        if pool is self.trainer.pool:
            self.trainer.rebuild()
            return
        pool.replace(replica)
        if pool is not self.engines or pool.model in ("", "asleep"):
            return
        for attempt in range(TRIES):
            try:
                self.load(replica)
                self.probe([replica])
            except RayError as error:
                if not died(error) or attempt == TRIES - 1:
                    raise
                if deaths([replica.actor]):
                    pool.replace(replica)
                if self.trainer.dead() is not None:
                    self.trainer.rebuild()
            else:
                return

    def revive_writer(self) -> None:
        """Start a fresh writer, unless that has been done already."""
        if deaths([self.writer]):
            self.writer = self.start_worker(0)

    def close(self) -> None:
        self.engines.close()
        self.workers.close()
        self.trainer.close()
        ray.kill(self.writer, no_restart=True)
        remove_placement_group(self.group)
