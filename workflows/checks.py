"""All that can be wrong before any actor starts, found together: each problem one sentence with its way out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from selfloop.workflows.checks_data import DataFacts, Scan, check_data
from selfloop.workflows.checks_machine import (
    check_folder,
    check_machine,
    check_packages,
    check_space,
    told_changes,
)
from selfloop.workflows.checks_model import ModelFacts, check_model
from selfloop.workflows.config import Config, Draft
from selfloop.workflows.errors import InputError
from selfloop.workflows.store.run import RunFolder

__all__ = ["Findings", "inspect", "problems"]

MANY = 100_000


@dataclass
class Findings:
    """problems: what stops the run. notes: what could not be checked here. rows: prompts seen by source."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    scans: Mapping[str, Scan] = field(default_factory=dict)
    parameters: int = 0
    graph_checked: bool = False


def problems(config: Config, run_dir: Path | None = None) -> list[str]:
    """Every problem of a config on this machine; empty when the run may start."""
    return inspect(Draft(config=config, problems=[]), run_dir).problems


def inspect(draft: Draft, run_dir: Path | None = None, changed_data: bool = False) -> Findings:
    """Everything that is wrong with a config as far as it could be read, in the order of the config.

    changed_data: the user agrees to rows that changed under the run in this folder.
    """
    found = Findings(list(draft.problems))
    if draft.config is None:
        return found
    config, broken, held = draft.config, draft.broken, held_by(run_dir)
    touched = {key.split(".")[0] for key in broken}
    if "model" not in touched:
        found.parameters = take(found, check_model(config)).parameters
    if config.judge_model is not None:
        take(found, check_model(config, "judge_model"))
    data = DataFacts()
    if broken.isdisjoint({"prompts", "prompts.source", "prompts.columns", "prompts.options", "data"}):
        data = take(found, check_data(config, broken))
    found.scans = data.scans
    if not draft.problems and not data.problems:
        check_graph(config, found, run_dir if held and not changed_data else None)
    found.problems += check_reuse(config)
    if not touched & {"generator", "trainer", "placement"}:
        found.problems += check_machine(config, held.get("resolved", {}).get("device"))
        found.problems += check_packages(config)
    if run_dir is not None:
        whole = not draft.problems
        blocked = list(check_folder(config if whole else None, run_dir))
        found.problems += blocked
        if not blocked and "iterations" not in broken:
            found.problems += check_space(config, run_dir, found.parameters)
        if whole and not blocked:
            found.notes += told_changes(config, run_dir)
    found.problems = list(dict.fromkeys(found.problems))
    return found


Facts = TypeVar("Facts", ModelFacts, DataFacts)


def take(found: Findings, facts: Facts) -> Facts:
    found.problems += facts.problems
    found.notes += facts.notes
    return facts


def held_by(run_dir: Path | None) -> dict[str, Any]:
    """What config.json of a run folder holds; empty without one, and for a broken one, of which `check_folder` tells."""
    try:
        return RunFolder(run_dir).record() if run_dir is not None else {}
    except (InputError, ValueError):
        return {}


def check_graph(config: Config, found: Findings, run_dir: Path | None) -> None:
    """The lint of the recipe's graphs, and whether the rows are still those of the run that goes on in this folder.

    Both need the prompts: the run does it where these are many or elsewhere."""
    from selfloop.workflows.flow.going_on import refuse_changed_data
    from selfloop.workflows.flow.gold import graph_problems
    from selfloop.workflows.flow.setup import Setup

    if any(not scan.whole or scan.rows > MANY for scan in found.scans.values()):
        found.notes.append("the graph is checked when the run has loaded the prompts")
        return
    try:
        found.graph_checked = True
        setup = Setup(config)
        found.problems += graph_problems(setup)
        if run_dir is not None:
            found.problems += refuse_changed_data(setup, RunFolder(run_dir), agreed=False)
    except InputError as error:
        found.problems.append(str(error))


def check_reuse(config: Config) -> list[str]:
    """A run to take finished nodes from that is no run, or whose batches have other borders."""
    if config.reuse is None:
        return []
    held = RunFolder(config.reuse).config()
    if held is None:
        return [
            f"reuse {config.reuse} is no run folder (it has no config.json). Name a run folder, or leave it out"
        ]
    if held.get("batch_size") != config.batch_size:
        return [
            (
                f"reuse {config.reuse} has batch_size {held.get('batch_size')} and this config {config.batch_size}, and a node "
                f"is taken over batch by batch. Set batch_size={held.get('batch_size')}: it does not change the rows"
            )
        ]
    return []
