"""Are the prompts there, readable, and enough? Files are read once, row by row, and for a limited time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from selfloop.workflows import sources
from selfloop.workflows.config import Config, Prompts
from selfloop.workflows.data.schema import prompt_id
from selfloop.workflows.errors import InputError
from selfloop.workflows.judges.verifiers import VERIFIERS
from selfloop.workflows.sources import PromptRow

__all__ = ["DataFacts", "Scan", "check_data", "scan"]

SECONDS = 8.0
UNKNOWN = 1 << 40
MANY = 100_000  # rows of a source from which on they are left to the run


@dataclass
class Scan:
    """What was seen of a source. whole: every row was seen. unanswered: where the first row without an answer stands.
    rows: UNKNOWN for a data set that is not here yet. table: all of them, where these are not MANY."""

    rows: int = 0
    answers: int = 0
    whole: bool = True
    unanswered: str = ""
    distinct: set[str] = field(default_factory=set)
    table: pa.Table | None = None

    @property
    def has_answers(self) -> bool:
        return self.answers > 0

    def at_most(self, count: int) -> bool:
        """Whether it surely has no more rows than this."""
        return self.whole and self.rows <= count


@dataclass
class DataFacts:
    """What was found. scans: by source name, with `heldout` for the held-out prompts; only those without problems."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    scans: dict[str, Scan] = field(default_factory=dict)


def check_data(config: Config, broken: frozenset[str] = frozenset(), seconds: float = SECONDS) -> DataFacts:
    """Problems of `prompts` and `data`. broken: keys whose values were wrong already."""
    facts = DataFacts()
    other = sources.heldout_spec(config.prompts)
    wanted = {"prompts": config.prompts, **({"heldout": other} if other else {}), **config.data}
    for name, spec in wanted.items():
        try:
            facts.scans[name] = scan(spec, config.seed, seconds / len(wanted), name in config.data)
        except InputError as error:
            facts.problems.append(str(error))
            continue
        facts.notes += notes_of(spec, facts.scans[name])
    if "prompts" in facts.scans and (other is None or "heldout" in facts.scans):
        amounts(config, facts, broken)
        facts.problems += answers(config, facts)
    return facts


def scan(spec: Prompts, seed: int, seconds: float = SECONDS, responses: bool = False) -> Scan:
    """Look at every row of a source, for so long. Raises InputError at the first bad row."""
    kind = sources.source_kind(spec.source)
    if kind == "hub":
        sources.check_options(spec)
        return Scan(UNKNOWN, UNKNOWN, whole=False)
    found = Scan()
    if kind == "pocket":
        table = sources.load_source(spec, seed, responses)
        found.rows = found.answers = table.num_rows
    else:
        table = sources.table_of(spec, look(found, spec, seconds, responses))
    found.table = table if found.whole and found.rows <= MANY else None
    return found


def look(found: Scan, spec: Prompts, seconds: float, responses: bool) -> Iterator[tuple[str, PromptRow]]:
    """Count rows as they are read, and give on those that may be kept."""
    deadline = time.monotonic() + seconds
    for where, row in sources.iter_prompts(spec, responses):
        found.rows += 1
        found.answers += row["answer"] is not None
        found.unanswered = found.unanswered or ("" if row["answer"] is not None else where)
        found.distinct.add(prompt_id(row["prompt"], None))
        if found.rows % 1000 == 0 and time.monotonic() > deadline:
            found.whole = False
            return
        if found.rows <= MANY:
            yield where, row


def notes_of(spec: Prompts, found: Scan) -> Iterator[str]:
    """What could not be checked, and what is not as it may have been meant."""
    for name in sources.check_options(spec):
        yield f"prompts.options.{name} does nothing for {spec.source}"
    if found.rows == UNKNOWN:
        yield f"{spec.source} is taken as a Hugging Face data set: its rows can be checked only when the run loads it"
    elif not found.whole:
        yield f"{spec.source} is large: its first {found.rows:,} rows are fine, the rest is checked by the run"
    elif 0 < found.answers < found.rows:
        left = f"{found.rows - found.answers:,} of {found.rows:,} prompts of {spec.source}"
        yield f"{left} have no answer, the first at {found.unanswered}"


def amounts(config: Config, facts: DataFacts, broken: frozenset[str]) -> None:
    """Held-out prompts and prompts an iteration, against what there is."""
    spec, prompts, heldout = config.prompts, facts.scans["prompts"], facts.scans.get("heldout")
    if "prompts.heldout" in broken:
        return
    if heldout is not None and heldout.at_most(spec.heldout - 1):
        facts.problems.append(
            sources.too_large(spec.heldout, heldout.rows, spec.heldout_source or spec.source)
        )
    elif heldout is None and prompts.at_most(spec.heldout):
        facts.problems.append(sources.too_large(spec.heldout, prompts.rows, spec.source))
    elif heldout is None and prompts.whole and len(prompts.distinct) <= 1:
        facts.problems.append(
            f"all {prompts.rows} prompts of {spec.source} are the same, so none can be kept apart. Give other prompts"
        )
    else:
        left = prompts.rows - (spec.heldout if heldout is None else 0)
        if spec.per_iteration and prompts.whole and left < spec.per_iteration:
            facts.notes.append(
                f"prompts.per_iteration is {spec.per_iteration:,}, and {left:,} prompts of {spec.source} remain to "
                "learn from: every iteration takes them all"
            )


def answers(config: Config, facts: DataFacts) -> Iterator[str]:
    """Answers that the config's judge needs and the held-out prompts lack."""
    asked = facts.scans.get("heldout", facts.scans["prompts"])
    if config.judge in VERIFIERS and asked.whole and not asked.has_answers:
        source = config.prompts.heldout_source or config.prompts.source
        yield (
            f"judge {config.judge} compares with answers, and {source} has none. Map a column to it "
            "(prompts.columns.answer=COLUMN), or leave judge out"
        )
