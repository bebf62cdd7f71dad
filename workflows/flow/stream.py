"""What a recipe writes: streams, models and the iteration. Every call adds a node to the graph; nothing runs here."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from selfloop.workflows.data.schema import Message
from selfloop.workflows.errors import InputError
from selfloop.workflows.flow import ops
from selfloop.workflows.flow.edit import Edit, Recontext
from selfloop.workflows.flow.graph import Graph, ModelRef, Node, Training
from selfloop.workflows.flow.grow import Accept, Gate, Pool
from selfloop.workflows.flow.judging import JudgeBy, JudgeRule
from selfloop.workflows.flow.measure import Measure, Measured
from selfloop.workflows.flow.ops import PROMPT_COLUMNS, Op, Source
from selfloop.workflows.flow.play import Play, Program
from selfloop.workflows.flow.surgery import ScalarHead, Surgery
from selfloop.workflows.judges.base import Judge, PromptJudge, Verifier
from selfloop.workflows.objectives.base import Objective

if TYPE_CHECKING:
    from selfloop.workflows.flow.rows import Row

__all__ = ["Iteration", "Model", "SourceInfo", "Stream"]

GroupRule = Callable[[list["Row"], random.Random], Iterable[Any]]


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


class Builder:
    """Collects the nodes of one iteration and names them: by `name=`, or by verb and a counter."""

    def __init__(self, iteration: int):
        self.graph = Graph(iteration)
        self.counts: Counter[str] = Counter()
        self.evaluation = False
        self.inside = ""  # the round of grow that nodes are added to

    def name(self, verb: str, name: str | None) -> str:
        plain = self.inside + (name or verb)
        if name is None:
            self.counts[plain] += 1
        name = plain if name is not None or self.counts[plain] == 1 else f"{plain}-{self.counts[plain]}"
        if name in self.graph.nodes:
            raise InputError(f"two nodes of one iteration are named {name!r}; give one of them another name=")
        return name

    def stream(
        self, op: Op, inputs: tuple[Stream, ...], name: str | None, model: ModelRef | None = None
    ) -> Stream:
        named = self.name(op.verb, name)
        columns = op.columns([self.graph.nodes[stream.node].columns for stream in inputs])
        sources = tuple(stream.node for stream in inputs)
        self.graph.add(Node(named, op.verb, sources, columns, op, model, evaluation=self.evaluation))
        return Stream(self, named)


@dataclass(frozen=True)
class Stream:
    """A lazy edge of the graph: batches of whole prompt groups."""

    builder: Builder
    node: str

    @property
    def columns(self) -> frozenset[str]:
        """The columns its rows will have."""
        return self.builder.graph.nodes[self.node].columns

    def add(self, op: Op, *others: Stream, name: str | None = None, model: Model | None = None) -> Stream:
        return self.builder.stream(op, (self, *others), name, model.ref if model else None)

    def sample(self, model: Model, n: int = 1, *, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0,
               max_tokens: int | None = None, stop: tuple[str, ...] = (), reads: Iterable[str] = (),
               show: Callable[[Row], list[Message]] | None = None, name: str | None = None) -> Stream:  # fmt: skip
        """n responses of the model to every prompt. max_tokens: default `generator.max_tokens` of the config. show: other
        messages to give the model, made of a row that has the columns `reads`; the prompt stays what it is."""
        limit = max_tokens or model.max_tokens
        op = ops.Sample(n, temperature, top_p, top_k, limit, stop, show, frozenset(reads))
        return self.add(op, name=name, model=model)

    def demonstrate(self, tokens: Model, *, column: str = "answer", max_tokens: int | None = None,
                    name: str | None = None) -> Stream:  # fmt: skip
        """The text in a column as a response of the stream's source. tokens: whose tokenizer and chat template."""
        node = self.builder.graph.nodes[self.node]
        while not isinstance(node.op, Source):
            node = self.builder.graph.nodes[node.inputs[0]]
        return self.add(ops.Demonstrate(column, node.op.source, max_tokens), name=name, model=tokens)

    def judge(self, judge: Judge, by: Model | None = None, *, votes: int = 1, column: str = "score",
              name: str | None = None) -> Stream:  # fmt: skip
        """A verdict on every response: by a model (a prompt judge), or by a rule on CPU workers."""
        if isinstance(judge, PromptJudge):
            if by is None:
                raise InputError(
                    f"{type(judge).__name__} is a judge prompt: say which model judges, judge(…, by=it.policy)"
                )
            return self.add(JudgeBy(judge, column, votes), name=name, model=by)
        if by is not None:
            raise InputError(f"{type(judge).__name__} is a rule and needs no model: leave out by=")
        return self.add(JudgeRule(judge, column), name=name)

    def score(self, function: Callable[..., Iterable[float | None]], *, column: str = "score",
              reads: Iterable[str] = (), name: str | None = None) -> Stream:  # fmt: skip
        """One number a row, by a function of the prompt group's rows and a seeded generator."""
        return self.add(ops.Score(function, column, frozenset(reads)), name=name)

    def measure(self, model: Model, what: Measured = "logprobs", *, under: str = "response",
                column: str | None = None, name: str | None = None) -> Stream:  # fmt: skip
        """Log-probs of given tokens under a model, or of one with a scalar head its value before each of them, or its reward
        at the last one (a verdict: with `column="score"` rules take it as they take a judge's), by the trainer's forward. The
        column is `measured_logprobs`, … if not named."""
        return self.add(Measure(what, under, column or f"measured_{what}"), name=name, model=model)

    def keep(self, rule: GroupRule, *, name: str | None = None) -> Stream:
        """The rows a rule keeps of each prompt group."""
        return self.add(ops.Keep(rule), name=name)

    def pair(
        self, rule: GroupRule, *, adds: dict[str, pa.DataType] | None = None, name: str | None = None
    ) -> Stream:
        """The preference pairs a rule makes of each prompt group: (chosen, rejected) or (chosen, rejected, {more columns});
        weight and margin are known, others come new by `adds`."""
        return self.add(ops.Pair(rule, tuple((adds or {}).items())), name=name)

    def edit(self, function: Callable[[Row], str | None], *, tokens: Model, reads: Iterable[str] = (),
             name: str | None = None) -> Stream:  # fmt: skip
        """Another text for each response (None: no row), tokenised anew with the tokenizer of `tokens` where it differs."""
        return self.add(Edit(function, frozenset(reads)), name=name, model=tokens)

    def recontext(self, messages: Callable[[Row], list[Message] | None], *, tokens: Model, view: str | None = None,
                  of: str = "response", reads: Iterable[str] = (), name: str | None = None) -> Stream:  # fmt: skip
        """The same response tokens under other messages (None: the row's own): instead of the prompt, or as a further view
        beside it, with the tokens of the view `of`. tokens: whose tokenizer and chat template."""
        return self.add(Recontext(messages, view, of, frozenset(reads)), name=name, model=tokens)

    def map(self, function: Callable[..., Any], *, adds: dict[str, pa.DataType] | None = None, reads: Iterable[str] = (),
            beside: Stream | None = None, name: str | None = None) -> Stream:  # fmt: skip
        """None, one or many rows for each row. `adds`: columns that come new, with their types."""
        op = ops.Map(function, tuple((adds or {}).items()), frozenset(reads), beside is not None)
        return self.add(op, *([beside] if beside else []), name=name)

    def play(self, program: Program, *, adds: dict[str, pa.DataType] | None = None, reads: Iterable[str] = (),
             beside: Stream | None = None, name: str | None = None, **models: Model) -> Stream:  # fmt: skip
        """One small async program per prompt group: `await program(player, rows, rng)`, asking `player.NAME` of the models
        given as NAME=model. With `beside`, that stream's rows come before rng. See `flow.play`."""
        different = {model.ref: f"{given}={model.name}" for given, model in models.items()}
        if len(different) != 1:
            raise InputError(
                "play asks one model (an engine serves one version at a time), and was given "
                f"{', '.join(different.values()) or 'none'}. Let the other models sample or "
                "judge in nodes before it, and hand over their rows"
            )
        model = next(iter(models.values()))
        op = Play(
            program,
            tuple(models),
            tuple((adds or {}).items()),
            frozenset(reads),
            beside is not None,
            model.max_tokens,
        )
        return self.add(op, *([beside] if beside else []), name=name, model=model)

    def gather(self, function: Callable[..., pa.Table], *, adds: Iterable[str] = (), reads: Iterable[str] = (),
               name: str | None = None) -> Stream:  # fmt: skip
        """A function of the whole stream (a barrier): `function(table, rng)`. `adds`: columns that its table has more. What it
        hands back is grouped by prompt again."""
        return self.add(ops.Gather(function, frozenset(reads), frozenset(adds)), name=name)

    def merge(self, *others: Stream, name: str | None = None) -> Stream:
        """Join streams of the same prompts, batch by batch, inside each prompt group. Behind a `gather` of only one of them the
        batches hold other prompts, and the lint refuses it."""
        return self.add(ops.Merge(), *others, name=name)

    def concat(self, *others: Stream, name: str | None = None) -> Stream:
        """Append streams of other prompts."""
        return self.add(ops.Concat(), *others, name=name)

    def report(self, function: Callable[..., dict[str, float]], *, name: str | None = None) -> Stream:
        """Numbers for metrics.jsonl by name, from the whole stream (a barrier): `function(table, seed=…)`."""
        return self.add(ops.Summary(function), name=name)

    def save(self, saved: str, *, name: str | None = None) -> Stream:
        """Keep the stream's rows for `it.saved(name)` of later iterations."""
        return self.add(ops.Save(), name=name or saved)


@dataclass(frozen=True)
class Model:
    """A role at a version. It can sample, judge, be measured and be trained further."""

    builder: Builder
    ref: ModelRef
    max_tokens: int = 256

    @property
    def name(self) -> str:
        return self.ref.name

    def train(self, stream: Stream, objective: Objective, *, reference: Model | None,
              optimizer: Literal["fresh", "continued"], epochs: float = 1.0, lr: float | None = None,
              batch_size: int | None = None, role: str | None = None, frozen: Mapping[str, Model] | None = None,
              name: str | None = None) -> Model:  # fmt: skip
        """Train from these weights. A barrier: it starts when the stream has ended.

        reference: what the objective measures against (None if it needs none). optimizer: fresh, or continued from
        this role's last training. lr, batch_size: default those of `trainer` in the config. role: what is made, if not
        another version of this role (a reward model, a critic). frozen: teachers that the objective reads, by name.
        """
        named = self.builder.name("train", name)
        made, teachers = (
            role or self.ref.role,
            tuple((key, model.ref) for key, model in (frozen or {}).items()),
        )
        training = Training(objective, self.ref, reference.ref if reference else None, optimizer, epochs, lr,
                            batch_size, made, teachers)  # fmt: skip
        graph = self.builder.graph
        graph.add(Node(named, "train", (stream.node,), frozenset(), None, None, training))
        head = "none" if self.ref.head == "none" else "trained"
        return replace(self, ref=ModelRef(made, graph.iteration, named, head))

    def adapt(self, surgery: Surgery) -> Model:
        """The same weights with something added to them; it takes effect where the model is trained or measured."""
        if not isinstance(surgery, ScalarHead):
            raise InputError(
                f"adapt({type(surgery).__name__}): known is ScalarHead. LoRA is the setting trainer.lora"
            )
        head = "new" if self.ref.head == "none" else self.ref.head
        return replace(self, ref=replace(self.ref, head=head))


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
        parts = [self.builder.stream(Source(f"@{k}/{saved}", has=columns), (), f"{saved}@{k}") for k in found]
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

    def grow(self, body: Callable[[Iteration], Stream], *, until: int, rounds: int, accept: Accept | None = None,
             name: str = "grow") -> Stream:  # fmt: skip
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
