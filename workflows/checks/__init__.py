"""All that can be wrong before any actor starts, found together: each problem one sentence with its way out."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from selfloop.workflows.checks.machine import (
    check_folder,
    check_machine,
    check_packages,
    check_space,
    told_changes,
)
from selfloop.workflows.checks.model import ModelFindings, check_model
from selfloop.workflows.checks.prompts import DataFacts, Scan, check_data
from selfloop.workflows.checks.trial import Tried, try_code
from selfloop.workflows.config import Config, Draft
from selfloop.workflows.errors import InputError
from selfloop.workflows.store.folder import RunFolder
from selfloop.workflows.store.modules import changed_modules

if TYPE_CHECKING:
    from selfloop.workflows.run.setup import Setup

__all__ = ["Findings", "inspect", "problems"]


@dataclass
class Findings:
    """problems: what stops the run. notes: what could not be checked here. tried: what a verifier said of gold answers. scans:
    prompts seen by source. prompts: how many there are to learn from; None where they were not loaded. setup: what the graph
    was checked with, for the run to go on with. whole: rows were checked with the model too, so that nothing is left to check."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)
    scans: Mapping[str, Scan] = field(default_factory=dict)
    parameters: int = 0
    prompts: int | None = None
    graph_checked: bool = False
    setup: Setup | None = None
    whole: bool = False


def problems(config: Config, run_dir: Path | None = None) -> list[str]:
    """Every problem of a config on this machine; empty when the run may start."""
    return inspect(Draft(config=config, problems=[]), run_dir).problems


def inspect(draft: Draft, run_dir: Path | None = None, confirmed: bool = False) -> Findings:
    """Everything that is wrong with a config as far as it could be read, in the order of the config. confirmed: the user
    has said yes to what must be asked first."""
    found = Findings(list(draft.problems))
    if draft.config is None:
        return found
    config, broken, held = draft.config, draft.broken, held_by(run_dir)
    touched = {key.split(".")[0] for key in broken}
    model = ModelFindings()
    if "model" not in touched:
        model = take(found, check_model(config, broken=broken))
        found.parameters = model.parameters
    if config.judge_model is not None:
        take(found, check_model(config, "judge_model"))
    data = DataFacts()
    if broken.isdisjoint({"prompts", "prompts.source", "prompts.columns", "prompts.options", "data"}):
        data = take(found, check_data(config, broken))
    found.scans = data.scans
    if not draft.problems and not data.problems:
        model_folder = None if model.problems else model.folder
        check_graph(config, found, model_folder, run_dir, going_on=bool(held) and not confirmed)
    found.problems += check_reuse(config)
    if not touched & {"generator", "trainer", "placement"}:
        found.problems += check_machine(config, held.get("resolved", {}).get("device"))
        found.problems += check_packages(config)
    if run_dir is not None:
        whole = not draft.problems
        blocked = list(check_folder(config if whole else None, run_dir, confirmed))
        found.problems += blocked
        if not blocked and "iterations" not in broken:
            found.problems += check_space(config, run_dir, found.parameters)
        if whole and not blocked:
            found.notes += told_changes(config, run_dir)
            found.notes += changed_modules(RunFolder(run_dir), config.model_dump(mode="json"))
    found.problems, found.notes = list(dict.fromkeys(found.problems)), list(dict.fromkeys(found.notes))
    return found


Facts = TypeVar("Facts", ModelFindings, DataFacts, Tried)


def take(found: Findings, facts: Facts) -> Facts:
    found.problems += facts.problems
    found.notes += facts.notes
    return facts


def held_by(run_dir: Path | None) -> dict[str, Any]:
    """What config.json of a run holds that may go on; empty without one, and for those of which `check_folder` tells."""
    with suppress(InputError):
        if run_dir is not None:
            RunFolder(run_dir).refuse_older()
            return RunFolder(run_dir).record()
    return {}


def check_graph(
    config: Config, found: Findings, model: Path | None, run_dir: Path | None, going_on: bool
) -> None:
    """The lint of the recipe's graphs, a look at the rows, and whether these are still those of the run that goes on in
    run_dir. All need the prompts: the run does it where these are many or elsewhere. model: its folder, if it is here and
    in order."""
    from selfloop.workflows.run.findings import row_findings
    from selfloop.workflows.run.going_on import refuse_changed_data
    from selfloop.workflows.run.problems import graph_facts
    from selfloop.workflows.run.setup import Setup
    from selfloop.workflows.run.voting import vote_notes

    read = {name: scan.table for name, scan in found.scans.items() if scan.table is not None}
    if len(read) < len(found.scans):
        found.notes.append("the graph is checked when the run has loaded the prompts")
        return
    try:
        found.graph_checked = True
        setup = found.setup = Setup(config, run_dir, read)
        facts = graph_facts(setup)
        found.problems += facts.problems
        found.notes += facts.notes
        found.tried += facts.tried
        if not facts.problems:
            take(found, try_code(setup))
        found.notes += vote_notes(setup)
        wrong, notes = row_findings(setup, model)
        found.problems += wrong
        found.notes += notes
        found.prompts = setup.sources["prompts"].num_rows
        if run_dir is not None and going_on:
            found.problems += refuse_changed_data(setup, RunFolder(run_dir), agreed=False)
        found.whole = model is not None
    except InputError as error:
        found.problems.append(str(error))


def check_reuse(config: Config) -> list[str]:
    """A run to take finished nodes from that is no run, is of an older format, or whose batches have other borders."""
    if config.reuse is None:
        return []
    try:
        held = RunFolder(config.reuse).config()
        RunFolder(config.reuse).refuse_older()
    except InputError as error:
        return [f"reuse: {error}"]
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
