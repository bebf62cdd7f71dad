"""Following rows through the graphs of a run: which rows of each node a response went into, iteration after iteration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow.compute as pc

from selfloop.workflows.errors import InputError
from selfloop.workflows.flow.graph import Node
from selfloop.workflows.flow.verbs.source import Source
from selfloop.workflows.report.why.past import Past, Row

__all__ = ["Ask", "Step", "find", "follow"]

SHORTEST = 6
MANY = 12
Held = dict[tuple[int, str], list[Row]]  # (iteration, node) -> rows


@dataclass(frozen=True)
class Ask:
    """Which rows are asked for: a prompt (or how its id begins), and if given the node that made them, the number of the
    sample there, and the iteration."""

    prompt: str
    node: str | None = None
    sample: int | None = None
    iteration: int | None = None

    @classmethod
    def parse(cls, text: str) -> Ask:
        """PROMPT[/NODE][/SAMPLE][@ITERATION]; the name of a node may hold slashes."""
        words, _, iteration = text.partition("@")
        prompt, *rest = words.split("/")
        sample = int(rest.pop()) if rest and rest[-1].isdigit() else None
        if len(prompt) < SHORTEST or (iteration and not iteration.isdigit()) or "" in rest:
            raise InputError(
                f"{text!r} names no row: write PROMPT[/NODE][/SAMPLE][@ITERATION] with at least {SHORTEST} characters of "
                "the prompt_id, e.g. 9daf80/3@1, or a version such as 3 or policy@3"
            )
        return cls(prompt, "/".join(rest) or None, sample, int(iteration) if iteration else None)

    def __str__(self) -> str:
        more = "".join(f"/{part}" for part in (self.node, self.sample) if part is not None)
        return f"{self.prompt}{more}" + (f"@{self.iteration}" if self.iteration is not None else "")


@dataclass(frozen=True)
class Step:
    """A node that rows came to. before: these rows as they came. rows: what became of them there (none: dropped, or not
    stored there). group: all rows of their prompt there. opened: rows of prompts that were made from it there. complete:
    whether the node has ended. origin: whether the first responses to the prompt were made there. answered: there or before."""

    iteration: int
    node: Node
    before: list[Row]
    rows: list[Row]
    group: list[Row]
    opened: list[Row]
    complete: bool
    origin: bool = False
    answered: bool = False


def find(past: Past, ask: Ask) -> Ask:
    """The one prompt and iteration that are meant. Raises InputError with the candidates if there are several."""
    if ask.iteration is not None and ask.iteration not in past.iterations:
        raise InputError(
            f"the run has no iteration {ask.iteration}: it has {', '.join(map(str, past.iterations)) or 'none yet'}"
        )
    asked = past.iterations if ask.iteration is None else [ask.iteration]
    meant = found = candidates(past, ask, asked)
    if len(meant) == 1:
        return meant[0]
    if not meant:
        found = candidates(past, ask, [index for index in past.iterations if index not in asked])
    names = ", ".join(map(str, found[:MANY])) + (
        f" and {len(found) - MANY} more" if len(found) > MANY else ""
    )
    if meant:
        raise InputError(f"{ask} may be any of {names}. Name one of them")
    if found:
        raise InputError(f"{ask}: nothing was made of it in iteration {ask.iteration}, but there is {names}")
    raise InputError(
        f"no row has a prompt_id that begins with {ask.prompt!r}. The column prompt_id of the run's Parquet files holds them, "
        f"and `selfloop why {past.folder.path} VERSION` names some"
    )


def candidates(past: Past, ask: Ask, iterations: Iterable[int]) -> list[Ask]:
    """Every prompt that may be meant, by iteration."""
    return [Ask(prompt, ask.node, ask.sample, index) for index in iterations
            for prompt in sorted(prompts_of(past, index)) if prompt.startswith(ask.prompt)]  # fmt: skip


def prompts_of(past: Past, index: int) -> set[str]:
    """The prompts that something was made of in an iteration; rows that were only carried over belong to another one."""
    graph, found, old = past.graph(index), set[str](), set[str]()
    carried: set[str] = set()
    for node in graph:
        if node.op is None:
            continue
        kept, inputs = node.saved, node.row_inputs
        if kept is not None:
            old |= past.prompt_ids(kept.iteration, kept.node)
        if kept is not None or any(name in carried for name in inputs):
            carried.add(node.name)
        first = any(graph.nodes[name].given for name in inputs)
        if node.op.responds or (first and node.name not in carried):
            found |= past.prompt_ids(index, node.name)
        elif node.op.opens:
            found |= past.prompt_ids(index, node.name) - (old if node.name in carried else set())
    return found


def follow(past: Past, ask: Ask) -> list[Step]:
    """Every node that the asked rows came to, in the order of the graphs, from their own iteration to the last one."""
    steps: list[Step] = []
    held: Held = {}
    for index in past.iterations:
        if ask.iteration is None or index < ask.iteration:
            continue
        seen: dict[str, Step] = {}
        for node in past.graph(index):
            step = step_of(past, ask, index, node, seen, held)
            if step is not None and (step.rows or step.before):
                steps.append(step)
                if step.rows:
                    seen[node.name], held[index, node.name] = step, step.rows
    narrowed = ask.node is not None or ask.sample is not None
    if narrowed and not any(step.origin for step in steps):
        made = ", ".join(samples_of(past, ask)) or "no node"
        raise InputError(f"{ask}: there is no such row. Responses to this prompt were made by {made}")
    return steps


def samples_of(past: Past, ask: Ask) -> list[str]:
    """The nodes that made responses to the prompt, each with the numbers of its samples."""
    assert ask.iteration is not None
    made = [node.name for node in past.graph(ask.iteration) if node.op and node.op.responds]
    groups = {name: past.group(ask.iteration, name, ask.prompt)[0] for name in made}
    return [
        f"{name} ({', '.join(str(row['sample']) for row in rows)})" for name, rows in groups.items() if rows
    ]


def step_of(past: Past, ask: Ask, index: int, node: Node, seen: dict[str, Step], held: Held) -> Step | None:
    """What became of the rows at one node; None if they did not come there."""
    if node.given:
        rows = source_rows(past, ask, index, node, held)
        answered = any({"response_ids", "chosen_ids"} & set(row) for row in rows)
        return Step(index, node, [], rows, rows, [], True, answered=answered) if rows else None
    op, inputs = node.op, [name for name in node.row_inputs if name in seen]
    if not inputs and (index != ask.iteration or op is None or not op.opens):
        return None
    before = [row for name in inputs for row in seen[name].rows]
    answered = any(seen[name].answered for name in inputs)
    group, opened = past.group(index, node.name, ask.prompt)
    entry = past.entry(index, node.name)
    if op is None or op.numbers:
        return Step(index, node, before, [], group, [], entry is not None)
    origin = op.responds and not answered
    if origin:
        rows = [row for row in group if ask.sample in (None, row["sample"]) and ask.node in (None, node.name)]
        before = before if rows else []
    else:
        among = partial(first_of, past, index, inputs, ask.prompt)
        rows = op.became(before, among, group) if inputs else group
    return Step(index, node, before, rows, group, opened, entry is not None, origin, answered or origin)


def source_rows(past: Past, ask: Ask, index: int, node: Node, held: Held) -> list[Row]:
    """The prompt in a source of the asked iteration, or rows that an earlier iteration kept and that are followed. Of a whole
    prompt group all kept rows are, of one sample only kept prompts."""
    kept = node.saved
    if index != ask.iteration:
        return held.get((kept.iteration, kept.node), []) if kept else []
    if kept is not None:
        rows, _ = past.group(kept.iteration, kept.node, ask.prompt)
        whole = ask.sample is None and ask.node is None
        return [row for row in rows if whole or not {"response_ids", "chosen_ids"} & set(row)]
    assert isinstance(node.op, Source)
    table = past.sources.rows(node.op)
    place = pc.index(table["prompt_id"], ask.prompt).as_py()
    return table.slice(place, 1).to_pylist() if place >= 0 else []


def first_of(past: Past, index: int, inputs: Sequence[str], prompt: str) -> list[Row]:
    """All rows of a prompt in the first of these nodes."""
    return past.group(index, inputs[0], prompt)[0]
