"""`selfloop why`: the chain behind rows and versions of whole runs on the local runtime."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from selfloop.workflows.cli import commands as cli
from selfloop.workflows.data.seeds import derive_seed
from selfloop.workflows.errors import InputError
from selfloop.workflows.flow.iteration import Iteration
from selfloop.workflows.flow.recipe import Recipe
from selfloop.workflows.flow.stream import Model
from selfloop.workflows.judges.prompts.rubric import AdditiveRubric
from selfloop.workflows.objectives.sft import SFT
from selfloop.workflows.report.why import explain, why
from selfloop.workflows.report.why.past import Past
from selfloop.workflows.store.folder import RunFolder
from tests.recipes.runs import pocket_config, run_recipe
from tests.unit.cli.test_cli import HEAVY
from tests.unit.flows import fake_config, rows_of, run_on, setup_of

SETTINGS: dict[str, dict[str, Any]] = {
    "spin": {},
    "self-rewarding": {"votes": 3},
    "grpo": {"samples": 4},
    "self-consistency-reward": {"samples": 4, "threshold": 0.0},
}


def right_or_wrong(answer: str, seed: int, version: int) -> str:
    """Some right, some wrong, some that would move a terminal's cursor."""
    return answer if seed % 3 else f"{answer}\x1b[2J{version}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each recipe."""
    root = tmp_path_factory.mktemp("runs")
    for slug, settings in SETTINGS.items():
        run_recipe(pocket_config(slug, settings, iterations=3), root / slug, right_or_wrong)
    return {slug: root / slug for slug in SETTINGS}


def checksum(run: Path, iteration: int) -> str:
    return RunFolder(run).manifest(iteration)["nodes"]["train"]["model"]["checksum"]


def flat(text: str) -> str:
    """The text without its line breaks and margins."""
    return " ".join(text.replace("|", " ").split())


def paired(run: Path, iteration: int) -> dict[str, Any]:
    """The first pair of an iteration."""
    return rows_of(run, iteration, "pair")[0]


@pytest.mark.parametrize("slug", SETTINGS)
@pytest.mark.parametrize("version", ["3", "policy@3"])
def test_a_version_is_traced_to_the_initial_model(runs: dict[str, Path], slug: str, version: str) -> None:
    run = runs[slug]
    text = why(run, version)
    assert str(run / "iteration=0003" / "policy") in text
    for index in (1, 2, 3):
        assert checksum(run, index) in text.partition("\nWeights\n")[2]
    assert "policy@0    the initial model, pocket" in text
    entry = RunFolder(run).manifest(3)["nodes"]["train"]
    assert f"{entry['steps']} step(s)" in flat(text)
    assert max(len(line) for line in text.splitlines() if str(run) not in line) <= 80


def test_rows_of_a_version_are_counted_by_iteration_and_writer(runs: dict[str, Path]) -> None:
    text = flat(why(runs["spin"], "3"))
    assert "Rows it was trained on: 48 of 'concat'" in text
    assert "24 of 'pair' of iteration 3: 24 chosen by no weights (a source), rejected by version 2" in text
    assert "24 of 'pair' of iteration 2: 24 chosen by no weights (a source), rejected by version 1" in text
    assert "reference policy@2" in text and "SPIN(beta=0.1" in text


def test_the_examples_of_a_version_can_be_asked_for(runs: dict[str, Path]) -> None:
    for run in runs.values():
        asked = [line.split()[-1] for line in why(run, "2").splitlines() if "selfloop why" in line]
        assert len(asked) >= 3
        for row in asked:
            assert "-> policy@2, checksum " + checksum(run, 2) in flat(why(run, row))


def test_a_sample_with_its_seed_judge_prompts_and_judgements(runs: dict[str, Path]) -> None:
    run = runs["self-rewarding"]
    pair = paired(run, 2)
    sample = next(row for row in rows_of(run, 2, "judge")
                  if (row["prompt_id"], row["sample"]) == (pair["prompt_id"], pair["chosen_sample"]))  # fmt: skip
    text = flat(why(run, f"{sample['prompt_id']}/{sample['sample']}@2"))
    assert f"sample {sample['sample']}: seed {sample['seed']}" in text
    assert "policy@1 wrote 4 samples a prompt: temperature 0.7, top_p 0.9, at most 32 tokens" in text
    asked = AdditiveRubric().messages(sample)[0]["content"]
    assert flat(asked.replace("\x1b", " ")) in text
    assert "judged by policy@1 with AdditiveRubric, 3 judgements each" in text
    for vote, judgement in enumerate(sample["score_judgements"]):
        seed = derive_seed(0, 2, "judge", sample["prompt_id"], sample["sample"], vote)
        said = flat(judgement["text"])
        assert f"judgement {vote + 1} (seed {seed}): {judgement['score']:.4g}, in its words: {said}" in text
    assert f"score {sample['score']:.4g} (mean of 3 read of 3)" in text
    other = f"({pair['chosen_score']:.4g} against {pair['rejected_score']:.4g})"
    assert f"sample {sample['sample']} chosen against sample {pair['rejected_sample']} {other}" in text
    assert f"-> policy@2, checksum {checksum(run, 2)}" in text
    assert f"policy@1 checksum {checksum(run, 1)}: 'train' of iteration 1 made it from policy@0" in text


def test_both_sides_of_a_pair_say_so(runs: dict[str, Path]) -> None:
    run = runs["self-consistency-reward"]
    pair = paired(run, 1)
    for side, other in (("chosen", "rejected"), ("rejected", "chosen")):
        text = flat(why(run, f"{pair['prompt_id']}/{pair[f'{side}_sample']}@1"))
        assert f"sample {pair[f'{side}_sample']} {side} against sample {pair[f'{other}_sample']}" in text
        assert f"weight {pair['weight']:.4g}" in text
        assert " answer " not in text  # nobody was given it


def test_a_row_that_was_not_learned_from_ends_where_it_was_dropped(runs: dict[str, Path]) -> None:
    run = runs["self-consistency-reward"]
    sides = {
        (row["prompt_id"], row[f"{side}_sample"])
        for row in rows_of(run, 1, "pair")
        for side in ("chosen", "rejected")
    }
    left = next(row for row in rows_of(run, 1, "sample") if (row["prompt_id"], row["sample"]) not in sides)
    text = why(run, f"{left['prompt_id']}/{left['sample']}@1")
    assert "in no pair by the rule MostAgainstLeast" in flat(text)
    assert "learned from" not in text and "policy@1" not in text


def test_rows_that_are_carried_over_are_followed(runs: dict[str, Path]) -> None:
    run = runs["spin"]
    pair = paired(run, 1)
    text = flat(why(run, f"{pair['prompt_id']}/sample/0@1"))
    first, second = text.index("Iteration 1"), text.index("Iteration 2")
    assert first < text.index(f"checksum {checksum(run, 1)}") < second
    assert "1 row of 'pairs' of iteration 1, read again" in text[second:]
    assert f"-> policy@2, checksum {checksum(run, 2)}" in text[second:]
    assert "Iteration 3" not in text  # SPIN carries pairs over once
    assert "sample 0: seed" in text and "rejected against" in text


def test_a_demonstration_was_written_by_no_weights(runs: dict[str, Path]) -> None:
    pair = paired(runs["spin"], 1)
    text = flat(why(runs["spin"], f"{pair['prompt_id']}/demonstrate/0@1"))
    assert "the text of 'answer' in the source 'prompts' as a response: no weights wrote it" in text
    assert "chosen against" in text and "wrote 1 sample" not in text


def test_rewards_and_advantages_are_told(runs: dict[str, Path]) -> None:
    run = runs["grpo"]
    row = rows_of(run, 1, "advantages")[0]
    text = flat(why(run, f"{row['prompt_id']}/{row['sample']}@1"))
    assert f"reward by Rewards(longest=32) sample {row['sample']}: {row['reward']:.4g}" in text
    assert f"advantages by Advantages sample {row['sample']}: {row['advantages']:.4g}" in text
    assert "kept 1 row by the rule Groups" in text and "learned from: 1 row" in text


def test_a_whole_prompt_group_is_told_shortly(runs: dict[str, Path]) -> None:
    run = runs["self-rewarding"]
    prompt = paired(run, 1)["prompt_id"]
    text = why(run, f"{prompt}@1")
    rows = [row for row in rows_of(run, 1, "sample") if row["prompt_id"] == prompt]
    assert all(f"seed {row['seed']}" in flat(text) for row in rows) and len(rows) == 4
    assert "the judge was asked" not in text
    assert text.endswith(f"selfloop why {run} {prompt}/0@1")


def test_held_out_rows_are_told_too(runs: dict[str, Path]) -> None:
    run = runs["grpo"]
    row = rows_of(run, 1, "heldout-sampled")[0]
    text = flat(why(run, f"{row['prompt_id']}/heldout-sampled/0@1"))
    assert "a prompt of the source 'heldout' (pocket)" in text and "policy@1 wrote 2 samples" in text
    assert "judged by the rule Exact" in text and "counted in the evaluation" in text
    assert "learned from" not in text


@pytest.mark.parametrize("slug", SETTINGS)
def test_no_control_character_of_a_model_reaches_the_terminal(runs: dict[str, Path], slug: str) -> None:
    run = runs[slug]
    odd = next(row for row in rows_of(run, 1, "sample") if "\x1b" in row["response"])
    for what in (f"{odd['prompt_id']}/{odd['sample']}@1", f"{odd['prompt_id']}@1", "1"):
        text = why(run, what)
        assert not any(ord(letter) < 32 and letter != "\n" for letter in text)
    assert "[2J" in why(run, f"{odd['prompt_id']}/{odd['sample']}@1")


def test_a_prefix_names_a_prompt_and_candidates_are_listed(runs: dict[str, Path]) -> None:
    run = runs["self-rewarding"]
    prompt = paired(run, 1)["prompt_id"]
    again = [
        index
        for index in (1, 2, 3)
        if any(row["prompt_id"] == prompt for row in rows_of(run, index, "sample"))
    ]
    assert again == [1, 2, 3]  # all prompts every iteration
    assert why(run, f"{prompt[:8]}/1@2") == why(run, f"{prompt}/1@2")
    with pytest.raises(InputError) as caught:
        why(run, f"{prompt[:8]}/1")
    names = ", ".join(f"{prompt}/1@{index}" for index in again)
    assert str(caught.value) == f"{prompt[:8]}/1 may be any of {names}. Name one of them"


class Writes(Recipe):
    """Samples write prompts, which are answered under other messages: the parent's words."""

    def iteration(self, it: Iteration) -> Model:
        asked = it.prompts().sample(it.policy, name="asks").map(as_prompt)
        answers = asked.sample(it.policy, n=2, show=with_parent, reads=("parent",), name="answers")
        made = it.policy.train(
            answers, SFT(), reference=None, optimizer="fresh", role="helper", name="helper"
        )
        return made.train(answers.keep(first), SFT(), reference=None, optimizer="fresh", role="policy")


def as_prompt(row: Any, rng: Any) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": f"again: {row['response']}"}]}


def with_parent(row: Any) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{row['parent']} says {row['prompt'][0]['content']}"}]


def first(rows: list[Any], rng: Any) -> list[Any]:
    return rows[:1]


def test_prompts_that_a_function_made_and_models_that_are_thrown_away(tmp_path: Path) -> None:
    config, run = fake_config(iterations=1), tmp_path / "run"
    run_on("local", config, run, Writes())
    past = Past(RunFolder(run), setup_of(config, Writes()))
    answer = rows_of(run, 1, "answers")[3]
    assert answer["sample"] == 1
    text = flat(explain(past, f"{answer['prompt_id']}/1@1"))
    assert f"parent {answer['parent']}: it was made from this prompt" in text
    assert f"map by as_prompt it opened this prompt, made from {answer['parent']}" in text
    assert flat(f"it was shown: {answer['parent']} says {answer['prompt'][0]['content']}") in text
    assert f"sample 1: seed {answer['seed']}" in text and "kept nothing of it by the rule first" in text
    assert "-> helper@1 (used in this iteration only), checksum" in text and "-> policy@1" not in text
    parent = flat(explain(past, answer["parent"]))
    assert (
        "policy@0 wrote 1 sample" in parent
        and f"new prompts were made from it: {answer['prompt_id']}" in parent
    )
    helper = explain(past, "helper@1")
    assert str(run / "iteration=0001" / "helper" / "model") in helper and "48 of 'answers'" in flat(helper)
    version = flat(explain(past, "1"))
    assert "start helper@1" in version and "helper@1 checksum" in version


def test_rows_that_were_only_carried_over_name_the_iteration_that_made_them(tmp_path: Path) -> None:
    config = pocket_config("spin", prompts={"heldout": 8, "per_iteration": 8, "options": {"size": 24}})
    run_recipe(config, tmp_path / "run")
    prompt = paired(tmp_path / "run", 1)["prompt_id"]
    with pytest.raises(InputError) as caught:
        why(tmp_path / "run", f"{prompt}@2")
    assert str(caught.value) == f"{prompt}@2: nothing was made of it in iteration 2, but there is {prompt}@1"
    assert "Iteration 2" in why(tmp_path / "run", prompt)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("12345", "policy@12345 does not exist: the run has policy@0 to policy@3"),
        ("policy@4", "policy@4 does not exist: the run has policy@0 to policy@3"),
        ("critic@1", "the run has no role 'critic': it has policy"),
        ("abc", "names no row: write PROMPT[/NODE][/SAMPLE][@ITERATION]"),
        ("abcdef/", "names no row"),
        ("abcdef@x", "names no row"),
        ("ffffffffffff", "no row has a prompt_id that begins with 'ffffffffffff'"),
        ("ffffffffffff@2", "no row has a prompt_id that begins with 'ffffffffffff'"),
        ("ffffffffffff@9", "the run has no iteration 9: it has 0, 1, 2, 3"),
        ("{prompt}/77@1", "there is no such row. Responses to this prompt were made by sample (0, 1, 2, 3)"),
        ("{prompt}/nowhere/0@1", "there is no such row. Responses to this prompt were made by sample (0, 1, 2, 3)"),
    ],
)  # fmt: skip
def test_bad_input_is_one_error_and_exit_status_2(runs: dict[str, Path], what: str, said: str) -> None:
    run = runs["self-rewarding"]
    asked = what.format(prompt=paired(run, 1)["prompt_id"])
    result = CliRunner().invoke(cli.app, ["why", str(run), asked])
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("Error: ") and said in result.stderr and "Traceback" not in result.stderr


def test_nothing_heavy_is_imported(runs: dict[str, Path]) -> None:
    run = runs["self-rewarding"]
    row = f"{paired(run, 1)['prompt_id']}/0@1"
    code = f"""
    import sys
    from selfloop.workflows.report.why import why
    assert why({str(run)!r}, "2") and why({str(run)!r}, {row!r})
    print([name for name in {HEAVY!r} if name in sys.modules])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_no_run_and_a_config_of_another_version(runs: dict[str, Path], tmp_path: Path) -> None:
    assert CliRunner().invoke(cli.app, ["why", str(tmp_path / "none"), "1"]).exit_code == 2
    held = json.loads((runs["grpo"] / "config.json").read_text())
    held["config"]["no_such_key"] = 1
    (tmp_path / "config.json").write_text(json.dumps(held))
    result = CliRunner().invoke(cli.app, ["why", str(tmp_path), "1"])
    assert result.exit_code == 2 and "does not fit this version of Selfloop" in result.stderr


def test_a_run_that_was_moved_cut_and_taken_over(runs: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "moved"
    shutil.copytree(runs["self-rewarding"], run)
    path = run / "iteration=0003" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["nodes"]["sample"]["reused"] = "runs/another"
    del manifest["nodes"]["train"]
    path.write_text(json.dumps({**manifest, "complete": False, "roles": {}}))
    pair = paired(run, 3)
    text = flat(why(run, f"{pair['prompt_id']}/{pair['chosen_sample']}@3"))
    assert "taken over from the run runs/another" in text
    assert "not trained on yet: 1 pair to be learned from" in text
    assert str(run / "iteration=0002" / "policy") in why(run, "2")
    with pytest.raises(InputError, match="policy@3 does not exist: the run has policy@0 to policy@2"):
        why(run, "3")
    shutil.rmtree(run / "iteration=0001" / "policy")
    assert "its folder is gone" in why(run, "1")
