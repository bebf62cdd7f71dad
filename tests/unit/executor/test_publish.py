"""How models are published and what their proof stops, on stand-ins for Ray and its actors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from selfloop.workflows.errors import WeightsError
from selfloop.workflows.executor import pools, publish
from selfloop.workflows.executor.deaths import TRIES, Mender
from selfloop.workflows.executor.pools import Pool
from selfloop.workflows.executor.publish import Published, Publisher
from selfloop.workflows.store.checkpoint import Place

SENT = {"layer.0": "aa", "layer.1": "bb"}
STORED = {"layer.0": "cc"}
NEW = Published("policy@1#train", 1, Place("out/policy", receipt=SENT))


class Actor:
    """A stand-in for an actor: its methods are written down when they are called, and answer when they are asked for."""

    def __init__(self, name: str, log: list[str], **answers: Any):
        self.name, self.log, self.answers, self.dead = name, log, {"ready": True, **answers}, False

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *args: self.call(method, args))

    def call(self, method: str, args: tuple[Any, ...]) -> Callable[[], Any]:
        what = f" {args[0]}" if method == "expected" else f" {args[0]} {args[2]}" if method == "load" else ""
        if method != "ready":
            self.log.append(f"{self.name} {method}{what}")
        return lambda: self.answer(method)

    def answer(self, method: str) -> Any:
        if method != "ready":
            self.log.append(f"{self.name} said {method}")
        found = ActorDiedError() if self.dead else self.answers[method]
        if isinstance(found, Exception):
            raise found
        return found


class House:
    """Two engines and a trainer that holds `NEW`; what happened is in `log`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fake: bool = False, dtype: str = "float32"):
        self.log: list[str] = []
        stand_in = SimpleNamespace(get=self.get, wait=lambda refs, **_: (refs, []), kill=self.kill)
        for module in (publish, pools):
            monkeypatch.setattr(module, "ray", stand_in)
        self.engines = Pool("generator", 2, 4, self.engine)
        self.rank = Actor("rank", self.log, weights=(SENT, ["bucket"]))
        self.trainer: Any = SimpleNamespace(
            ranks=[self.rank], loaded=NEW.label, logprobs=self.logprobs, pool=object(),
            dead=lambda: None, mend=lambda: None, rebuild=lambda: self.log.append("trainer rebuilt"),
        )  # fmt: skip
        specs: Any = SimpleNamespace(
            engine=SimpleNamespace(dtype=dtype), trainer=SimpleNamespace(dtype="float32"), fake=fake,
            probe_messages=[[]], probe_limit=1e-3,
        )  # fmt: skip
        self.publisher = Publisher(self.engines, self.trainer, specs)
        self.mender = Mender(self.publisher)

    def engine(self, index: int) -> Actor:
        probe = [([1, 2], [3, 4], [-1.0, -2.0])]
        return Actor(f"generator-{index}", self.log, load=SENT, probe=probe, expected=STORED, sleep=None)

    def get(self, refs: Any, timeout: float | None = None) -> Any:
        return [ref() for ref in refs] if isinstance(refs, list) else refs()

    def kill(self, actor: Actor, no_restart: bool) -> None:
        self.log.append(f"{actor.name} ended")

    def logprobs(self, folder: str | None, contexts: Any, targets: Any) -> list[list[float]]:
        assert (contexts, targets) == ([[1, 2]], [[3, 4]])
        self.log.append(f"trainer logprobs {folder}")
        return [[-1.0, -2.0005]]

    def actor(self, index: int) -> Any:
        return self.engines.replicas[index].actor

    def answers(self, index: int, **answers: Any) -> None:
        self.actor(index).answers |= answers

    def take(self) -> list[str]:
        taken, self.log[:] = list(self.log), []
        return taken


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> House:
    return House(monkeypatch)


SEND = ["generator-0 load policy@1#train ['bucket']", "generator-1 load policy@1#train ['bucket']"]
RECEIPTS = ["generator-0 said load", "generator-1 said load"]
PROBE = ["generator-0 probe", "generator-1 probe", "generator-0 said probe", "generator-1 said probe",
         "trainer logprobs None", "trainer logprobs None"]  # fmt: skip


def test_a_publish_is_send_receipts_prove_probe(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def prove(sent: Mapping[str, str], arrived: Mapping[str, str], version: int, replica: str) -> None:
        assert (sent, arrived, version) == (SENT, SENT, 1)
        assert house.engines.model == ""
        house.log.append(f"{replica} proven")

    monkeypatch.setattr(publish, "prove_receipt", prove)
    assert house.publisher.publish(NEW) == pytest.approx(0.0005)
    proven = ["generator-0 proven", "generator-1 proven"]
    assert house.take() == ["rank weights", "rank said weights", *SEND, *RECEIPTS, *proven, *PROBE]
    assert house.engines.model == NEW.label


@pytest.mark.parametrize("receipt", [{"layer.0": "aa"}, {**SENT, "more": "cc"}, {**SENT, "layer.1": "old"}])
def test_a_receipt_that_disagrees_stops_before_the_probe(house: House, receipt: dict[str, str]) -> None:
    house.answers(1, load=receipt)
    with pytest.raises(WeightsError, match="generator-1 did not get version 1"):
        house.mender.until_alive(lambda: house.publisher.publish(NEW))
    assert house.take()[-2:] == RECEIPTS
    assert house.engines.model == ""


def test_a_probe_that_disagrees_is_no_publish(house: House) -> None:
    house.answers(1, probe=[([1, 2], [3, 4], [-1.0, -2.1])])
    with pytest.raises(WeightsError, match="generator-1 serves policy@1#train, yet its log-probs"):
        house.publisher.publish(NEW)
    assert house.engines.model == ""


def test_fake_engines_prove_receipts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, fake=True)
    assert house.publisher.publish(NEW) is None
    assert house.take()[-2:] == RECEIPTS and house.engines.model == NEW.label


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_the_trainer_does_not_hold_come_from_their_folder(
    monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """The folder's kept receipt is of the trainer's precision: an engine in another one says what it must get, once."""
    house = House(monkeypatch, dtype=dtype)
    house.trainer.loaded = "policy@2#train"
    for index in (0, 1):
        house.answers(index, load=SENT if dtype == "float32" else STORED)
    house.publisher.publish(NEW)
    house.publisher.publish(NEW)
    seen = house.take()
    asked = [] if dtype == "float32" else ["generator-0 expected out/policy", "generator-0 said expected"]
    assert seen[: len(asked) + 1] == [*asked, "generator-0 load policy@1#train out/policy"]
    assert sum("expected" in one for one in seen) == len(asked)
    assert seen[-1] == "trainer logprobs out/policy"


@pytest.mark.parametrize("method", ["load", "probe"])
def test_a_death_in_the_middle_is_mended_and_published_again(house: House, method: str) -> None:
    house.answers(1, **{method: ActorDiedError()})
    house.answers(1, ready=ActorDiedError())
    assert house.mender.until_alive(lambda: house.publisher.publish(NEW)) == pytest.approx(0.0005)
    seen = house.take()
    ended = seen.index("generator-1 ended")
    assert "generator-0 ended" not in seen and f"generator-1 said {method}" in seen[:ended]
    assert seen[ended + 1 :] == ["rank weights", "rank said weights", *SEND, *RECEIPTS, *PROBE]
    assert house.engines.model == NEW.label and [one.generation for one in house.engines.replicas] == [0, 1]


def test_deaths_without_end_are_the_users_to_look_at(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        house.engines, "make", lambda _: Actor("generator-1", house.log, load=ActorDiedError())
    )
    house.answers(1, load=ActorDiedError())
    with pytest.raises(ActorDiedError):
        house.mender.until_alive(lambda: house.publisher.publish(NEW))
    assert house.take().count("generator-1 said load") == TRIES


def test_an_engine_that_breaks_without_a_death_is_not_tried_again(house: House) -> None:
    house.answers(1, load=RayTaskError("load", "", ValueError("no such tensor")))
    with pytest.raises(RayTaskError):
        house.mender.until_alive(lambda: house.publisher.publish(NEW))
    assert house.take().count("generator-1 said load") == 1


def test_an_engine_that_died_alone_catches_up_from_the_folder_while_others_serve(house: House) -> None:
    house.publisher.publish(NEW)
    house.trainer.loaded = ""  # it trains the next one
    house.take()
    house.mender.revive(house.engines, house.engines.replicas[1])
    assert house.take() == [
        "generator-1 ended", "generator-1 load policy@1#train out/policy", "generator-1 said load",
        "generator-1 probe", "generator-1 said probe", "trainer logprobs out/policy",
    ]  # fmt: skip
    assert house.engines.model == NEW.label


def test_one_that_dies_again_while_it_catches_up_is_replaced_alone(house: House) -> None:
    house.publisher.publish(NEW)
    house.take()
    fresh = [Actor("generator-1", house.log, load=ActorDiedError(), ready=ActorDiedError()), house.engine(1)]
    house.engines.make = lambda _: fresh.pop(0)
    house.mender.revive(house.engines, house.engines.replicas[1])
    seen = house.take()
    assert seen.count("generator-1 ended") == 2 and not any("generator-0" in one for one in seen)
    assert house.engines.model == NEW.label and house.actor(1).answers["load"] == SENT


def test_a_fresh_engine_is_proven_before_it_answers(house: House) -> None:
    house.publisher.publish(NEW)
    house.engines.make = lambda _: Actor("generator-1", house.log, load=STORED)
    with pytest.raises(WeightsError, match="generator-1 did not get version 1"):
        house.mender.revive(house.engines, house.engines.replicas[1])


def test_sleeping_engines_serve_nothing_until_they_are_published_to_again(house: House) -> None:
    house.publisher.publish(NEW)
    house.actor(0).dead = True  # holds no memory
    house.publisher.sleep()
    assert house.engines.model not in ("", NEW.label)
    house.take()
    house.publisher.sleep()
    assert house.take() == []  # once
    house.mender.revive(house.engines, house.engines.replicas[0])
    assert house.take() == ["generator-0 ended"]  # and loads nothing on a device that the trainer has
    house.publisher.publish(NEW)
    assert house.engines.model == NEW.label
    house.take()
    house.publisher.sleep()
    assert "generator-0 sleep" in house.take()
