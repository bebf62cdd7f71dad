"""One screen about a run, read from its folder: the curve, the rows of each node, the best and the worst samples."""

from __future__ import annotations

import heapq
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from selfloop.workflows.errors import InputError
from selfloop.workflows.report import curve
from selfloop.workflows.report.text import clean
from selfloop.workflows.store.failures import first_failure
from selfloop.workflows.store.folder import RunFolder
from selfloop.workflows.store.metrics import read_metrics
from selfloop.workflows.store.modules import reach_modules
from selfloop.workflows.store.reading import open_run

__all__ = ["NodeCount", "count_node", "show"]

WIDTH = 80
EXAMPLES = 3


@dataclass
class NodeCount:
    """Rows of a node, by status and by verdict state (`score_state` -> state -> rows)."""

    rows: int = 0
    status: Counter[str] = field(default_factory=Counter)
    states: dict[str, Counter[str]] = field(default_factory=dict)


def count_node(parts: Sequence[Path]) -> NodeCount:
    """Count the rows of a node; only the columns that are counted are read."""
    count = NodeCount()
    for part in parts:
        with pq.ParquetFile(part) as file:
            count.rows += file.metadata.num_rows
            names = file.schema_arrow.names
            wanted = [name for name in names if name == "status" or name.endswith("_state")]
            for batch in file.iter_batches(columns=wanted) if wanted else ():
                for name in wanted:
                    into = count.status if name == "status" else count.states.setdefault(name, Counter())
                    into.update(map(str, batch.column(name).to_pylist()))
    return count


# Samples


def samples_node(nodes: dict[str, list[Path]]) -> str | None:
    """The node whose samples are shown: scored responses, of the recipe rather than of the evaluation."""
    scored = [
        name
        for name, parts in nodes.items()
        if {"score", "response", "prompt"} <= set(pq.read_schema(parts[0]).names)
    ]
    own = [name for name in scored if not name.startswith("heldout")]
    return next(iter(reversed(own)), scored[0] if scored else None)


def extremes(
    parts: Sequence[Path], count: int = EXAMPLES
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(best, worst) rows by score, one a prompt, read row by row only where they lie."""
    scores: dict[str, dict[str, tuple[float, int, int]]] = {"best": {}, "worst": {}}
    for number, part in enumerate(parts):
        names = set(pq.read_schema(part).names)
        columns = [name for name in ("prompt_id", "score", "status") if name in names]
        for place, row in enumerate(pq.ParquetFile(part).read(columns=columns).to_pylist()):
            if row["score"] is None or row.get("status", "ok") != "ok":
                continue
            prompt, entry = row.get("prompt_id") or f"{number}/{place}", (row["score"], number, place)
            best, worst = scores["best"].get(prompt), scores["worst"].get(prompt)
            if best is None or entry[0] > best[0]:
                scores["best"][prompt] = entry
            if worst is None or entry[0] < worst[0]:
                scores["worst"][prompt] = entry
    best = heapq.nsmallest(count, scores["best"].values(), key=lambda entry: (-entry[0], *entry[1:]))
    top = {entry[1:] for entry in best}
    worst = heapq.nsmallest(
        count, (entry for entry in scores["worst"].values() if entry[1:] not in top), key=lambda entry: entry
    )
    return [read_row(parts[part], place) for _, part, place in best], [
        read_row(parts[part], place) for _, part, place in worst
    ]


def read_row(part: Path, place: int) -> dict[str, Any]:
    """One row of a part, of the columns that are shown."""
    names = set(pq.read_schema(part).names)
    wanted = [name for name in ("prompt", "response", "score", "answer", "finish") if name in names]
    table: pa.Table = pq.ParquetFile(part).read(columns=wanted)
    return table.slice(place, 1).to_pylist()[0]


def sample_lines(row: dict[str, Any], width: int) -> Iterator[str]:
    prompt = clean(
        next((turn["content"] for turn in reversed(row["prompt"] or ()) if turn["role"] == "user"), "")
    )
    response = clean(row["response"] or "")
    yield f"  {row['score']:.3g}".ljust(8) + shorten(prompt, width - 8, 2)
    notes = [f"answer: {clean(str(row['answer']))}"] if row.get("answer") else []
    notes += ["cut at max_tokens"] if row.get("finish") == "length" else []
    yield "     -> " + shorten(response or "(empty)", width - 8, 2)
    if notes:
        yield "        " + shorten("; ".join(notes), width - 8, 1)


def shorten(text: str, width: int, lines: int) -> str:
    wrapped = textwrap.wrap(text, width, max_lines=lines, placeholder=" …") or [""]
    return ("\n" + " " * 8).join(wrapped)


# The screen


def show(run: str | Path, width: int = WIDTH) -> str:
    """The whole screen as text of at most `width` columns."""
    folder, config = open_run(run)
    metrics = read_metrics(folder)
    last = max(RunFolder(folder).iterations(), default=None)
    blocks = [list(head_lines(folder, config, metrics)), list(curve_lines(metrics, width))]
    blocks.append(list(signal_lines(folder, config, metrics)))
    if last is not None:
        nodes = RunFolder(folder).nodes(last)
        blocks += [list(node_lines(last, nodes, width)), list(example_lines(last, nodes, width))]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def head_lines(folder: Path, config: dict[str, Any], metrics: Sequence[dict[str, Any]]) -> Iterator[str]:
    done = max((row["iteration"] for row in metrics), default=None)
    wanted = config.get("iterations", "?")
    state = "nothing is complete yet" if done is None else f"{done} of {wanted} iterations"
    yield str(folder.absolute())
    yield f"{config.get('recipe')} on {config.get('model')}, {state}, seed {config.get('seed', 0)}"


def curve_lines(metrics: Sequence[dict[str, Any]], width: int) -> Iterator[str]:
    """Held-out accuracy, or mean score, by iteration with its 95 % interval."""
    if not metrics:
        return
    name = curve.figure(metrics)
    what, scale = ("score", 1) if name == curve.SCORE else ("accuracy", 100)
    values = [curve.number(row, name) for row in metrics]
    if all(value is None for value in values):
        yield "Held-out accuracy was not measured (no answers to check against)."
    else:
        yield f"Held-out {what}  {curve.sparkline(values)}"
    bar = max(0, min(20, width - 60)) if name == curve.ACCURACY else 0  # a score has no length
    yield f"  {'iteration':>9} {'sampled':>8} {'95 % interval':>15} {'greedy':>8} {'gain':>6} {'minutes':>8}"
    for row, value in zip(metrics, values, strict=True):
        ends = curve.interval(row, name)
        form = ".4g" if name == curve.SCORE else ".1f"
        between = f"{scale * ends[0]:{form}} - {scale * ends[1]:{form}}" if ends else "-"
        minutes = f"{row['wall_s'] / 60:.1f}" if "wall_s" in row else "-"
        likeliest = curve.shown(curve.number(row, curve.greedy(name)), name)
        gain = curve.gain(value, values[0], name)
        drawn = "█" * round(bar * value) if value is not None else ""
        sampled = curve.shown(value, name)
        line = f"  {row['iteration']:>9} {sampled:>8} {between:>15} {likeliest:>8} {gain:>6} {minutes:>8}"
        yield f"{line}  {drawn}".rstrip()


def signal_lines(folder: Path, config: dict[str, Any], metrics: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What each iteration had to learn from."""
    known = [row for row in metrics if "made_rows" in row or row.get("idle")]
    if not known:
        return
    yield f"What was learned from (cut answers: {cut_answers(folder, config)})"
    yield f"  {'iteration':>9} {'no signal':>9} {'cut':>7}  kept"
    for row in known:
        silent, cut = (curve.shown(row.get(name)) for name in ("no_signal_share", "cut_share"))
        told = [curve.kept(row)] if curve.kept(row) else []
        told += ["nothing was trained"] if row.get("idle") else []
        yield f"  {row['iteration']:>9} {silent:>9} {cut:>7}  {', '.join(told)}"


def cut_answers(folder: Path, config: dict[str, Any]) -> str:
    """What the run's method does with answers that were cut."""
    from selfloop.workflows.recipes import find_method

    try:
        reach_modules(RunFolder(folder))
        recipe = find_method(config.get("recipe", ""))
        return recipe(**config.get("settings", {})).cut_answers if recipe else "-"
    except (InputError, ValueError):  # settings of another version, or a method that is not to be had
        return "-"


def node_lines(iteration: int, nodes: dict[str, list[Path]], width: int) -> Iterator[str]:
    """Rows, failed rows and verdict states of each node."""
    if not nodes:
        return
    yield f"Rows of iteration {iteration}"
    long = min(max(len(name) for name in nodes), width - 40)
    yield f"  {'node':<{long}} {'rows':>10} {'failed':>7}  verdicts"
    for name, parts in nodes.items():
        count = count_node(parts)
        verdicts = ", ".join(
            f"{number:,} {state}"
            for states in count.states.values()
            for state, number in sorted(states.items())
        )
        failed = f"{count.status['failed']:,}" if count.status else "-"
        yield f"  {name[:long]:<{long}} {count.rows:>10,} {failed:>7}  {verdicts}".rstrip()[:width]
        broken = [column for column, states in count.states.items() if states["failed"]]
        broken += ["status"] if count.status["failed"] and not broken else []
        for column in broken:
            if (why := first_failure(map(str, parts), column)) is not None:
                yield "    first failure: " + shorten(clean(why), width - 19, 3)


def example_lines(iteration: int, nodes: dict[str, list[Path]], width: int) -> Iterator[str]:
    """The samples that were judged best and worst."""
    node = samples_node(nodes)
    if node is None:
        return
    best, worst = extremes(nodes[node])
    for title, rows in (("Best", best), ("Worst", worst)):
        if rows:
            yield f"{title} samples of iteration {iteration} ({node}): score, prompt, -> response"[:width]
            for row in rows:
                yield from sample_lines(row, width)
