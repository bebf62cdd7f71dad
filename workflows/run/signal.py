"""What of an iteration there was to learn from: rows without signal, train nodes that are not run, iterations in a row of them.

A train node is idle if its objective is identically zero on its rows, whatever the weights: there are none, or each has
a zero among the columns that multiply all terms. Its model is then the one before, and its optimizer stays as it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from selfloop.workflows.data.batches import Counts, counting
from selfloop.workflows.flow.graph import Graph, Node
from selfloop.workflows.flow.verbs.grow import Pool
from selfloop.workflows.store.folder import RunFolder
from selfloop.workflows.store.parts import Rows, read_columns

__all__ = ["IDLE", "idle_iterations", "is_idle", "makers", "nothing_to_learn", "signal_metrics"]

IDLE = 2  # such iterations in a row end a run: the next one would sample from the same weights once more


def nothing_to_learn(batches: Sequence[Rows], factors: Sequence[str]) -> bool:
    """Whether no row of these batches counts. Reads only these columns, and no further than the first row that does."""
    return not any(counting(table, factors).any() for table in read_columns(batches, ("status", *factors)))


# Iterations in a row


def is_idle(manifest: Mapping[str, Any]) -> bool:
    """Whether an iteration has train nodes and none of them was run."""
    made = [entry for entry in manifest["nodes"].values() if "model" in entry]
    return bool(made) and all(entry.get("idle") for entry in made)


def idle_iterations(folder: RunFolder, index: int) -> list[int]:
    """The iterations up to `index` (complete), in order, in which one after the other nothing was trained."""
    earlier = itertools.takewhile(lambda k: is_idle(folder.manifest(k)), range(index, 0, -1))
    return sorted(earlier)


# Numbers of one iteration


def signal_metrics(graph: Graph, counts: Mapping[str, Counts], idle: bool) -> dict[str, float]:
    """How much of what was sampled reached the trained models that the iteration ends in, and whether training was run."""
    nodes = [graph.nodes[model.node] for model in graph.outputs.values() if model.node is not None]
    several = len(nodes) > 1
    found: dict[str, float] = {"idle": float(idle)} if nodes else {}
    for node in nodes:
        prefix = f"{node.name.replace('-', '_')}_" if several else ""
        found |= {f"{prefix}{name}": value for name, value in of_training(graph, node, counts).items()}
    return found


def of_training(graph: Graph, node: Node, counts: Mapping[str, Counts]) -> dict[str, float]:
    """The numbers of one train node; none where nothing is sampled for it."""
    source = node.inputs[0]
    sampled = makers(graph, source)
    made = sum(number(counts, one.name, "rows") for one in sampled)
    if not made:
        return {}
    groups: dict[str, float] = {}
    for one in sampled:  # streams of the same prompts are one group each
        root = root_of(graph, one.name)
        groups[root] = max(groups.get(root, 0.0), number(counts, one.name, "groups"))
    learned = list(own_streams(graph, source))
    kept = sum(number(counts, name, "rows") for name in learned)
    useful = sum(number(counts, name, "groups") - number(counts, name, "silent") for name in learned)
    useful += surplus(graph, source, counts)
    unit = "pairs" if learned and "chosen_ids" in graph.nodes[learned[0]].columns else "rows"
    cut = sum(number(counts, one.name, "truncated") for one in sampled)
    found = {"cut_share": cut / made, "made_rows": made, f"kept_{unit}": kept}
    counted = sum(groups.values())
    return {"no_signal_share": max(0.0, 1 - useful / counted), **found} if counted else found


def number(counts: Mapping[str, Counts], node: str, name: str) -> float:
    return float(getattr(counts.get(node, Counts()), name) or 0)


def makers(graph: Graph, node: str) -> list[Node]:
    """The nodes of this iteration whose sampled answers flow into a node."""
    return [one for one in graph.before(node) if one.op and one.op.responds and one.op.wants == "words"]


def root_of(graph: Graph, name: str) -> str:
    """The source of a node's prompts."""
    while graph.nodes[name].inputs:
        name = graph.nodes[name].inputs[0]
    return name


def own_streams(graph: Graph, name: str) -> Iterator[str]:
    """The streams that a node's rows come from, apart from those that earlier iterations kept."""
    node = graph.nodes[name]
    if node.op is not None and node.op.passes:
        for given in node.inputs:
            yield from own_streams(graph, given)
    elif not node.given:
        yield name


def surplus(graph: Graph, name: str, counts: Mapping[str, Counts]) -> float:
    """Groups that a pool which was full already did not take: they were not without signal."""
    pools = [one for one in graph.before(name) if isinstance(one.op, Pool) and one.op.accept is None]
    return sum(number(counts, one.inputs[0], "groups") - number(counts, one.name, "groups") for one in pools)
