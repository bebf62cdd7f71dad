"""The learning rate's schedule: its curve, over a train node or a whole run, and what extending such a run asks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from selfloop.actors.generate.generator import make_engine
from selfloop.actors.generate.spec import EngineSpec
from selfloop.actors.train.fake import FakeTrainer
from selfloop.actors.train.step import schedule
from selfloop.actors.train.trainer import Trainer
from selfloop.workflows.cli import commands as cli
from selfloop.workflows.config import Config, load_config
from selfloop.workflows.errors import InputError
from selfloop.workflows.report.console import Console
from selfloop.workflows.run.local import local_runtime
from selfloop.workflows.run.loop import loop
from selfloop.workflows.run.setup import Setup
from selfloop.workflows.store.folder import RunFolder
from tests.unit.flows import fake_config, run_on
from tests.unit.train.trainer_rows import Death, Died, Likelihood, response_rows, spec_of, tiny_model, work_of

OVER_RUN: dict[str, Any] = {"schedule": {"kind": "linear", "over": "run"}}


def rates(kind: str, warmup: float, floor: float, steps: int = 8) -> list[float]:
    return [schedule(kind, 2.0, warmup, step, steps, floor) for step in range(steps)]


def test_every_step_of_every_curve():
    assert rates("constant", 0.0, 0.0) == [2.0] * 8
    assert rates("constant", 0.5, 0.9) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert rates("linear", 0.0, 0.0) == [2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25]
    assert rates("linear", 0.5, 0.5) == [0.5, 1.0, 1.5, 2.0, 2.0, 1.75, 1.5, 1.25]
    half = [0.5 * (1 + math.cos(math.pi * place / 8)) for place in range(8)]
    assert rates("cosine", 0.0, 0.0) == pytest.approx([2.0 * share for share in half])
    assert rates("cosine", 0.0, 0.1) == pytest.approx([2.0 * (0.1 + 0.9 * share) for share in half])
    assert schedule("cosine", 1e-6, 0.0, 10**6, 10**6, 0.1) == pytest.approx(1e-7)  # where it would end


def test_the_short_form_and_its_overrides(tmp_path: Path):
    file = tmp_path / "c.yaml"
    file.write_text("recipe: spin\ntrainer: {schedule: cosine}\n")
    with_floor = load_config(str(file), ["trainer.schedule.floor=0.1", "trainer.schedule.over=run"])
    assert with_floor.trainer.schedule.model_dump() == {"kind": "cosine", "floor": 0.1, "over": "run"}
    other = load_config(str(file), ["trainer.schedule.floor=0.1", "trainer.schedule=linear"])
    assert other.trainer.schedule.model_dump() == {"kind": "linear", "floor": 0.0, "over": "node"}
    with pytest.raises(
        InputError, match=r"command line: trainer.schedule.kind is 'cosin', and must be .*cosine\?"
    ):
        load_config(str(file), ["trainer.schedule=cosin"])


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("start"))


def test_one_curve_over_the_run_also_after_a_death(
    start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nine steps a node, the second of three: steps 9 to 17 of 27, whether or not a rank died on the way."""
    spec = spec_of(start, schedule="linear", warmup=0.5, floor=0.2, checkpoint_steps=4)
    given: dict[str, Any] = {"epochs": 3, "span": (2, 3)}
    whole = work_of(tmp_path / "whole", start, Likelihood(), response_rows(), **given)
    wanted = Trainer(spec).train(whole)
    assert [line["lr"] for line in wanted.curve] == [
        schedule("linear", 1e-3, 0.5, at, 27, 0.2) for at in range(9, 18)
    ]
    Death(step=7).install(monkeypatch)
    broken = work_of(tmp_path / "broken", start, Likelihood(), response_rows(), **given)
    with pytest.raises(Died):
        Trainer(spec).train(broken)
    resumed = Trainer(spec).train(broken)
    assert resumed.metrics["resumed_at_step"] == 4
    assert (resumed.curve, resumed.checksum) == (wanted.curve, wanted.checksum)


def test_a_step_checkpoint_of_another_total_is_not_taken_up(
    start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    spec = spec_of(start, schedule="linear", checkpoint_steps=2)
    Death(step=4).install(monkeypatch)
    with pytest.raises(Died):
        Trainer(spec).train(work_of(tmp_path, start, Likelihood(), response_rows(), epochs=2, span=(1, 2)))
    longer = work_of(tmp_path, start, Likelihood(), response_rows(), epochs=2, span=(1, 4))
    assert Trainer(spec).train(longer).metrics["resumed_at_step"] == 0


# A run


def manifest(folder: Path, iteration: int) -> dict[str, Any]:
    return json.loads((folder / f"iteration={iteration:04d}/manifest.json").read_text())


def keys(folder: Path, node: str) -> str:
    return manifest(folder, 1)["nodes"][node]["key"]


def test_the_total_is_in_the_key_of_training_and_of_nothing_before_it(tmp_path: Path):
    for name, config in {
        "two": fake_config("spin", trainer=OVER_RUN),
        "three": fake_config("spin", trainer=OVER_RUN, iterations=3),
        "node": fake_config("spin"),
        "node-three": fake_config("spin", iterations=3),
    }.items():
        run_on("local", config, tmp_path / name)
    found = {name: keys(tmp_path / name, "train") for name in ("two", "three", "node", "node-three")}
    assert found["node"] == found["node-three"]
    assert len({found["two"], found["three"], found["node"]}) == 3
    assert len({keys(tmp_path / name, "pair") for name in found}) == 1
    assert manifest(tmp_path / "three", 2)["nodes"]["train"]["span"] == 3


def test_more_iterations_need_a_yes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before, after = (fake_config("spin", trainer=OVER_RUN, iterations=count) for count in (2, 4))
    run_on("local", before, tmp_path)
    folder = RunFolder(tmp_path)
    with pytest.raises(
        InputError, match=r"planned over 2 and now to be over 4.*at 50 % of the new curve. Add --yes"
    ):
        folder.open(after.model_dump(mode="json"))
    folder.close()
    assert folder.open(after.model_dump(mode="json"), confirmed=True)
    folder.close()
    refused = CliRunner().invoke(cli.app, ["resume", str(tmp_path), "iterations=5"])
    assert (refused.exit_code, "planned over 4 and now to be over 5" in refused.stderr) == (2, True)
    asked: list[bool] = []
    monkeypatch.setattr("selfloop.workflows.executor.run.run", lambda *given: asked.append(given[3]))
    said = CliRunner().invoke(cli.app, ["resume", str(tmp_path), "iterations=5", "--yes"])
    assert (said.exit_code, asked) == (0, [True])


def test_a_node_that_was_trained_before_the_extension_stays(tmp_path: Path):
    """The driver ends between the training of iteration 2 and its exam; the run is extended and goes on."""
    trainers: list[FakeTrainer] = []

    def go(config: Config, dying: bool = False) -> None:
        setup, folder = Setup(config), RunFolder(tmp_path)
        folder.open(config.model_dump(mode="json"), confirmed=True)
        trainers.append(FakeTrainer(str(setup.folder)))
        engine = make_engine(EngineSpec("fake", str(setup.folder), options={"emit_version": False}))
        runtime, job = local_runtime(setup, folder, engine, trainers[-1])
        if dying:
            original = folder.commit_node

            def commit(index: int, name: str, entry: dict[str, Any]) -> None:
                original(index, name, entry)
                if (index, name) == (2, "train"):
                    raise Died

            folder.commit_node = commit  # type: ignore[method-assign]
        try:
            loop(setup, folder, runtime, job, Console(live=False))
        finally:
            folder.close()

    with pytest.raises(Died):
        go(fake_config("spin", trainer=OVER_RUN), dying=True)
    go(fake_config("spin", trainer=OVER_RUN, iterations=4))
    assert [work.span for work in trainers[1].works] == [(3, 4), (4, 4)]
    assert [manifest(tmp_path, index)["nodes"]["train"]["span"] for index in (1, 2, 3, 4)] == [2, 2, 4, 4]
