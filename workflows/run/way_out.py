"""Why iterations held nothing to learn, and the command of a run that can: what is printed when training is not run."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfloop.workflows.data.batches import Counts, Verdicts
from selfloop.workflows.flow.graph import Graph
from selfloop.workflows.judges.base import Judge, Verifier
from selfloop.workflows.models.lengths import positions_of
from selfloop.workflows.run.setup import Setup
from selfloop.workflows.run.signal import makers
from selfloop.workflows.store.folder import RunFolder

__all__ = ["idle_line", "way_out"]

MOST = 0.5  # share of answers that were cut, or could not be read, from which that is the likeliest cause
LONGER = 4  # times max_tokens where answers were cut


def way_out(setup: Setup, folder: RunFolder, idle: Sequence[int]) -> str:
    """The message of a run that ends because nothing was trained in these iterations."""
    cause, hint, changes = diagnosis(setup, folder, idle[-1])
    names = ", ".join(map(str, idle[:-1])) + f" and {idle[-1]}"
    before = f"after iteration {idle[0] - 1}" if idle[0] > 1 else "at the start"
    return (
        f"there was nothing to train on in iterations {names}: {cause}. The policy and its optimizer are as they were "
        f"{before}, so more iterations would most likely bring the same.\n"
        f"  way out:     {hint}\n"
        f"  new run:     {command(setup, folder, idle[-1], changes)}"
    )


def idle_line(setup: Setup, folder: RunFolder, index: int) -> str:
    """What is said of one iteration without training."""
    cause, hint, _ = diagnosis(setup, folder, index)
    return f"Iteration {index} trained nothing: {cause}. The policy stays as it is. What can help: {hint}"


def diagnosis(setup: Setup, folder: RunFolder, index: int) -> tuple[str, str, dict[str, Any]]:
    """(what was found, what can be done, what a new run should change) of an iteration without training."""
    graph, entries = setup.planner.graph(index), folder.manifest(index)["nodes"]
    cut, abstained = cut_share(graph, entries), abstentions(graph, entries)
    if cut >= MOST:
        limit = setup.config.generator.max_tokens
        return (
            f"{100 * cut:.1f} % of the answers were cut at generator.max_tokens={limit} ({setup.recipe.cut_answers})",
            "raise generator.max_tokens, or ask for shorter answers (prompts.system)",
            {"generator.max_tokens": longer(setup, limit)},
        )
    if abstained >= MOST:
        return (
            f"{100 * abstained:.1f} % of the verdicts are abstentions: the judge could not read an answer or a score",
            "ask for a form that can be read (prompts.system), or take another judge; the column score_judgements shows more",
            {},
        )
    mean = mean_score(graph, entries)
    found, prompts = "answers to one prompt do not differ in what is learned from", "other prompts"
    if mean == 0:
        found, prompts = "every answer is wrong", "easier prompts or a stronger model"
    elif mean == 1:
        found, prompts = "every answer is right", "harder prompts"
    more = more_samples(setup)
    tries = [f"{name}={value}" for name, value in more.items()]
    tries += ["a higher settings.temperature"] if "temperature" in type(setup.recipe).model_fields else []
    return found, f"give {prompts}" + (f", or try {' and '.join(tries)}" if tries else ""), more


def cut_share(graph: Graph, entries: dict[str, Any]) -> float:
    """The share of the answers to learn from that were cut."""
    nodes = {one.name for node in graph if node.training for one in makers(graph, node.inputs[0])}
    held = sum((Counts.of(entries[name]) for name in sorted(nodes) if name in entries), Counts())
    return (held.truncated or 0) / max(held.rows, 1)


def mean_score(graph: Graph, entries: dict[str, Any]) -> float | None:
    """Mean verdict of the checker of answers; one without a score is wrong. None where no checker judges."""
    held = [counted for judge, counted in judged(graph, entries) if isinstance(judge, Verifier)]
    counted = sum(held, Counts())
    score = counted.verdicts.get("score", Verdicts({})).sum
    return (score or 0.0) / counted.rows if counted.rows else None


def abstentions(graph: Graph, entries: dict[str, Any]) -> float:
    """The share of the verdicts that are abstentions."""
    counted = sum((counted for _, counted in judged(graph, entries)), Counts())
    states = counted.verdicts.get("score", Verdicts({})).states
    return states.get("abstain", 0) / max(sum(states.values()), 1)


def judged(graph: Graph, entries: dict[str, Any]) -> list[tuple[Judge, Counts]]:
    """The judges of the recipe's own nodes with what the manifest counts of these."""
    own = [(node.name, judge) for node, judge in graph.judges() if not node.evaluation]
    return [(judge, Counts.of(entries[name])) for name, judge in own if name in entries]


def more_samples(setup: Setup) -> dict[str, Any]:
    """Twice the samples a prompt, where the method has such a setting."""
    samples = getattr(setup.recipe, "samples", None)
    return {"settings.samples": 2 * samples} if isinstance(samples, int) else {}


def longer(setup: Setup, limit: int) -> int:
    """A longer max_tokens that the model and max_model_len have room for."""
    longest = setup.config.generator.max_model_len or positions_of(setup.folder)
    return LONGER * limit if longest is None else min(LONGER * limit, (limit + longest) // 2)


def command(setup: Setup, folder: RunFolder, index: int, changes: dict[str, Any]) -> str:
    """`selfloop run` with this run's config, from the policy after this iteration, with these changes."""
    made = str(folder.policy(index) if folder.manifest(index)["roles"].get("policy") else setup.folder)
    model = setup.config.model if Path(made) == setup.folder else made
    number = 2
    while (free := folder.path.with_name(f"{folder.path.name}-{number}")).exists():
        number += 1
    words = [str(folder.path / "config.json"), f"model={model}"]
    words += [f"{name}={value}" for name, value in changes.items()]
    text = f"selfloop run {shlex.join(words)} --run-dir {shlex.quote(str(free))}"
    started = folder.started_in()
    elsewhere = started is not None and os.path.realpath(os.environ.get("PWD", started)) != os.path.realpath(
        started
    )
    return f"cd {shlex.quote(str(started))} && {text}" if elsewhere else text
