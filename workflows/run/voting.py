"""A note for recipes that count votes by text although the answers are numbers: 18 and 18.00 would be two answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow.parquet as pq

from selfloop.workflows.flow.graph import Graph, Node
from selfloop.workflows.judges.answers import extract_answer
from selfloop.workflows.judges.verifiers import Exact
from selfloop.workflows.judges.votes import VoteJudge, are_numbers
from selfloop.workflows.run.setup import Setup
from selfloop.workflows.store.folder import RunFolder

__all__ = ["vote_notes", "voted_notes"]

LOOKED_AT = 4096  # answers: more would not change what most of them are


def vote_notes(setup: Setup) -> Iterator[str]:
    """Before the run, from the gold answers, where there are some."""
    if voters(setup, setup.planner.graph(1)):
        yield from note(setup.sources["prompts"]["answer"].slice(0, LOOKED_AT).to_pylist())


def voted_notes(setup: Setup, graph: Graph, folder: RunFolder) -> Iterator[str]:
    """After an iteration, from the answers that voted, where there are no gold answers."""
    if setup.sources["prompts"]["answer"].null_count < setup.sources["prompts"].num_rows:
        return
    for node in voters(setup, graph):
        for part in folder.parts(graph.iteration, node.name)[:1]:
            with pq.ParquetFile(part.path) as file:
                responses = next(file.iter_batches(LOOKED_AT, columns=["response"])).column(0).to_pylist()
            yield from note(responses)


def voters(setup: Setup, graph: Graph) -> list[Node]:
    """The nodes that vote by text, unless the answers are checked by text too."""
    if isinstance(setup.checker, Exact):
        return []
    return [
        node for node, judge in graph.judges() if isinstance(judge, VoteJudge) and judge.extract == "text"
    ]


def note(texts: Sequence[str | None]) -> Iterator[str]:
    """The note, if most of these texts end in an answer that is a number."""
    answers = [answer for text in texts if text and (answer := extract_answer(text, "text"))]
    if are_numbers(answers):
        yield (
            f"most of the answers are numbers ({answers[0]!r} is one of the answers), and votes count them as text: 18 and "
            "18.00 are two. settings.extract=number makes answers of the same value one vote"
        )
