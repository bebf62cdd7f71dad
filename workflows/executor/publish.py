"""How weights get from the trainer, or a checkpoint, to the engines, and the proof that they did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError

from selfloop.actors.generate.generator import Probe
from selfloop.actors.weights.receipt import prove_probe, prove_receipt
from selfloop.workflows.executor.pools import Pool, Replica
from selfloop.workflows.executor.specs import Specs
from selfloop.workflows.executor.training import TrainerGroup
from selfloop.workflows.store.checkpoint import Place

__all__ = ["START_SECONDS", "Published", "Publisher"]

LOAD_SECONDS = 600.0  # a replica may take to load, to answer the probe, to fall asleep
START_SECONDS = 900.0  # the same for one that has to start first
PROBE_TOKENS = (
    4  # sampled after each probe prompt: the first comes from the prefill, the others from decoding
)
ASLEEP = "asleep"  # what the pool serves meanwhile; no model's label, so nothing is sent to it


@dataclass(frozen=True)
class Published:
    """A model that engines serve: its label, the version that its rows carry, and where its weights are kept."""

    label: str
    version: int
    place: Place


class Publisher:
    """Publishes models to the engines, each with a proof of weights.

    Proven is, before the first answer, that every replica computes with the weights that the trainer has made, all of
    them and nothing older. What each step of `publish` catches (docs/faults.md has the faults that were put in):

    1. send: an engine refuses weights while requests run on it, so no prompt group is of two models.
    2. receipts: every replica must answer within a deadline; one that is dead or stuck is never left behind.
    3. prove: a hash a tensor of what arrived against what was sent finds a tensor that is missing, cut, or a step old.
    4. probe: log-probs of tokens sampled just now against the trainer's of the same tokens find weights that arrived
       and are not used: a load acknowledged and not applied, a prefix cache kept, a fall back to those on disk, a wrong merge.

    Neither proof does for the other: a replica can hash what it then does not use, and one small step moves log-probs
    less than the probe's limit. Deaths are not dealt with here: see `selfloop.workflows.executor.deaths.Mender`.
    """

    def __init__(self, engines: Pool, trainer: TrainerGroup, specs: Specs):
        self.engines = engines
        self.trainer = trainer
        self.specs = specs
        self.model = Published("", 0, Place(""))
        self.asleep = False
        self.kept: dict[str, Mapping[str, str]] = {}  # receipts of folders, by folder

    def publish(self, model: Published) -> float | None:
        """Let every replica serve this model, proven; the largest gap of the probe in nats (None with fake engines).

        Raises WeightsError where a proof fails, and an error of Ray where an actor died: then it can be called again.
        """
        self.model, replicas = model, self.engines.replicas
        weights, sent = self.weights()
        receipts = self.receipts(self.send(replicas, weights), LOAD_SECONDS)
        self.prove(replicas, sent, receipts)
        gap = self.probe(replicas)
        self.engines.model, self.asleep = model.label, False
        return gap

    def catch_up(self, replica: Replica) -> None:
        """Let a fresh replica serve what the others serve, proven. From the checkpoint: the trainer may have gone on."""
        folder, sent = self.stored(replica)
        receipts = self.receipts(self.send([replica], folder), START_SECONDS)
        self.prove([replica], sent, receipts)
        self.probe([replica])

    # the steps

    def weights(self) -> tuple[Any, Mapping[str, str]]:
        """References to the trainer's buckets if it holds the model, else its folder; and the receipt that must come back."""
        if self.model.label != self.trainer.loaded:
            return self.stored(self.engines.replicas[0])
        asked = [rank.weights.remote() for rank in self.trainer.ranks]
        receipt, buckets = ray.get(asked, timeout=LOAD_SECONDS)[0]
        return buckets, receipt

    def stored(self, replica: Replica) -> tuple[str, Mapping[str, str]]:
        """The model's folder and its receipt. An engine takes the tensors in its own precision, which may be another: then
        the replica, which is alive, says what it expects."""
        place = self.model.place
        if place.receipt is not None and self.specs.engine.dtype == self.specs.trainer.dtype:
            return place.folder, place.receipt
        if place.folder not in self.kept:
            self.kept[place.folder] = ray.get(replica.actor.expected.remote(place.folder))
        return place.folder, self.kept[place.folder]

    def send(self, replicas: Sequence[Replica], weights: Any) -> list[Any]:
        """Tell the replicas to load; references to their receipts."""
        return [one.actor.load.remote(self.model.label, self.model.version, weights) for one in replicas]

    def receipts(self, arriving: list[Any], seconds: float) -> list[Mapping[str, str]]:
        """What has arrived at each replica, once it has at all of them."""
        return ray.get(arriving, timeout=seconds)

    def prove(
        self, replicas: Sequence[Replica], sent: Mapping[str, str], receipts: Sequence[Mapping[str, str]]
    ) -> None:
        """Raise WeightsError unless every replica got exactly what was sent."""
        for replica, receipt in zip(replicas, receipts, strict=True):
            prove_receipt(sent, receipt, self.model.version, replica.name)

    def probe(self, replicas: Sequence[Replica]) -> float | None:
        """Compare engines' log-probs on a fixed batch with the trainer's; the largest gap in nats."""
        if self.specs.fake:
            return None
        asked = [one.actor.probe.remote(self.specs.probe_messages, PROBE_TOKENS) for one in replicas]
        found: list[Probe] = ray.get(asked, timeout=LOAD_SECONDS)
        model = self.model
        folder = None if model.label == self.trainer.loaded else model.place.folder
        gaps = []
        for replica, probe in zip(replicas, found, strict=True):
            ours = self.trainer.logprobs(folder, [ids for ids, _, _ in probe], [ids for _, ids, _ in probe])
            theirs = [values for _, _, values in probe]
            gaps.append(prove_probe(ours, theirs, self.specs.probe_limit, model.label, replica.name))
        return max(gaps)

    # where engines and ranks share GPUs

    def sleep(self) -> None:
        """Let the engines give their memory back; they load and prove weights again before they answer."""
        if self.asleep:
            return
        for replica in self.engines.replicas:
            try:
                ray.get(replica.actor.sleep.remote(), timeout=LOAD_SECONDS)
            except RayActorError:  # a dead one holds no memory, and is replaced when it shall serve
                continue
        self.engines.model, self.asleep = ASLEEP, True
