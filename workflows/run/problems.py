"""What is wrong with a graph together with its rows: the lint, and gold answers that its verifiers do not score as right."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from selfloop.workflows.errors import InputError
from selfloop.workflows.flow.graph import Graph
from selfloop.workflows.flow.lint import lint
from selfloop.workflows.judges.verifiers import VERIFIERS, AnswerVerifier
from selfloop.workflows.run.setup import Setup
from selfloop.workflows.sources import heldout_spec, iter_prompts

__all__ = ["GoldFacts", "graph_facts", "graph_problems", "try_answers"]

SECONDS = 5.0  # for trying gold answers as responses
FORMS = {  # a gold answer as a response
    "as it stands": "{}",
    "in a box": r"\boxed{{{}}}",
    "as a formula": "${}$",
    "after 'The answer is'": "The answer is {}",
}
SHOWN = 3  # rows that are named


@dataclass
class GoldFacts:
    """problems: what stops the run. notes: single rows that fail. tried: how many gold answers were tried, a source a line."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)


def graph_problems(setup: Setup) -> list[str]:
    """The problems among `graph_facts`."""
    return graph_facts(setup).problems


def graph_facts(setup: Setup) -> GoldFacts:
    """What the lint finds in the graphs of iterations 1, 2, 3 and the last; else gold answers that no judge could read, or
    that a judge would not score as right."""
    problems = lint(setup.planner) or list(unreadable_answers(setup))
    return GoldFacts(problems) if problems else tried_answers(setup)


def unreadable_answers(setup: Setup) -> Iterator[str]:
    """Sources whose gold answers the graph's verifiers cannot read, more of them than may fail."""
    config = setup.config
    for name, judge in judged_sources(setup.planner.graph(1)):
        answers = setup.sources[name]["answer"].to_pylist()
        bad = [answer for answer in answers if judge.gold(answer) is None]
        if len(bad) > config.max_failed_rows * len(answers):
            kind, others = named(judge)
            why = f"judge is {kind}" if config.judge else f"without judge, answers are compared by {kind}"
            yield (
                f"{len(bad):,} of the {len(answers):,} answers of {name!r} cannot be read as {judge.extract}, the first "
                f"of them {bad[0]!r}; {why}. Set judge to {others} or module:function, or mend the answers"
            )


def named(judge: AnswerVerifier) -> tuple[str, str]:
    """A verifier's name, and those of the others."""
    kind = type(judge).__name__.lower()
    return kind, ", ".join(other for other in VERIFIERS if other != kind)


def tried_answers(setup: Setup) -> GoldFacts:
    """Each source's gold answers as responses: as they stand, in a box, as a formula and after "The answer is"."""
    facts, config = GoldFacts(), setup.config
    sources = judged_sources(setup.planner.graph(1))
    for name, judge in sources:
        answers = tuple(filter(None, setup.sources[name]["answer"].to_pylist()))
        limit = SECONDS / len(sources)
        tried, failed = try_answers(judge, answers, config.seed, limit)  # pyright: ignore[reportArgumentType]  (frozen)
        kind, others = named(judge)
        drawn = "" if tried == len(answers) else f", drawn by the seed (of {len(answers):,})"
        said = f"{kind} was tried on {tried:,} answers of {name!r}{drawn}, each in {len(FORMS)} forms"
        if not failed:
            facts.tried.append(f"{said}: it scores them all as right")
            continue
        places = places_of(setup, name, {answer for answer, _ in failed})
        rows = "; ".join(f"{places.get(answer, answer)} ({why})" for answer, why in failed[:SHOWN])
        found = f"{said}, and does not score {len(failed):,} of them as right: {rows}"
        if len(failed) > config.max_failed_rows * tried:
            facts.problems.append(f"{found}. Set judge to {others} or module:function, or mend the answers")
        else:
            facts.notes.append(found)
    return facts


@functools.lru_cache(maxsize=8)  # a command checks, and then its run does
def try_answers(
    judge: AnswerVerifier, answers: tuple[str, ...], seed: int, seconds: float
) -> tuple[int, list[tuple[str, str]]]:
    """How many rows' answers were tried in so many seconds (at least one), and (answer, why) of those that fail."""
    rows: dict[str, int] = {}
    for answer in answers:
        rows[answer] = rows.get(answer, 0) + 1
    order = random.Random(seed).sample(sorted(rows), len(rows))
    tried, failed, deadline = 0, list[tuple[str, str]](), 0.0
    for answer in order:
        if deadline and time.monotonic() > deadline:
            break
        why = failure(judge, answer)
        deadline = deadline or time.monotonic() + seconds  # after the first: a verifier may have to start
        tried += rows[answer]
        failed += [(answer, why)] * rows[answer] if why else []
    return tried, failed


def failure(judge: AnswerVerifier, answer: str) -> str | None:
    """How a gold answer is not scored as right; None if it is."""
    gold = judge.gold(answer)
    if gold is None:
        return f"{shortened(answer)} cannot be read"
    for name, form in FORMS.items():
        response = form.format(answer if form == "{}" else gold)
        try:
            score = judge.verify({"answer": answer, "response": response, "prompt": []})
        except Exception as error:  # as when it judges: a failed verdict
            return f"{shortened(answer)}: {error}"
        if score != 1.0:
            return f"{shortened(answer)} {name} {'abstains' if score is None else f'scores {score:g}'}"
    return None


def shortened(answer: str) -> str:
    return repr(answer if len(answer) <= 60 else f"…{answer[-60:]}")


def places_of(setup: Setup, name: str, answers: set[str]) -> dict[str, str]:
    """Where in its file each of these answers is first."""
    prompts = setup.config.prompts
    spec = (heldout_spec(prompts) or prompts) if name == "heldout" else setup.config.data.get(name, prompts)
    found: dict[str, str] = {}
    if spec.source == "pocket":
        return found
    try:
        for where, row in iter_prompts(spec, name in setup.config.data):
            if row["answer"] in answers:
                found.setdefault(str(row["answer"]), where)
            if len(found) == len(answers):
                break
    except InputError:  # told where prompts are read
        pass
    return found


def judged_sources(graph: Graph) -> list[tuple[str, AnswerVerifier]]:
    """Each source whose rows are compared with gold answers, and by what."""

    judges = [(node.name, judge) for node, judge in graph.judges() if isinstance(judge, AnswerVerifier)]
    return list(dict.fromkeys((name, judge) for node, judge in judges for name in graph.sources(node)))
