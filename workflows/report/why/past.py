"""What `selfloop why` knows of a run: its folder alone, with each iteration's graph rebuilt from config.json."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.compute as pc
import pyarrow.parquet as pq

from selfloop.workflows.flow.graph import Graph, ModelRef, Node
from selfloop.workflows.run.models import carried
from selfloop.workflows.run.setup import Setup
from selfloop.workflows.run.sources import Sources
from selfloop.workflows.store.folder import RunFolder

__all__ = ["Made", "Past", "Row"]

Row = dict[str, Any]


class Made(NamedTuple):
    """Where a model comes from: the train node of an iteration; without a node it is the initial model."""

    iteration: int
    node: Node | None


@dataclass(frozen=True)
class Past:
    """A run as it was: graphs, manifests and committed rows. Nothing is started and nothing is written."""

    folder: RunFolder
    setup: Setup
    graphs: dict[int, Graph] = field(default_factory=dict)
    manifests: dict[int, dict[str, Any]] = field(default_factory=dict)

    @cached_property
    def sources(self) -> Sources:
        """The slices that its source nodes took."""
        return Sources(self.folder, self.setup.config.seed, self.setup.sources)

    @cached_property
    def iterations(self) -> list[int]:
        """The iterations that have a folder."""
        return self.folder.iterations()

    def graph(self, index: int) -> Graph:
        if index not in self.graphs:
            self.graphs[index] = self.setup.planner.graph(index)
        return self.graphs[index]

    def manifest(self, index: int) -> dict[str, Any]:
        if index not in self.manifests:
            self.manifests[index] = self.folder.manifest(index)
        return self.manifests[index]

    def entry(self, index: int, node: str) -> dict[str, Any] | None:
        """What the manifest says of a node; None while it is not complete."""
        return self.manifest(index)["nodes"].get(node)

    # rows

    def read(self, index: int, node: str, columns: Iterable[str]) -> list[Row]:
        """The committed rows of a node, with those of the columns that it has."""
        found: list[Row] = []
        for part in self.folder.parts(index, node):
            with pq.ParquetFile(part.path) as file:
                found += file.read(
                    columns=[name for name in columns if name in file.schema_arrow.names]
                ).to_pylist()
        return found

    def prompt_ids(self, index: int, node: str) -> set[str]:
        """The prompts of a node's committed rows."""
        found: set[str] = set()
        for part in self.folder.parts(index, node):
            with pq.ParquetFile(part.path) as file:
                if "prompt_id" in file.schema_arrow.names:
                    found.update(file.read(columns=["prompt_id"])["prompt_id"].unique().to_pylist())
        return found

    def group(self, index: int, node: str, prompt: str) -> tuple[list[Row], list[Row]]:
        """(rows of a prompt, rows of the prompts that were made from it) among a node's committed rows, in order."""
        found: list[Row] = []
        for part in self.folder.parts(index, node):
            table = pq.ParquetFile(part.path).read()
            names = [name for name in ("prompt_id", "parent") if name in table.column_names]
            for wanted in [pc.fill_null(pc.equal(table[name], prompt), False) for name in names]:
                found += table.filter(wanted).to_pylist()
        own = [row for row in found if row["prompt_id"] == prompt]
        return own, [row for row in found if row["prompt_id"] != prompt]

    def origins(self, index: int, node: str) -> list[tuple[int, str]]:
        """The nodes that made a node's rows, as (iteration, name): through joins and kept streams, over iterations."""
        held = self.graph(index).nodes[node]
        if held.saved is not None:
            return self.origins(held.saved.iteration, held.saved.node)
        if held.op is not None and held.op.passes:
            return [origin for name in held.inputs for origin in self.origins(index, name)]
        return [(index, node)]

    def trained_rows(self, index: int, node: Node) -> int | None:
        """How many rows a train node learned from (failed ones are left out)."""
        metrics = (self.entry(index, node.name) or {}).get("metrics", {})
        counted = (self.entry(index, node.inputs[0]) or {}).get("rows")
        return int(metrics["examples"]) if "examples" in metrics else counted

    # models

    def made(self, model: ModelRef, iteration: int) -> Made | None:
        """Where a model that iteration uses comes from; a role that an iteration leaves out, or that it carried over since
        there was nothing to learn, is the one before it."""
        if model.node is not None:
            node = self.graph(iteration).nodes[model.node]
            if not (self.entry(iteration, node.name) or {}).get("idle"):
                return Made(iteration, node)
            return self.made(carried(node, self.graph(iteration)), iteration)
        for index in range(model.version, 0, -1):
            output = self.graph(index).outputs.get(model.role)
            if output is not None:
                return self.made(output, index)
        return Made(0, None) if model.role == "policy" else None

    def checksum(self, made: Made) -> str:
        """The checksum of the weights that a train node made; empty for the initial model."""
        entry = self.entry(made.iteration, made.node.name) if made.node else None
        return entry["model"]["checksum"] if entry else ""

    def checkpoint(self, made: Made) -> Path | None:
        """Where the checkpoint that a train node made lies, also when the run folder was moved; None when it is gone."""
        entry = self.entry(made.iteration, made.node.name) if made.node else None
        if entry is None:
            return None
        home, stored = self.folder.iteration(made.iteration), Path(entry["model"]["folder"])
        here = home / Path(*stored.parts[stored.parts.index(home.name) + 1 :])
        return here if (here / "config.json").is_file() else None
