"""What is wrong with the rows that a run is given, or worth knowing of them, before an actor starts."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from selfloop.workflows.errors import InputError
from selfloop.workflows.run.fitting import fitting, place_of, spoken
from selfloop.workflows.run.setup import Setup
from selfloop.workflows.run.template_check import template_findings
from selfloop.workflows.sources.overlap import overlap_notes

__all__ = ["row_findings"]


def row_findings(setup: Setup, folder: Path | None) -> tuple[list[str], list[str]]:
    """(problems, notes) of the rows of all sources: whether they fit the model in `folder` and its chat template
    fits both, pairs without a difference, and
    prompts that are held out and learned from. folder: None where the model is not here yet."""
    problems, notes = template_findings(setup.config, folder) if folder is not None else ([], [])
    if folder is not None and not problems:
        problems, more = fitting(setup, folder)
        notes += more
    learned = learned_from(setup)
    for name, table in setup.sources.items():
        same = identical_pairs(table)
        if not same:
            continue
        config, rows = setup.config, table.num_rows
        told = (f"{len(same):,} of {rows:,} pairs of {spoken(config, name)} are identical, the first at "
                f"{place_of(config, name, same[0])}: chosen and rejected are the same text")  # fmt: skip
        if len(same) == rows and name in learned:
            problems.append(
                f"{told}, so that there is nothing to learn from. Name other columns (data.{name}.columns.chosen, "
                "….rejected), or other data"
            )
        else:
            notes.append(f"{told}. They are left out")
    named = {name: (spoken(setup.config, name), table) for name, table in setup.sources.items()}
    held = dict(pair for name, pair in named.items() if name not in learned and name != "prompts")
    notes += overlap_notes(held, dict(pair for name, pair in named.items() if name in learned))
    return problems, notes


def identical_pairs(table: pa.Table) -> list[str]:
    """The prompt_id of each pair whose sides say the same."""
    if not {"chosen", "rejected"} <= set(table.column_names):
        return []
    columns = (table[name].to_pylist() for name in ("prompt_id", "chosen", "rejected"))
    return [name for name, chosen, rejected in zip(*columns, strict=True) if chosen == rejected]


def learned_from(setup: Setup) -> set[str]:
    """The sources whose rows reach a train node in the first iterations."""
    found: set[str] = set()
    for index in range(1, min(2, setup.config.iterations) + 1):
        try:
            graph = setup.planner.graph(index)
        except InputError:  # the lint says so
            continue
        found |= {name for node in graph if node.training is not None for name in graph.sources(node.name)}
    return found
