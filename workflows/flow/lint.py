"""Everything that can be wrong with a graph and be seen before any actor starts, all of it at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

from selfloop.workflows.errors import InputError
from selfloop.workflows.flow.graph import Graph, Node
from selfloop.workflows.flow.plan import Planner
from selfloop.workflows.flow.provenance import made_before
from selfloop.workflows.flow.verbs.base import Op
from selfloop.workflows.flow.verbs.judge import JudgeOp
from selfloop.workflows.flow.verbs.source import Saved, Source
from selfloop.workflows.judges.verifiers import FunctionVerifier
from selfloop.workflows.objectives.columns import needed_columns

__all__ = ["lint", "lint_graph"]

GraphOf = Callable[[int], Graph]


def lint(planner: Planner) -> list[str]:
    """Problems of the graphs of iterations 1, 2, 3 and the last, each said once."""
    found: dict[str, None] = {}
    graph_of = functools.cache(planner.graph)
    for index in sorted({1, 2, 3, planner.iterations}):
        if index > planner.iterations:
            continue
        try:
            problems = lint_graph(graph_of(index), graph_of)
        except InputError as error:
            problems = [str(error)]
        for problem in problems:
            found.setdefault(problem)
    return list(found)


def lint_graph(graph: Graph, graph_of: GraphOf | None = None) -> list[str]:
    """Problems of one graph: what was found, why it is wrong, and the way out. graph_of: the graph of an earlier iteration."""
    found = [
        problem
        for node in graph
        for check in (columns, training, heads, written, models, unread, folders)
        for problem in check(graph, node)
    ]
    return found + [problem for node in graph for problem in batches(graph, node, graph_of)]


def columns(graph: Graph, node: Node) -> Iterator[str]:
    """Columns that a node reads and its inputs lack."""
    if node.op is None:
        return
    for source in node.row_inputs:
        missing = sorted(node.op.reads - graph.nodes[source].columns)
        if "answer" in missing:
            yield (
                f"node {node.name!r} checks responses against the gold answer, and the prompts have none. Map a column to it "
                "(prompts.columns.answer=<column>) or choose a recipe that works without labels"
                f"{way_of(node.op)}"
            )
            missing.remove("answer")
        if missing:
            held = ", ".join(sorted(graph.nodes[source].columns))
            yield (
                f"node {node.name!r} reads {', '.join(missing)}, and {source!r} before it has only {held}. "
                f"{way_to(graph, source, missing[0])}"
            )


def way_of(op: Op) -> str:
    """What else helps where a judge does not declare what it reads."""
    judge = op.judge if isinstance(op, JudgeOp) else None
    if not isinstance(judge, FunctionVerifier) or judge.reads:
        return ""
    return f"; if {judge.path} does not need it, say what it reads: {judge.path.split(':')[1]}.reads = ('response',)"


def way_to(graph: Graph, source: str, column: str) -> str:
    """How a node's rows get a column that they lack."""
    op = graph.nodes[source].op
    if isinstance(op, Source) and op.source not in ("prompts", "heldout"):
        return f"Map a column of the data to it: data.{op.source}.columns.{column}=<column>"
    return "Put the verb that adds it in between"


def training(graph: Graph, node: Node) -> Iterator[str]:
    """Views, columns and references that an objective needs."""
    if node.training is None:
        return
    objective, rows = node.training.objective, graph.nodes[node.inputs[0]]
    name = type(objective).__name__
    for view in objective.views:
        if f"{view}_ids" not in rows.columns and f"{view}_segments" not in rows.columns:
            way = (
                "pair(…) makes chosen and rejected"
                if view in ("chosen", "rejected")
                else "sample(…) makes responses"
            )
            yield f"node {node.name!r}: {name} learns from the view {view!r}, and {rows.name!r} has no {view}_ids. {way}"
    missing = sorted(set(needed_columns(objective, rows.columns)) - rows.columns)
    if missing:
        yield (
            f"node {node.name!r}: {name} needs the columns {', '.join(missing)}, which {rows.name!r} does not have. score(…, "
            "column=…) adds one; a label of given completions comes from their source, data.NAME.columns.label"
        )
    ratios = {"old_logprobs", "sampling_logprobs"} & {
        one for reads in objective.reads.values() for one in reads
    }
    if ratios and "edited" in rows.columns:
        yield (
            f"node {node.name!r}: {name} takes the ratio to what was sampled ({', '.join(sorted(ratios))}), and "
            f"{rows.name!r} holds responses that were edited or stand under another prompt. "
            "Choose an objective without a ratio"
        )
    teachers = {name for names in objective.reads.values() for name in names if name.startswith("kl_")}
    lacking = sorted(
        {name.removeprefix("kl_") for name in teachers} - {name for name, _ in node.training.frozen}
    )
    if lacking:
        yield f"node {node.name!r}: {name} learns from the teachers {', '.join(lacking)}. Pass frozen={{{lacking[0]!r}: model}}"
    if objective.needs_reference and node.training.reference is None:
        yield (
            f"node {node.name!r}: {name} measures against a reference, and reference=None was given. "
            "Name a model, e.g. it.policy"
        )


def heads(graph: Graph, node: Node) -> Iterator[str]:
    """Scalar heads where words are needed, and the reverse."""
    way = "A model gets one by model.adapt(ScalarHead())"
    op, model, train = node.op, node.model, node.training
    if op is not None and model is not None:
        what = op.wants
        if what in ("values", "rewards") and model.head == "none":
            yield f"node {node.name!r} measures {what}, and {model.name} has no scalar head. {way}"
        if what == "rewards" and model.head == "new":
            yield (
                f"node {node.name!r} measures rewards, and the scalar head of {model.name} was never trained: it says 0 of "
                "everything. Measure the model that train(…) gives"
            )
        if model.head != "none" and what in ("words", "logprobs"):
            yield (
                f"node {node.name!r} needs words of {model.name}, and that has a scalar head instead, which no engine "
                "serves. Ask the policy, or measure values or rewards of it"
            )
    if train is not None:
        name, made = type(train.objective).__name__, train.start.name
        reads = {one for names in train.objective.reads.values() for one in names}
        wanted = sorted(reads & {"values", "rewards"})
        if wanted and train.start.head == "none":
            yield f"node {node.name!r}: {name} reads the {wanted[0]} of a scalar head, and {made} has none. {way}"
        if not wanted and train.start.head != "none":
            yield f"node {node.name!r}: {name} reads no values or rewards, and {made} has a scalar head. Leave out adapt(…)"
        if wanted and "logprobs" in reads:
            yield f"node {node.name!r}: {name} reads {wanted[0]} and log-probs of one model. Train a critic of its own"
        if train.start.head != "none" and train.role == "policy":
            yield f"node {node.name!r} makes a policy with a scalar head, which has no words. Name what it is: role='reward'"
        if train.reference is not None and train.reference.head != "none":
            yield f"node {node.name!r}: the reference {train.reference.name} has a scalar head and no log-probs"


def written(graph: Graph, node: Node) -> Iterator[str]:
    """Responses to learn from that no node made: their weights would be unknown."""
    if node.training is None:
        return
    rows = graph.nodes[node.inputs[0]]
    views = node.training.objective.views
    there = any(f"{view}{end}" in rows.columns for view in views for end in ("_ids", "_segments"))
    if there and not made_before(graph, rows.name):
        yield (
            f"node {node.name!r}: no node before {rows.name!r} makes responses, so nothing says which weights wrote them. "
            "Make them by sample, demonstrate or play, or read saved ones"
        )


def models(graph: Graph, node: Node) -> Iterator[str]:
    """Versions that do not exist when the node runs."""
    for model in node.models:
        if model.node is None and not 0 <= model.version < max(1, graph.iteration):
            yield f"node {node.name!r} uses {model.name}, which does not exist in iteration {graph.iteration}"
        elif model.node is None and model.version == 0 and model.role != "policy":
            yield (
                f"node {node.name!r} uses the role {model.role!r} in iteration 1, and no iteration before made it. Make it "
                f"there: it.policy.train(…, role={model.role!r}) if it.index == 1 else it.model({model.role!r})"
            )


def unread(graph: Graph, node: Node) -> Iterator[str]:
    """Rows or models that nobody uses."""
    if node.training is not None:
        made = node.name
        used = any(model.node == made for other in graph for model in other.models)
        if not used and all(model.node != made for model in graph.outputs.values()):
            yield f"the model of node {made!r} is neither returned nor used. Return it from iteration(), or delete the node"
    elif node.op is not None and not node.op.final and not graph.readers(node.name):
        yield f"nobody reads the rows of node {node.name!r}. Train on them, save(…) them, or delete the node"


def folders(graph: Graph, node: Node) -> Iterator[str]:
    """Rows that would lie in the folder of a role's checkpoint, which is made anew when that is written."""
    if node.given or any(model.node == node.name for model in graph.outputs.values()):
        return  # they write no rows, and no folder of their own
    taken = set(graph.outputs)
    if node.training is None:
        taken |= {other.training.role for other in graph if other.training is not None}
    first = node.name.split("/")[0]
    for role in sorted(taken):
        if first in (role, f"{role}-state"):
            yield (
                f"node {node.name!r} writes into the folder {first!r} of its iteration, which the checkpoint of the role "
                f"{role!r} takes: what lies there would be lost. Give the node another name"
            )


def batches(graph: Graph, node: Node, graph_of: GraphOf | None) -> Iterator[str]:
    """Streams that are merged batch by batch and do not hold the same prompts in the same batches."""
    if node.op is None or node.op.takes != "all" or node.op.barrier:
        return
    first = node.inputs[0]
    made = cutters(graph, first)
    for name in node.inputs[1:]:
        others = cutters(graph, name)
        if [cut(one, graph_of) for one in made] != [cut(one, graph_of) for one in others]:
            by, other = (", ".join(repr(one.name) for one in nodes) for nodes in (made, others))
            yield (
                f"node {node.name!r} merges batch k of {first!r} (cut by {by}) with batch k of {name!r} (cut by {other}), and "
                "these do not hold the same prompts. Merge before the barrier and gather what was merged, save(…) it merged, "
                "or bring the prompts together by a.concat(b).gather(…)"
            )


def cutters(graph: Graph, name: str) -> list[Node]:
    """The sources and barriers that cut a stream into its batches, one after the other where streams were concatenated."""
    node = graph.nodes[name]
    assert node.op is not None
    if node.op.takes == "in turn":
        return [one for given in node.inputs for one in cutters(graph, given)]
    return cutters(graph, node.inputs[0]) if node.inputs and not node.op.cuts else [node]


def cut(node: Node, graph_of: GraphOf | None) -> object:
    """What two cutters of the same batches have in common: themselves, or the rows that sources take."""
    if not isinstance(node.op, Source | Saved):
        return node.name
    kept = node.saved
    if kept is not None and graph_of is not None and kept.node in (earlier := graph_of(kept.iteration)).nodes:
        return kept.iteration, [cut(one, None) for one in cutters(earlier, kept.node)]
    return node.op.taken
