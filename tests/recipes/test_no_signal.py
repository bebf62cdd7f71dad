"""Iterations without anything to learn: training is not run, the policy stays, it is said, and the second in a row ends the run."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from selfloop.workflows.cli.chat import checkpoint_of
from selfloop.workflows.cli.outcomes import outcomes
from selfloop.workflows.config import read_config
from selfloop.workflows.errors import NoSignalError
from selfloop.workflows.recipes import RECIPES
from selfloop.workflows.recipes.reinforcement.grpo import GroupRelative
from selfloop.workflows.report.show import show
from selfloop.workflows.report.why import why
from selfloop.workflows.run.setup import Setup
from selfloop.workflows.store.folder import RunFolder
from selfloop.workflows.store.metrics import read_metrics
from tests.recipes.runs import Reply, by_seed, fake_trainer, pocket_config, run_recipe
from tests.unit.flows import rows_of

DR_GRPO = {"variant": "dr-grpo", "samples": 4}


def never_right(answer: str, seed: int, version: int) -> str:
    return f"{answer}{seed % 10}"


def always_right(answer: str, seed: int, version: int) -> str:
    return answer


def right_half_by(versions: Sequence[int]) -> Reply:
    """Half right under these versions of the weights, never right under others."""
    return lambda answer, seed, version: (by_seed if version in versions else never_right)(
        answer, seed, version
    )


def entries(path: Path, index: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the train node, the policy) in the manifest of an iteration."""
    manifest = RunFolder(path).manifest(index)
    return manifest["nodes"]["train"], manifest["roles"]["policy"]


def refused(config: Any, path: Path, reply: Reply, trainer: Any = None) -> str:
    with pytest.raises(NoSignalError) as error:
        run_recipe(config, path, reply, trainer)
    return str(error.value)


def test_two_iterations_without_signal_end_the_run_and_train_nothing(tmp_path: Path) -> None:
    config, path = pocket_config("grpo", DR_GRPO, iterations=5), tmp_path / "run"
    trainer = fake_trainer(config)
    message = refused(config, path, never_right, trainer)
    assert "nothing to train on in iterations 1 and 2: every answer is wrong" in message
    assert trainer.works == [] and RunFolder(path).completed() == 2
    for index in (1, 2):
        train, policy = entries(path, index)
        assert train["idle"] and train["steps"] == 0 and train["model"] == policy
        assert policy["folder"] == str(Setup(config).folder) and policy["state"] is None
        assert not (path / f"iteration=000{index}" / "policy").exists()
    for line in read_metrics(path)[1:]:
        told = (
            line["no_signal_share"],
            line["kept_rows"],
            line["made_rows"],
            line["idle"],
            line["cut_share"],
        )
        assert told == (1.0, 96, 96, 1.0, 0.0)


def test_a_resume_stops_in_the_same_place_and_runs_nothing(tmp_path: Path) -> None:
    """Decided from the manifests: without metrics.jsonl, with more iterations, and before anything is sampled."""
    config, path = pocket_config("grpo", DR_GRPO, iterations=5), tmp_path / "run"
    message = refused(config, path, never_right)
    events = (path / "events.jsonl").read_text()
    (path / "metrics.jsonl").unlink()
    longer = config.model_copy(update={"iterations": 9})
    assert refused(longer, path, by_seed) == message
    more = (path / "events.jsonl").read_text().removeprefix(events).splitlines()
    assert [json.loads(line)["event"] for line in more] == [
        "config"
    ]  # that it is longer now, and nothing else
    assert not (path / "iteration=0003").exists()


def test_a_run_stopped_between_the_two_counts_them_together(tmp_path: Path) -> None:
    path = tmp_path / "run"
    for iterations in (1, 4):
        config = pocket_config("grpo", DR_GRPO, iterations=iterations)
        if iterations == 1:
            assert [line["iteration"] for line in run_recipe(config, path, never_right)] == [0, 1]
        else:
            assert "iterations 1 and 2" in refused(config, path, never_right)
    assert RunFolder(path).completed() == 2


def test_one_iteration_without_signal_leaves_the_policy_and_its_optimizer(tmp_path: Path) -> None:
    """Version 2 is version 1: its checkpoint stays although only the last is kept, and training goes on from its state."""
    config = pocket_config("grpo", DR_GRPO, iterations=5, checkpoints={"keep": 1})
    path, trainer = tmp_path / "run", fake_trainer(config)
    seen: list[bool] = []
    folder = RunFolder(path)

    def reply(answer: str, seed: int, version: int) -> str:
        seen.append((folder.iteration(1) / "policy" / "config.json").is_file())
        return right_half_by((0, 2, 4))(answer, seed, version)

    run_recipe(config, path, reply, trainer)  # none of versions 1 and 3, one after another with signal
    assert [work.version for work in trainer.works] == [1, 3, 5]
    assert entries(path, 2)[1] == entries(path, 1)[1] == entries(path, 2)[0]["model"]
    for work, made in zip(trainer.works[1:], (1, 3), strict=True):
        assert work.start == str(folder.iteration(made) / "policy") and work.optimizer == "continued"
        assert work.start_state == str(folder.iteration(made) / "policy-state")
    assert seen[-1] is False and any(seen)  # gone once nobody needs it
    assert [line.get("idle") for line in read_metrics(path)] == [None, 0.0, 1.0, 0.0, 1.0, 0.0]


def test_a_model_that_was_carried_over_is_found_by_chat_and_why(tmp_path: Path) -> None:
    path = tmp_path / "run"
    run_recipe(pocket_config("grpo", DR_GRPO), path, right_half_by((0,)))
    assert checkpoint_of(path) == (path / "iteration=0001" / "policy", 2)
    told = " ".join(why(path, "2").split())
    assert "it is policy@1: later iterations left it as it was" in told
    row = rows_of(path, 2, "sample")[0]
    assert "not trained: 1 row, and every term of GRPO" in " ".join(
        why(path, f"{row['prompt_id']}/0@2").split()
    )
    shown = show(path)
    assert "cut answers: counted as wrong" in shown and "nothing was trained" in shown


def test_cut_answers_are_named_as_the_cause_and_the_new_run_s_command_is_right(tmp_path: Path) -> None:
    generator = {"engine": "fake", "max_tokens": 2, "max_model_len": 512, "options": {"emit_version": False}}
    prompts = {"heldout": 8, "options": {"size": 24, "kinds": ["sort", "reverse"]}}
    config = pocket_config("grpo", DR_GRPO, iterations=5, generator=generator, prompts=prompts)
    path = tmp_path / "run"
    message = refused(config, path, always_right)
    assert "100.0 % of the answers were cut at generator.max_tokens=2 (counted as wrong)" in message
    assert "raise generator.max_tokens" in message
    command = shlex.split(re.findall(r"selfloop run .*", message)[0])
    assert command[:3] == ["selfloop", "run", str(path / "config.json")] and command[-2] == "--run-dir"
    assert command[-1] == str(tmp_path / "run-2")
    draft = read_config(command[2], command[3:-2])
    assert draft.config is not None and not draft.problems
    wanted = {**config.generator.model_dump(), "max_tokens": 8}
    assert draft.config.generator.model_dump() == wanted and draft.config.model == "pocket"
    assert draft.config.prompts == config.prompts and draft.config.iterations == 5


def test_the_new_run_starts_from_the_policy_that_was_reached(tmp_path: Path) -> None:
    config, path = pocket_config("grpo", DR_GRPO, iterations=5), tmp_path / "run"
    message = refused(config, path, lambda *ask: (by_seed if ask[2] == 0 else always_right)(*ask))
    assert "every answer is right" in message and "harder prompts" in message
    assert f"model={path / 'iteration=0001' / 'policy'} settings.samples=8" in message


def test_with_a_kl_term_something_is_learned_whatever_the_rewards(tmp_path: Path) -> None:
    config = pocket_config("grpo", {"samples": 4, "kl": 0.04})
    trainer = fake_trainer(config)
    metrics = run_recipe(config, tmp_path / "run", never_right, trainer)
    assert len(trainer.works) == 2 and metrics[-1]["no_signal_share"] == 1.0 and metrics[-1]["idle"] == 0.0


def test_expert_iteration_keeps_the_last_policy_and_not_the_base(tmp_path: Path) -> None:
    config, path = pocket_config("expert-iteration", {"samples": 4}, iterations=2), tmp_path / "run"
    metrics = run_recipe(config, path, right_half_by((0,)))
    assert entries(path, 2)[1] == entries(path, 1)[1] and entries(path, 2)[0]["idle"]
    assert 0 < metrics[1]["kept_rows"] < metrics[1]["made_rows"] == 96 and metrics[2]["kept_rows"] == 0


def test_pair_methods_without_a_pair_are_the_same(tmp_path: Path) -> None:
    config, path = pocket_config("self-consistency-reward", {"samples": 4}, iterations=4), tmp_path / "run"
    assert "nothing to train on in iterations 1 and 2" in refused(config, path, always_right)
    last = read_metrics(path)[-1]
    assert last["kept_pairs"] == 0 and last["no_signal_share"] == 1.0 and last["made_rows"] == 96


def test_shares_of_prompts_answers_and_pairs(tmp_path: Path) -> None:
    """By hand from the rows: prompts of which no row can move a weight, cut answers, what reached training."""
    config, path = (
        pocket_config("self-consistency-reward", {"samples": 3, "threshold": 0.6}),
        tmp_path / "run",
    )
    line = run_recipe(config, path)[1]
    sampled, pairs = rows_of(path, 1, "sample"), rows_of(path, 1, "pair")
    prompts = {row["prompt_id"] for row in sampled}
    assert 0 < len(pairs) < len(prompts)
    assert line["no_signal_share"] == pytest.approx(1 - len(pairs) / len(prompts))
    assert (line["kept_pairs"], line["made_rows"]) == (len(pairs), 72)


def test_dynamic_sampling_counts_every_round_and_not_the_surplus(tmp_path: Path) -> None:
    prompts = {"heldout": 8, "per_iteration": 8, "options": {"size": 400}}
    settings = {"variant": "dapo", "samples": 3, "rounds": 5}
    config, path = pocket_config("grpo", settings, prompts=prompts, iterations=1), tmp_path / "run"
    line = run_recipe(config, path)[1]
    groups = [{row["prompt_id"] for row in rows_of(path, 1, f"grow/round-{k}/{node}")}
              for node in ("sample", "keep") for k in range(1, 6)]  # fmt: skip
    made, kept = (sum(map(len, half)) for half in (groups[:5], groups[5:]))
    assert kept > 8 and line["no_signal_share"] == pytest.approx(1 - kept / made)
    assert (line["kept_rows"], line["made_rows"]) == (24, 3 * made)


class EndsItself(GroupRelative):
    """Ends by its own rule where nothing was trained."""

    def stop(self, history: Sequence[dict[str, Any]]) -> bool:
        return len(history) == 3


class Nothing(GroupRelative):
    """Trains nothing."""

    def iteration(self, it: Any) -> Any:
        self.judged(it).save("rows")
        return {}


def test_a_recipe_s_own_rule_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(RECIPES, "grpo", EndsItself)
    config = pocket_config("grpo", DR_GRPO, iterations=5)
    for _ in range(2):
        assert len(run_recipe(config, tmp_path / "run", never_right)) == 3


def test_a_recipe_that_trains_nothing_is_not_without_signal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(RECIPES, "grpo", Nothing)
    metrics = run_recipe(pocket_config("grpo", DR_GRPO, iterations=3), tmp_path / "run", never_right)
    assert len(metrics) == 4 and all("idle" not in line for line in metrics)


def test_reuse_takes_rows_and_decides_anew(tmp_path: Path) -> None:
    config = pocket_config("grpo", DR_GRPO, iterations=3)
    refused(config, tmp_path / "first", never_right)
    again = config.model_copy(update={"reuse": str(tmp_path / "first")})
    refused(again, tmp_path / "second", by_seed)  # the engine would answer otherwise, and is not asked
    events = [json.loads(line) for line in (tmp_path / "second" / "events.jsonl").read_text().splitlines()]
    assert {one["node"] for one in events if one["event"] == "carried"} == {"train"}
    assert "train" not in {one["node"] for one in events if one["event"] == "reuse"}
    assert "sample" in {one["node"] for one in events if one["event"] == "reuse"}


def test_the_command_ends_with_1_and_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended, outcomes(False, tmp_path):
        raise NoSignalError("there was nothing to train on")
    assert ended.value.exit_code == 1 and not (tmp_path / "error.log").exists()
    said = capsys.readouterr().err
    assert said == "Stopped: there was nothing to train on\n"


def test_each_iteration_says_what_there_was_to_learn_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_recipe(pocket_config("grpo", DR_GRPO), tmp_path / "run", right_half_by((0,)))
    said = capsys.readouterr().out
    first, second = (
        next(line for line in said.splitlines() if f"after iteration {k}:" in line) for k in (1, 2)
    )
    assert re.search(r"% of the prompts gave no signal, 96 of 96 answers kept$", first)
    assert second.endswith(
        "100.0 % of the prompts gave no signal, 96 of 96 answers kept, nothing was trained"
    )
    assert "Iteration 2 trained nothing: every answer is wrong. The policy stays as it is." in said
