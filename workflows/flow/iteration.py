"""One turn of the loop as a recipe writes it: its sources, its models, and rounds of `grow`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from selfloop.workflows.errors import InputError
from selfloop.workflows.flow.graph import ModelRef
from selfloop.workflows.flow.stream import Builder, Model, Stream
from selfloop.workflows.flow.verbs.base import PROMPT_COLUMNS
from selfloop.workflows.flow.verbs.grow import Accept, Gate, Pool
from selfloop.workflows.flow.verbs.source import Saved, Source
from selfloop.workflows.judges.base import Verifier

__all__ = ["Iteration", "SourceInfo"]


@dataclass(frozen=True)
class SourceInfo:
    """What the graph needs to know of a named source before it is read again. per_iteration: rows a turn takes."""

    rows: int
    columns: frozenset[str] = PROMPT_COLUMNS
    has_answers: bool = True
    per_iteration: int | None = None

    def taken(self, take: int | None = None) -> int:
        """Rows of one turn: as many as are asked for, at most all."""
        return min(take or self.per_iteration or self.rows, self.rows)


@dataclass(frozen=True)
class Round:
    """Which round of `grow` nodes are made for, and what the rounds before it accepted."""

    number: int = 0
    rounds: int = 1
    until: int = 0
    pools: tuple[Stream, ...] = ()


@dataclass(frozen=True)
class Iteration:
    """One turn of the loop as a recipe sees it."""

    builder: Builder
    index: int
    sources: dict[str, SourceInfo]
    checker: Verifier | None = None
    max_tokens: int = 256
    saved_columns: Mapping[str, frozenset[str]] = field(default_factory=dict)
    round: Round = Round()
    scalar_roles: frozenset[str] = frozenset()

    @property
    def policy(self) -> Model:
        """The model being improved, as the last iteration left it."""
        return self.model("policy")

    @property
    def initial(self) -> Model:
        """The policy before the first iteration."""
        return Model(self.builder, ModelRef("policy", 0), self.max_tokens)

    def earlier(self, k: int) -> Model:
        """The policy k iterations before the current one; the initial policy where that would be before it."""
        return Model(self.builder, ModelRef("policy", max(0, self.index - 1 - k)), self.max_tokens)

    def model(self, role: str) -> Model:
        """A role as the last iteration left it."""
        head = "trained" if role in self.scalar_roles else "none"
        return Model(self.builder, ModelRef(role, self.index - 1, None, head), self.max_tokens)

    def prompts(self, *, name: str | None = None) -> Stream:
        """This iteration's prompts: `prompts.per_iteration` along a seeded permutation, going on where the last one stopped."""
        return self.source("prompts", name)

    @property
    def prompt_count(self) -> int:
        """How many prompts `prompts()` takes."""
        return self.sources["prompts"].taken()

    def verifier(self) -> Verifier:
        """The configured checker of answers (`judge` in the config, else the source's own)."""
        if self.checker is None:
            raise InputError(
                "the recipe checks answers, and no checker is configured; set judge=exact, number or math"
            )
        return self.checker

    def saved(
        self, saved: str, *, last: int = 1, before: int = 0, default: Stream | None = None
    ) -> Stream | None:
        """What `save(saved)` kept in the last iterations, oldest first; `default` where there is none yet.

        before: how many of the very last iterations are left out.
        """
        newest = self.index - before
        found = [k for k in range(newest - last, newest) if k >= 1]
        if not found:
            return default
        columns = self.saved_columns.get(saved)
        if columns is None:
            raise InputError(
                f"the recipe reads saved({saved!r}), and no earlier iteration saves it; add .save({saved!r})"
            )
        parts = [self.builder.stream(Saved(k, saved, columns), (), f"{saved}@{k}") for k in found]
        return parts[0].concat(*parts[1:]) if len(parts) > 1 else parts[0]

    def data(self, source: str, *, take: int | None = None, name: str | None = None) -> Stream:
        """Rows of a named source of the config's `data`; consecutive iterations take disjoint slices until it ends."""
        if source not in self.sources:
            known = ", ".join(sorted(set(self.sources) - {"heldout"}))
            raise InputError(
                f"the recipe takes data({source!r}), and the config names no such source (it has: {known}); add data.{source}"
            )
        return self.source(source, name or source, take)

    def source(self, source: str, name: str | None, take: int | None = None) -> Stream:
        info = self.sources[source]
        count = info.taken(take)
        turn = (self.index - 1) * self.round.rounds + self.round.number
        rows = self.builder.stream(Source(source, turn * count, count, info.columns), (), name)
        return rows.add(Gate(self.round.until), *self.round.pools) if self.round.pools else rows

    def grow(
        self,
        body: Callable[[Iteration], Stream],
        *,
        until: int,
        rounds: int,
        accept: Accept | None = None,
        name: str = "grow",
    ) -> Stream:
        """What `body(it)` keeps in as many rounds as it takes, at most `rounds`, to have `until` prompt groups.

        Each round's `it.prompts()` and `it.data(…)` are slices of their own. accept(rows, pool): whether a prompt group
        is taken, given all rows taken before it. A round that is not needed runs on no rows.
        """
        outer, pools = self.builder.inside, []
        for number in range(rounds):
            self.builder.inside = f"{outer}{name}/round-{number + 1}/"
            kept = body(replace(self, round=Round(number, rounds, until, tuple(pools))))
            pools.append(kept.add(Pool(until, accept), *pools))
        self.builder.inside = outer
        return pools[0].concat(*pools[1:], name=f"{name}/pool")

    @property
    def pool(self) -> Stream | None:
        """Within `grow`: what the rounds before this one accepted; None in the first."""
        pools, name = self.round.pools, "pool-before"
        if not pools:
            return None
        made = self.builder.inside + name
        return (
            Stream(self.builder, made)
            if made in self.builder.graph.nodes
            else pools[0].concat(*pools[1:], name=name)
        )
