"""What is wrong with a graph together with its rows: the lint, and gold answers that its verifiers cannot read."""

from __future__ import annotations

from collections.abc import Iterator

from selfloop.workflows.flow.graph import Graph, Node
from selfloop.workflows.flow.judging import JudgeRule
from selfloop.workflows.flow.lint import lint
from selfloop.workflows.flow.ops import Source
from selfloop.workflows.flow.setup import Setup
from selfloop.workflows.judges.verifiers import VERIFIERS, AnswerVerifier

__all__ = ["graph_problems"]


def graph_problems(setup: Setup) -> list[str]:
    """What the lint finds in the graphs of iterations 1, 2, 3 and the last; else gold answers that no judge could read."""
    return lint(setup.planner) or list(unreadable_answers(setup))


def unreadable_answers(setup: Setup) -> Iterator[str]:
    """Sources whose gold answers the graph's verifiers cannot read, more of them than may fail."""
    graph, config = setup.planner.graph(1), setup.config
    for name, judge in judged_sources(graph):
        answers = setup.sources[name]["answer"].to_pylist()
        bad = [answer for answer in answers if judge.gold(answer) is None]
        if len(bad) > config.max_failed_rows * len(answers):
            kind = type(judge).__name__.lower()
            why = f"judge is {kind}" if config.judge else f"without judge, answers are compared by {kind}"
            others = ", ".join(other for other in VERIFIERS if other != kind)
            yield (f"{len(bad):,} of the {len(answers):,} answers of {name!r} cannot be read as {judge.extract}, the first "
                   f"of them {bad[0]!r}; {why}. Set judge to {others} or module:function, or mend the answers")  # fmt: skip


def judged_sources(graph: Graph) -> list[tuple[str, AnswerVerifier]]:
    """Each source whose rows are compared with gold answers, and by what."""

    def above(node: Node) -> Iterator[str]:
        if isinstance(node.op, Source) and not node.op.source.startswith("@"):
            yield node.op.source
        for name in node.inputs:
            yield from above(graph.nodes[name])

    judges = [
        (node, node.op.judge)
        for node in graph
        if isinstance(node.op, JudgeRule) and isinstance(node.op.judge, AnswerVerifier)
    ]
    return list(dict.fromkeys((name, judge) for node, judge in judges for name in above(node)))
