"""The folder of a run that a command names, and how a run is checked and started."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from selfloop.workflows.cli.outcomes import outcomes, say, stopped_by_signal
from selfloop.workflows.errors import InputError

if TYPE_CHECKING:
    from selfloop.workflows.checks import Findings
    from selfloop.workflows.config import Config, Draft

__all__ = ["checked", "free_name", "go_to_start", "run_folder", "set_aside", "start", "taken"]


def in_ray_job() -> bool:
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def run_folder(config: str, run_dir: Path | None) -> Path:
    """The absolute run folder. Raises InputError in a Ray job, whose working folder is deleted at its end."""
    if run_dir is not None:
        return run_dir.expanduser().absolute()
    home = os.environ.get("SELFLOOP_RUNS")
    if home is None and in_ray_job():
        raise InputError(
            "this is a Ray job, and its working folder is deleted with it, so runs/ would be lost. Give --run-dir, or "
            "set SELFLOOP_RUNS to a folder that stays"
        )
    return Path(home or "runs").expanduser().absolute() / Path(config).stem


def go_to_start(run: str) -> str:
    """The run's folder, after changing to the folder that it was started in; its own modules are found from there, or in the
    copy that it keeps."""
    from selfloop.workflows.store.folder import RunFolder
    from selfloop.workflows.store.modules import reach_modules

    folder = Path(run).expanduser().absolute()
    place = RunFolder(folder).started_in()
    if place is not None and place.is_dir():
        os.chdir(place)
    for note in reach_modules(RunFolder(folder)):
        say(f"Note: {note}.")
    if place is None:
        return run
    if not place.is_dir():
        say(
            f"Note: {place}, the folder that this run was started in, is gone: relative paths and modules of its config are "
            f"looked for from {Path.cwd()} instead."
        )
        return run
    return str(folder)


def free_name(config: Config, folder: Path) -> Path | None:
    """The next free NAME-1, NAME-2, … for the run in a folder, if it is finished, or of another config or an older format;
    None where there is none, or where it goes on."""
    from selfloop.workflows.store.changes import changes
    from selfloop.workflows.store.folder import FORMAT, RunFolder

    there = RunFolder(folder)
    held = there.config()
    if held is None or not there.committed():
        return None
    same = there.format == FORMAT and not changes(held, config.model_dump(mode="json")).refused
    if same and there.completed() < config.iterations:
        return None  # stopped on its way
    number = 1
    while (free := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return free


def set_aside(folder: Path, free: Path) -> None:
    """Rename a run."""
    from selfloop.workflows.store.folder import RunFolder

    there = RunFolder(folder)
    there.lock()  # not from under a driver that works on it
    there.close()
    folder.rename(free)
    say(f"The earlier run is now {free}")


def checked(draft: Draft, folder: Path, yes: bool = False) -> Findings:
    """The findings of a config without problems; raises InputError with all of these."""
    from selfloop.workflows.report.ticker import waiting

    with waiting("the config and its data are checked"):
        from selfloop.workflows.checks import inspect

        found = inspect(draft, folder, yes)
    if found.problems:
        raise InputError.of(found.problems)
    return found


def start(config: Config, folder: Path, found: Findings, debug: bool, yes: bool = False) -> None:
    """Run a checked config."""
    from selfloop.workflows.recipes import find_method
    from selfloop.workflows.report.console import Console
    from selfloop.workflows.report.text import title_of
    from selfloop.workflows.store.metrics import read_metrics

    title = title_of(find_method(config.recipe), config.recipe)
    prompts = config.prompts
    with outcomes(debug, folder), stopped_by_signal():
        console = Console(config.iterations)
        console.start(
            f"Selfloop: {config.model} improves itself by {title}",
            {
                "each iteration": "the policy answers prompts, the answers are judged, it learns from the better ones",
                "exam": f"{prompts.heldout} held-out prompts it never learns from, before and after each iteration",
                "prompts": f"{prompts.source}, {taken(prompts.per_iteration, found.prompts)} an iteration",
                "iterations": config.iterations,
            },
        )
        for note in found.notes:
            console.note(note)
        console.earlier(read_metrics(folder))
        from selfloop.workflows.executor.run import run as run_loop

        run_loop(config, folder, console, yes, found.setup, found.whole)


def taken(asked: int | None, there: int | None) -> str:
    """How many prompts an iteration takes, of those there are to learn from if that is known."""
    if there is None or (asked is not None and asked < there):
        return "all" if asked is None else f"{asked:,}"
    return f"all {there:,}"
