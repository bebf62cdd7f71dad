"""Nothing is computed twice: finished nodes of another run, taken over where the content keys match."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from selfloop.workflows.flow.graph import Graph
from selfloop.workflows.run.job import Job
from selfloop.workflows.run.node import Flow
from selfloop.workflows.store.checkpoint import Place

__all__ = ["take_node"]


def take_node(job: Job, graph: Graph, flow: Flow) -> bool:
    """Commit the node with the rows or the model that the run `job.reuse` has for it; False if it has none."""
    if job.reuse is None or flow.node.given or flow.stored:
        return False
    name = flow.node.name
    entry = job.reuse.manifest(graph.iteration)["nodes"].get(name)
    if entry is None or entry["key"] != flow.key or entry.get("idle"):
        return False  # whether there is something to learn is seen at once from the rows
    entry = {**entry, "reused": str(job.reuse.path)}
    if flow.node.training is None:
        parts = job.reuse.parts(graph.iteration, name)
        if sum(len(part.batches) for part in parts) < entry["batches"]:
            return False  # its rows were deleted
        if any(part.about.get("batch_size", flow.batch_size) != flow.batch_size for part in parts):
            return False  # cut into other batches than the nodes it is joined with
        for part in parts:
            link(Path(part.path), job.folder.node(graph.iteration, name) / Path(part.path).name)
        flow.resume(job.folder.parts(graph.iteration, name))
    else:
        made = take_model(Place.of(entry["model"], job.reuse), job.models.out(flow.node, graph))
        if made is None:
            return False
        entry["model"] = made.entry(job.folder)
    job.folder.commit_node(graph.iteration, name, entry)
    job.folder.event("reuse", iteration=graph.iteration, node=name, run=str(job.reuse.path))
    return True


def take_model(model: Place, out: Path) -> Place | None:
    """The checkpoint and its state, under this run's names; None if the other run has deleted them."""
    if not Path(model.folder).is_dir():
        return None
    state = out.with_name(f"{out.name}-state")
    for source, target in ((model.folder, out), (model.state, state)):
        if source and Path(source).is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target, copy_function=link)
    return replace(model, folder=str(out), state=model.state and str(state))


def link(source: str | Path, target: str | Path) -> None:
    """The same file under another name; a copy where the file system has no links across these places."""
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
