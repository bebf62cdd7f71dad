"""The actors of a run on Ray: started once, alive for the whole run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from selfloop.actors.engines import EngineSpec
from selfloop.actors.generator import Generator, Probe
from selfloop.actors.judge import Worker
from selfloop.actors.placement import bundles, shares
from selfloop.actors.ranks import Rank
from selfloop.actors.trainer import TrainerSpec
from selfloop.actors.weights import prove_receipt
from selfloop.workflows.config import Config
from selfloop.workflows.data.schema import Message
from selfloop.workflows.errors import EngineError, InputError, WeightsError
from selfloop.workflows.flow.job import Place
from selfloop.workflows.flow.pools import Pool, Replica

__all__ = ["Actors", "connect"]

LOAD_SECONDS = 600.0
START_SECONDS = 900.0
PROBE_TOKENS = 16
IN_FLIGHT = {"engine": 4, "worker": 4, "trainer": 2}


def connect(config: Config) -> int:
    """Join the cluster that RAY_ADDRESS or a job names, else start Ray here. Returns the number of GPUs."""
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not ray.is_initialized():
        joined = os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
        ray.init(address="auto" if joined else "local", log_to_driver=False, logging_level="ERROR")
    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0))
    wanted = bundles(config, gpus)
    for kind in ("CPU", "GPU"):
        asked = sum(bundle.get(kind, 0) for bundle in wanted)
        if asked > there.get(kind, 0):
            raise InputError(
                f"the config asks for {asked:g} {kind}s (generator.replicas, trainer.ranks and their threads and gpus), and "
                f"the cluster has {there.get(kind, 0):g}. Ask for fewer, set placement=colocated, or add nodes"
            )
    return gpus


class TrainerGroup:
    """The trainer's ranks. All take part in every call; the first one's answer counts."""

    def __init__(self, spec: TrainerSpec, options: Sequence[dict[str, Any]]):
        self.spec = spec
        self.options = options
        self.loaded = ""
        self.receipt: Mapping[str, str] = {}
        self.running: list[Any] = []
        self.pool = Pool("trainer", 1, IN_FLIGHT["trainer"], self.start)

    def start(self, _: int) -> Any:
        """Start all ranks; the pool knows the first."""
        self.loaded = ""
        made = ray.remote(Rank)
        self.ranks = [
            made.options(**options).remote(self.spec, index) for index, options in enumerate(self.options)
        ]
        address = self.ranks[0].address.remote()
        self.joined = [rank.join.remote(address) for rank in self.ranks]
        return self.ranks[0]

    @property
    def busy(self) -> bool:
        """Whether a training is under way, or measuring that it would have to wait for."""
        self.running = (
            ray.wait(self.running, num_returns=len(self.running), timeout=0)[1] if self.running else []
        )
        return bool(self.running) or self.pool.in_flight > 0

    def train(self, work: dict[str, Any], rows: Sequence[Any]) -> Any:
        """Start training; the reference resolves to the first rank's TrainResult."""
        refs = [rank.train.remote(work, list(rows)) for rank in self.ranks]
        self.running = refs
        self.loaded = ""
        return refs[0]

    def logprobs(
        self, folder: str | None, contexts: list[list[int]], targets: list[list[int]]
    ) -> list[list[float]]:
        """Log-probs under the weights of a folder (None: the ones now loaded)."""
        return ray.get([rank.logprobs.remote(folder, contexts, targets) for rank in self.ranks])[0]

    def close(self) -> None:
        for rank in self.ranks:
            ray.kill(rank, no_restart=True)


@dataclass(frozen=True)
class Specs:
    """What the actors are started with."""

    engine: EngineSpec
    trainer: TrainerSpec
    probe_messages: list[list[Message]]
    probe_limit: float
    trust_remote_code: bool = False


class Actors:
    """All actors of a run, and how weights get from the trainer to the engines."""

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
        self.trainer = TrainerGroup(specs.trainer, ranks)
        self.engines = Pool("generator", config.generator.replicas, IN_FLIGHT["engine"], self.start_engine)
        free = {"num_cpus": 0}
        self.workers = Pool(
            "worker", 1, IN_FLIGHT["worker"], lambda _: ray.remote(Worker).options(**free).remote()
        )
        self.writer = ray.remote(Worker).options(**free).remote()
        self.asleep = False

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

    def wait_until_ready(self) -> None:
        """Return once every actor has started; an error in any start is raised here."""
        every = [replica.actor.ready.remote() for replica in [*self.engines.replicas, *self.workers.replicas]]
        every += [self.writer.ready.remote(), *self.trainer.joined]
        ray.get(every, timeout=START_SECONDS)

    # weights

    def serve(self, label: str, version: int, place: Place) -> float | None:
        """Let every replica serve this model, prove it, and return the probe's gap in nats."""
        source = self.source(label, place)
        receipts = self.engines.every("load", label, version, source, timeout=LOAD_SECONDS)
        sent = self.trainer.receipt if label == self.trainer.loaded else place.receipt
        if sent is None:
            sent = ray.get(self.engines.replicas[0].actor.expected.remote(place.folder))
        for replica, receipt in zip(self.engines.replicas, receipts, strict=True):
            prove_receipt(sent, receipt, version, replica.name)
        self.engines.model = label
        self.asleep = False
        return self.probe(label, place)

    def source(self, label: str, place: Place) -> Any:
        """The trainer's buckets if it holds this model, else the checkpoint folder."""
        if label != self.trainer.loaded:
            return place.folder
        receipt, buckets = ray.get(
            [rank.weights.remote() for rank in self.trainer.ranks], timeout=LOAD_SECONDS
        )[0]
        self.trainer.receipt = receipt
        return buckets

    def probe(self, label: str, place: Place) -> float | None:
        """Compare the engines' log-probs on a fixed batch with the trainer's."""
        if self.specs.engine.engine == "fake":
            return None
        found: list[Probe] = self.engines.every(
            "probe", self.specs.probe_messages, PROBE_TOKENS, timeout=LOAD_SECONDS
        )
        gap = 0.0
        folder = None if label == self.trainer.loaded else place.folder
        for replica, probe in zip(self.engines.replicas, found, strict=True):
            wanted = self.trainer.logprobs(folder, [ids for ids, _, _ in probe], [ids for _, ids, _ in probe])
            for ours, (_, _, theirs) in zip(wanted, probe, strict=True):
                gap = max([gap, *(abs(a - b) for a, b in zip(ours, theirs, strict=True))])
            if not gap <= self.specs.probe_limit:
                raise WeightsError(
                    f"{replica.name} serves {label}, yet its log-probs on the probe batch differ from the trainer's by {gap:.3g} "
                    f"nats (limit {self.specs.probe_limit:g}). The weights arrived but are not what it computes with. Check that the "
                    "engine and the trainer agree on the architecture and precision; probe_limit sets the limit"
                )
        return gap

    def trained(self, label: str, receipt: Mapping[str, str]) -> None:
        """The trainer now holds this model."""
        self.trainer.loaded = label
        self.trainer.receipt = receipt

    def before_training(self) -> None:
        """Colocated on GPUs: engines give their memory back; they load and prove the weights again before they answer."""
        if self.config.placement == "colocated" and self.specs.engine.device == "cuda" and not self.asleep:
            self.engines.every("sleep", timeout=LOAD_SECONDS)
            self.engines.model, self.asleep = "asleep", True

    def revive(self, pool: Pool, replica: Replica) -> None:
        """Start a fresh actor for a dead one; an engine gets the current weights before it answers."""
        if pool is self.trainer.pool:
            self.trainer.close()
        pool.replace(replica)

    def close(self) -> None:
        self.engines.close()
        self.workers.close()
        self.trainer.close()
        ray.kill(self.writer, no_restart=True)
        remove_placement_group(self.group)
