"""The command line: exit statuses, messages on stderr, where runs go, and what is never imported."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from selfloop.workflows.checks import machine as checks_machine
from selfloop.workflows.cli import chat
from selfloop.workflows.cli import commands as cli
from selfloop.workflows.config import Config, Prompts
from selfloop.workflows.errors import InputError, SelfloopError, TrainerError
from selfloop.workflows.recipes import RECIPES
from selfloop.workflows.report.methods import methods_table
from selfloop.workflows.store.folder import RunFolder

CONFIG = "recipe: self-rewarding\nprompts: {source: pocket, heldout: 8, options: {size: 16}}\n"
HEAVY = ("torch", "ray", "vllm", "deepspeed", "transformers", "datasets")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder with c.yaml, outside of any Ray job."""
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_ADDRESS", "SELFLOOP_RUNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(checks_machine, "count_cpus", lambda: 2)
    Path("c.yaml").write_text(CONFIG)


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, Path]]:
    """Instead of running, note what would be run."""
    from selfloop.workflows.executor import run as run_module

    calls: list[tuple[Config, Path]] = []
    monkeypatch.setattr(run_module, "run", lambda config, folder, *_: calls.append((config, folder)))
    return calls


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


# Nothing heavy, and quick


@pytest.mark.parametrize(
    "arguments", [["--help"], ["methods"], ["check", "c.yaml"], ["version"], ["show", "run"]]
)
def test_light_commands_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"format": 1, "config": {"recipe": "r"}}')
    code = f"""
    import sys
    from selfloop.workflows.cli import app
    try:
        app({arguments!r})
    except SystemExit as end:
        assert not end.code, end.code
    print([name for name in {HEAVY!r} if name in sys.modules])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_version_is_an_option_too() -> None:
    assert call("--version").stdout == call("version").stdout
    assert call("--version").exit_code == 0


@pytest.mark.parametrize("width", [60, 80, 200])
def test_methods_fit_the_terminal(width: int) -> None:
    text = methods_table(width)
    assert all(len(line) <= max(width, 64) for line in text.splitlines())
    assert all(f"{slug} " in text for slug in RECIPES)
    assert "own-data" in text


def test_a_working_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    code = "import os, shutil; os.mkdir('gone'); os.chdir('gone'); os.rmdir(os.getcwd()); from selfloop.workflows.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "methods"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Error: the folder that this command was started in is gone")


def test_a_run_whose_own_working_folder_is_gone_says_so(
    loops: list[tuple[Config, Path]], tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "c"
    config = Config(recipe="self-rewarding", prompts=Prompts(heldout=8, options={"size": 16}))
    RunFolder(folder).open(config.model_dump(mode="json"))
    environment = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text(json.dumps(environment | {"folder": str(tmp_path / "away")}))
    result = call("resume", "runs/c")
    assert result.exit_code == 0, result.stderr
    assert f"Note: {tmp_path}/away, the folder that this run was started in, is gone" in result.stdout


# run


def test_nothing_is_printed_before_the_errors_of_a_config() -> None:
    Path("c.yaml").write_text(CONFIG + "iterations: none\n")
    result = call("run", "c.yaml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: c.yaml, line 3: iterations")


def test_run_prints_its_folder_first_and_starts(loops: list[tuple[Config, Path]], tmp_path: Path) -> None:
    result = call("run", "c.yaml", "seed=3")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[0] == f"Run folder: {tmp_path}/runs/c"
    ((config, folder),) = loops
    assert (config.seed, folder) == (3, tmp_path / "runs" / "c")


def test_run_dir_and_the_folder_of_runs(
    loops: list[tuple[Config, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELFLOOP_RUNS", str(tmp_path / "elsewhere"))
    call("run", "c.yaml")
    call("run", "c.yaml", "--run-dir", "mine")
    assert [folder for _, folder in loops] == [tmp_path / "elsewhere" / "c", tmp_path / "mine"]


def test_bad_input_is_two_and_on_stderr(loops: list[tuple[Config, Path]]) -> None:
    result = call("run", "c.yaml", "iterations=0", "lr=1")
    assert result.exit_code == 2
    assert result.stderr == (
        "Error: 2 problems were found:\n"
        "  1. command line: iterations is 0, and must be at least 1\n"
        "  2. command line: lr is not a setting. Did you mean trainer.lr?\n"
    )
    assert "Traceback" not in result.output
    assert loops == []
    assert not Path("runs").exists()


def test_check_says_the_same_as_run() -> None:
    bad = ["c.yaml", "iterations=0", "model=./nowhere"]
    assert call("check", *bad).stderr == call("run", *bad).stderr != ""
    assert call("check", *bad).exit_code == 2


def test_unknown_config() -> None:
    result = call("run", "quickstrat")
    assert result.exit_code == 2
    assert "there is no config quickstrat" in result.stderr
    assert "Did you mean quickstart?" in result.stderr


def test_usage_errors_are_bad_input() -> None:
    assert call("run").exit_code == 2
    assert call("fly").exit_code == 2


def test_in_a_ray_job_a_folder_must_be_named(
    loops: list[tuple[Config, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    result = call("run", "c.yaml")
    assert result.exit_code == 2
    assert result.stderr == (
        "Error: this is a Ray job, and its working folder is deleted with it, so runs/ would be lost. Give --run-dir, or "
        "set SELFLOOP_RUNS to a folder that stays\n"
    )
    assert call("run", "c.yaml", "--run-dir", str(tmp_path / "stays")).exit_code == 0
    monkeypatch.setenv("SELFLOOP_RUNS", str(tmp_path))
    assert call("run", "c.yaml").exit_code == 0


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch, made: bool = True) -> Result:
    from selfloop.workflows.executor import run as run_module

    def run(config: Config, folder: Path, *_: Any) -> None:
        if made:
            RunFolder(folder).open(config.model_dump(mode="json"))
        raise error

    monkeypatch.setattr(run_module, "run", run)
    return call("run", "c.yaml")


def test_failure_is_one_with_the_traceback_in_the_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result = fail_with(TrainerError("the loss of step 3 is not finite. Lower trainer.lr"), monkeypatch)
    assert result.exit_code == 1
    assert result.stderr == (
        "Failed: the loss of step 3 is not finite. Lower trainer.lr\n"
        f"  traceback:   {tmp_path}/runs/c/error.log\n"
        f"  go on with:  selfloop resume {tmp_path}/runs/c\n"
    )
    assert "TrainerError" in (tmp_path / "runs" / "c" / "error.log").read_text()


def test_errors_of_actors_are_unwrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrapped(SelfloopError):
        """As Ray wraps what an actor raised: its text is a long traceback."""

        cause = InputError("the hub has no such model")

    result = fail_with(Wrapped("ray::Generator() …\nTraceback …"), monkeypatch)
    assert (result.exit_code, result.stderr) == (2, "Error: the hub has no such model\n")


def test_unexpected_errors_name_their_type(monkeypatch: pytest.MonkeyPatch) -> None:
    result = fail_with(ValueError("odd"), monkeypatch, made=False)
    assert result.exit_code == 1
    first, log, rest = result.stderr.splitlines()
    assert first == "Failed: ValueError: odd" and rest.startswith("  Nothing was committed")
    assert "ValueError: odd" in Path(log.removeprefix("  traceback:   ")).read_text()
    result = fail_with(
        ValueError("ray::RankActor.run()\n  File …\n  File …\nKeyError: 'x'\n"), monkeypatch, made=False
    )
    assert result.stderr.splitlines()[0] == "Failed: ValueError: ray::RankActor.run() … KeyError: 'x'"


def test_an_actor_that_could_not_start_says_only_what_was_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    said = (
        "The actor died because of an error raised in its creation task, \x1b[36mray::Generator.__init__()\x1b[39m (pid=7)\n"
        "  File generator.py, line 34\nselfloop.workflows.errors.EngineError: vLLM could not start: no such option 'x'\n"
    )
    result = fail_with(RuntimeError(said), monkeypatch, made=False)
    assert result.stderr.splitlines()[0] == "Failed: vLLM could not start: no such option 'x'"


def test_stopped_is_130_and_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = fail_with(KeyboardInterrupt(), monkeypatch)
    assert result.exit_code == 130
    assert result.stderr == (
        f"Stopped. Nothing that was committed is lost. Go on with:\n  selfloop resume {tmp_path}/runs/c\n"
    )


def test_a_terminated_run_stops_like_ctrl_c(tmp_path: Path) -> None:
    code = """
    import os, signal
    from selfloop.workflows.cli.outcomes import outcomes, stopped_by_signal
    with outcomes(False), stopped_by_signal():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    """
    wrapped = f"import typer\ntry:\n{textwrap.indent(textwrap.dedent(code), '    ')}\nexcept typer.Exit as e:\n    raise SystemExit(e.exit_code)"
    done = subprocess.run(
        [sys.executable, "-c", wrapped], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (130, "Stopped.\n")


# again and resume


def test_a_run_that_goes_on_tells_its_history(loops: list[tuple[Config, Path]], tmp_path: Path) -> None:
    call("run", "c.yaml")
    make_run(tmp_path / "runs" / "c", loops[0][0], 1)
    (tmp_path / "runs" / "c" / "metrics.jsonl").write_text('{"iteration": 1, "heldout_accuracy": 0.5}\n')
    assert "Going on. So far, after iteration 1: 50.0 %" in call("run", "c.yaml").stdout


def make_run(folder: Path, config: Config, iterations: int) -> None:
    run = RunFolder(folder)
    run.open(config.model_dump(mode="json"))
    for index in range(iterations + 1):
        run.commit_iteration(index, {})
    run.close()


def test_again_renames_a_finished_run(loops: list[tuple[Config, Path]], tmp_path: Path) -> None:
    call("run", "c.yaml")
    config = loops[0][0]
    make_run(tmp_path / "runs" / "c", config, 1)
    call("run", "c.yaml", "--again")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["c"]
    make_run(tmp_path / "runs" / "c", config, 3)
    assert "The earlier run is now" in call("run", "c.yaml", "--again").stdout
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["c-1"]


def test_again_renames_nothing_for_a_config_that_is_wrong(
    loops: list[tuple[Config, Path]], tmp_path: Path
) -> None:
    call("run", "c.yaml")
    make_run(tmp_path / "runs" / "c", loops[0][0], 3)
    for wrong in ("trainer.lr=fast", "model=./nowhere"):
        result = call("run", "c.yaml", wrong, "--again")
        assert result.exit_code == 2 and result.stdout == ""
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["c"]


def test_again_leaves_a_run_that_is_worked_on(loops: list[tuple[Config, Path]], tmp_path: Path) -> None:
    call("run", "c.yaml")
    make_run(tmp_path / "runs" / "c", loops[0][0], 3)
    driver = RunFolder(tmp_path / "runs" / "c")
    driver.lock()
    result = call("run", "c.yaml", "seed=7", "--again")
    driver.close()
    assert result.exit_code == 1 and "another driver is working on" in result.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["c"]


def test_resume_goes_on_with_the_config_of_the_folder(
    loops: list[tuple[Config, Path]], tmp_path: Path
) -> None:
    call("run", "c.yaml", "seed=5")
    make_run(tmp_path / "runs" / "c", loops[0][0], 1)
    assert call("resume", "runs/c").exit_code == 0
    assert loops[1] == loops[0]
    assert call("resume", "runs/none").exit_code == 2


def test_resume_from_another_folder_reads_the_same_files(
    loops: list[tuple[Config, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [json.dumps({"prompt": f"p{number}"}) for number in range(20)]
    (tmp_path / "mine.jsonl").write_text("\n".join(rows))
    assert call("run", "c.yaml", "prompts=mine.jsonl", "prompts.heldout=4").exit_code == 0
    run = RunFolder(tmp_path / "runs" / "c")
    run.open(loops[0][0].model_dump(mode="json"))
    run.close()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = call("resume", str(run.path))
    assert (result.exit_code, result.stderr) == (0, "")
    assert loops[1] == loops[0]


def test_run_refuses_the_folder_of_another_config(loops: list[tuple[Config, Path]], tmp_path: Path) -> None:
    call("run", "c.yaml")
    make_run(tmp_path / "runs" / "c", loops[0][0], 1)
    result = call("run", "c.yaml", "seed=9")
    assert result.exit_code == 2
    assert "holds a run of another config: seed was 0 and is now 9" in result.stderr


# The other commands


def test_check_prints_the_graph() -> None:
    result = call("check", "c.yaml")
    assert result.exit_code == 0
    assert "flowchart" in result.stdout
    assert "train" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("No problem found. The run would be written to ")


def test_methods_lists_each_with_a_config_to_start_from() -> None:
    lines = methods_table(200).splitlines()
    assert lines[0].split() == ["method", "kind", "answers", "paper", "configs"]
    assert [line.split()[0] for line in lines[1:]] == sorted(RECIPES)
    assert all(line.split()[-1] != "-" for line in lines[1:])


def test_version() -> None:
    assert call("version").stdout.startswith("selfloop ")


# chat


def test_chat_answers_each_line_of_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[Any] = []
    chat.chat(lambda messages: asked.append(list(messages)) or "yes", io.StringIO("one\n\ntwo\n"))
    assert asked == [[{"role": "user", "content": "one"}], [{"role": "user", "content": "two"}]]


def test_a_conversation_remembers_until_new(capsys: pytest.CaptureFixture[str]) -> None:
    lengths: list[int] = []
    chat.chat(
        lambda messages: lengths.append(len(messages)) or "yes",
        io.StringIO("a\nb\n/new\nc\n"),
        interactive=True,
    )
    assert lengths == [1, 3, 1]


def test_chat_takes_the_last_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for index in (1, 2):
        (run / f"iteration={index:04d}" / "policy").mkdir(parents=True)
        (run / f"iteration={index:04d}" / "policy" / "config.json").write_text("{}")
    (run / "config.json").write_text(json.dumps({"format": 1, "config": {"model": "pocket"}}))
    assert chat.checkpoint_of(run) == (run / "iteration=0002" / "policy", 2)
    assert chat.checkpoint_of(run, 1)[1] == 1
    assert chat.checkpoint_of(run, 0)[0].name == "base"
    with pytest.raises(
        InputError, match=r"has no checkpoint of iteration 7\. It has 0, 1, 2: choose one with --iteration"
    ):
        chat.checkpoint_of(run, 7)


@pytest.mark.real
def test_chat_talks_to_the_pocket_model(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"format": 1, "config": {"model": "pocket"}}))
    done = subprocess.run(
        [sys.executable, "-m", "selfloop.workflows.cli", "chat", str(run), "--max-tokens", "8", "--temperature", "0"],
        input="sort 3 1 2\n", capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "The initial policy" in done.stderr
