"""Weight bugs that other systems shipped, injected one by one: each stops the run before an optimizer step on its rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfloop.workflows.config import load_config
from selfloop.workflows.errors import EngineError, SelfloopError, WeightsError
from selfloop.workflows.run.setup import Setup
from selfloop.workflows.store.folder import RunFolder
from tests.cluster.faulty import FAULTS
from tests.faults.harness import events

pytestmark = pytest.mark.real
SMALL = ["iterations=2", "prompts.per_iteration=24", "prompts.heldout=8", "evaluation.samples=1", "settings.epochs=1",
         "evaluation.bootstrap=100"]  # fmt: skip
SEEN = {"back to disk after sleep": "differ from the trainer's", "a tensor is not delivered": "1 not delivered",
        "the cache is kept": "differ from the trainer's", "the publish is missed": "differ from the trainer's",
        "the publish is not applied": "differ from the trainer's"}  # fmt: skip


@pytest.fixture(scope="module")
def setup() -> Setup:
    return Setup(load_config("configs/quickstart.yaml", SMALL))


@pytest.fixture(scope="module")
def actors(setup: Setup) -> Iterator[Any]:
    """Two vLLM engines and a DeepSpeed rank, whose engines are told to sleep before each training as on a shared GPU."""
    import ray

    from selfloop.workflows.executor import actors as actors_module
    from selfloop.workflows.executor.connect import connect
    from selfloop.workflows.executor.specs import Specs
    from tests.cluster.faulty import Faulty

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(actors_module, "Generator", Faulty)
        connect(setup.config)
        specs = Specs(*setup.specs(0)[:2], setup.probe_messages, 1e-3)
        made = actors_module.Actors(setup.config, specs, 0)
        made.wait_until_ready()
        made.specs = replace(specs, engine=replace(specs.engine, device="cuda"))
        yield made
        made.close()
        ray.shutdown()


def arm(actors: Any, *faults: str) -> None:
    import ray

    ray.get([one.actor.arm.remote(fault) for one, fault in zip(actors.engines.replicas, faults, strict=True)])


def go(actors: Any, setup: Setup, path: Path) -> list[Any]:
    """A run; the iterations in which it trained."""
    from selfloop.workflows.executor.schedule import Executor
    from selfloop.workflows.report.console import Console
    from selfloop.workflows.run.job import make_job
    from selfloop.workflows.run.loop import loop

    actors.engines.model = actors.trainer.loaded = ""
    for replica in actors.engines.replicas:
        replica.in_flight = 0
    folder = RunFolder(path)
    folder.open(setup.config.model_dump(mode="json"))
    job = make_job(setup, folder, {})
    return loop(setup, folder, Executor(job, actors), job, Console(live=False))


def trained(path: Path) -> list[int]:
    return [one["iteration"] for one in events(path) if one["event"] == "train"]


def test_without_a_fault_the_run_ends(actors: Any, setup: Setup, tmp_path: Path) -> None:
    arm(actors, "", "")
    metrics = go(actors, setup, tmp_path / "run")
    assert trained(tmp_path / "run") == [1, 2]
    assert all(line["sync_logprob_gap"] < 1e-3 for line in metrics)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_one_replica_stops_the_run_before_the_next_training(
    actors: Any, setup: Setup, tmp_path: Path, fault: str
) -> None:
    arm(actors, "", fault)
    with pytest.raises(WeightsError, match=SEEN[fault]):
        go(actors, setup, tmp_path / "run")
    assert trained(tmp_path / "run") == [1]
    assert not RunFolder(tmp_path / "run").parts(1, "heldout-sampled")
    arm(actors, "", "")


def test_a_publish_that_is_tried_again_waits_for_the_last_ones_probe(actors: Any, setup: Setup) -> None:
    """As after a death of another replica, when this one's probe still runs."""
    import ray

    arm(actors, "", "")
    actor = actors.engines.replicas[0].actor
    probe = actor.probe.remote(setup.probe_messages * 16, 64)
    receipt = actor.load.remote("policy@0", 0, str(setup.folder))
    found, arrived = ray.get([probe, receipt])
    assert found and arrived


@pytest.mark.parametrize("guard", [True, False])
def test_a_publish_in_the_middle_of_a_prompt_group_is_refused(
    actors: Any, setup: Setup, tmp_path: Path, guard: bool
) -> None:
    """By the engine, which still runs requests; and where an engine would let it happen, by the replica around it."""
    import ray

    from selfloop.workflows.executor.publish import Published
    from selfloop.workflows.run.job import make_job
    from selfloop.workflows.store.checkpoint import Place

    arm(actors, "", "")
    place = Place(str(setup.folder), None, None, setup.model_hash)
    actors.publisher.publish(Published("policy@0", 0, place))
    graph = setup.planner.graph(1)
    job = make_job(setup, RunFolder(tmp_path / "run"), {})
    job.models.places["policy@0"] = place
    actor = actors.engines.replicas[0].actor
    if not guard:
        ray.get(actor.arm.remote("loads whenever it is told"))
    rows = job.sources.batches(graph.nodes["prompts"].op, job.batch_size)[0]  # type: ignore[arg-type]
    running = actor.run.options(num_returns=2).remote(
        graph.nodes["sample"].op, job.context(graph.nodes["sample"], 1), rows
    )
    with pytest.raises(SelfloopError) as met:
        ray.get([actor.load.remote("policy@1", 1, str(setup.folder)), *running])
    expected = (
        (EngineError, "while .* requests run")
        if guard
        else (WeightsError, "other weights were loaded while a batch")
    )
    assert isinstance(met.value, expected[0])
    assert met.match(expected[1])
    ray.wait(running, num_returns=2)
