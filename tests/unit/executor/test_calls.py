"""What happens to calls in flight when actors die, on stand-ins for Ray."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from selfloop.workflows.executor import calls as module
from selfloop.workflows.executor.calls import Call, Calls


class Cluster:
    """Two replicas, the answers of their calls, and how long a fresh actor takes to start."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any], start: float = 0.0):
        self.answers, self.start = answers, start
        self.replicas = [self.replica(number) for number in range(2)]
        self.killed: list[str] = []
        self.dead: Any = ActorDiedError()
        self.revived = 0
        stand_in = SimpleNamespace(
            wait=self.wait, get=self.get, kill=lambda actor, **_: self.killed.append(actor)
        )
        monkeypatch.setattr(module, "ray", stand_in)

    def replica(self, number: int) -> Any:
        return SimpleNamespace(
            name=f"r{number}", actor=f"a{number}", in_flight=1, generation=0, heard=time.monotonic()
        )

    def wait(self, refs: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        return refs[:num_returns], refs[num_returns:]

    def get(self, ref: str) -> Any:
        if isinstance(self.answers[ref], Exception):
            raise self.answers[ref]
        return self.answers[ref]

    def revive(self, pool: Any, replica: Any) -> None:
        time.sleep(self.start)
        self.dead, self.revived = None, self.revived + 1
        replica.generation += 1

    def calls(self, engines: Any, trainer: Any, patience: float) -> Calls:
        actors: Any = SimpleNamespace(
            engines=engines,
            trainer=SimpleNamespace(pool=trainer, dead=lambda: self.dead),
            mender=SimpleNamespace(revive=self.revive),
        )
        return Calls(SimpleNamespace(folder=SimpleNamespace(event=lambda *_, **__: None)), actors, patience)  # type: ignore[arg-type]


def run(calls: Calls, pool: Any, replicas: list[Any]) -> list[int]:
    """Two calls, one a replica given; the numbers of the batches that were sent again."""
    sent: list[int] = []
    calls.send = lambda call: sent.append(call.index)  # type: ignore[method-assign]
    flow: Any = SimpleNamespace(node=SimpleNamespace(name="node", op=None))
    calls.running = {name: Call(flow, place, pool, replicas[place], ()) for place, name in enumerate("AB")}
    list(calls.finished(0.1))
    return sent


def test_batches_in_flight_on_a_trainer_that_was_rebuilt_are_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of two ranks dies: both batches on the other one fail, and only the first finds a dead rank."""
    lost = RayTaskError("run", "", RuntimeError("connection closed by peer"))
    cluster = Cluster(monkeypatch, {"A": lost, "B": lost})
    trainer = SimpleNamespace(name="trainer", replicas=cluster.replicas[:1])
    calls = cluster.calls(SimpleNamespace(replicas=[]), trainer, 600.0)
    assert run(calls, trainer, [cluster.replicas[0]] * 2) == [0, 1]
    assert cluster.revived == 1


def test_time_spent_on_starting_one_engine_counts_against_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, {"A": ActorDiedError(), "B": {"rows": 1}}, start=0.5)
    engines = SimpleNamespace(name="generator", replicas=cluster.replicas)
    waits = iter([["A"], ["A"]])
    module.ray.wait = lambda refs, num_returns, timeout: (next(waits), [])  # type: ignore[attr-defined]
    calls = cluster.calls(engines, SimpleNamespace(name="trainer"), patience=0.3)
    assert run(calls, engines, cluster.replicas) == [0]
    assert cluster.killed == []
