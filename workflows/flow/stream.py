"""Streams and models, as a recipe writes them. Every call adds a node to the graph; nothing runs here."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from selfloop.workflows.data.schema import Message
from selfloop.workflows.errors import InputError
from selfloop.workflows.flow.graph import Graph, ModelRef, Node, Training
from selfloop.workflows.flow.surgery import ScalarHead, Surgery
from selfloop.workflows.flow.verbs.base import Op
from selfloop.workflows.flow.verbs.edit import Edit, Recontext
from selfloop.workflows.flow.verbs.join import Concat, Merge, Save
from selfloop.workflows.flow.verbs.judge import JudgeBy, JudgeRule
from selfloop.workflows.flow.verbs.measure import Measure, Measured
from selfloop.workflows.flow.verbs.play import Play, Program
from selfloop.workflows.flow.verbs.rules import Keep, Map, Pair, Score
from selfloop.workflows.flow.verbs.sample import Demonstrate, Sample
from selfloop.workflows.flow.verbs.source import Saved, Source
from selfloop.workflows.flow.verbs.whole import Gather, Summary
from selfloop.workflows.judges.base import Judge, PromptJudge
from selfloop.workflows.objectives.base import Objective

if TYPE_CHECKING:
    from selfloop.workflows.data.rows import Row

__all__ = ["Builder", "Model", "Stream"]

GroupRule = Callable[[list["Row"], random.Random], Iterable[Any]]


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

    def sample(
        self,
        model: Model,
        n: int = 1,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        max_tokens: int | None = None,
        stop: tuple[str, ...] = (),
        reads: Iterable[str] = (),
        show: Callable[[Row], list[Message]] | None = None,
        name: str | None = None,
    ) -> Stream:
        """n responses of the model to every prompt. max_tokens: default `generator.max_tokens` of the config. show: other
        messages to give the model, made of a row that has the columns `reads`; the prompt stays what it is."""
        limit = max_tokens or model.max_tokens
        op = Sample(n, temperature, top_p, top_k, limit, stop, show, frozenset(reads))
        return self.add(op, name=name, model=model)

    def demonstrate(
        self, tokens: Model, *, column: str = "answer", max_tokens: int | None = None, name: str | None = None
    ) -> Stream:
        """The text in a column as a response of the stream's source. tokens: whose tokenizer and chat template."""
        node = self.builder.graph.nodes[self.node]
        while not isinstance(node.op, Source | Saved):
            node = self.builder.graph.nodes[node.inputs[0]]
        return self.add(Demonstrate(column, node.op.source, max_tokens), name=name, model=tokens)

    def judge(
        self,
        judge: Judge,
        by: Model | None = None,
        *,
        votes: int = 1,
        column: str = "score",
        name: str | None = None,
    ) -> Stream:
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

    def score(
        self,
        function: Callable[..., Iterable[float | None]],
        *,
        column: str = "score",
        reads: Iterable[str] = (),
        name: str | None = None,
    ) -> Stream:
        """One number a row, by a function of the prompt group's rows and a seeded generator."""
        return self.add(Score(function, column, frozenset(reads)), name=name)

    def measure(
        self,
        model: Model,
        what: Measured = "logprobs",
        *,
        under: str = "response",
        column: str | None = None,
        name: str | None = None,
    ) -> Stream:
        """Log-probs of given tokens under a model, or of one with a scalar head its value before each of them, or its reward
        at the last one (a verdict: with `column="score"` rules take it as they take a judge's), by the trainer's forward. The
        column is `measured_logprobs`, … if not named."""
        return self.add(Measure(what, under, column or f"measured_{what}"), name=name, model=model)

    def keep(self, rule: GroupRule, *, name: str | None = None) -> Stream:
        """The rows a rule keeps of each prompt group."""
        return self.add(Keep(rule), name=name)

    def pair(
        self, rule: GroupRule, *, adds: dict[str, pa.DataType] | None = None, name: str | None = None
    ) -> Stream:
        """The preference pairs a rule makes of each prompt group: (chosen, rejected) or (chosen, rejected, {more columns});
        weight and margin are known, others come new by `adds`."""
        return self.add(Pair(rule, tuple((adds or {}).items())), name=name)

    def edit(
        self,
        function: Callable[[Row], str | None],
        *,
        tokens: Model,
        reads: Iterable[str] = (),
        name: str | None = None,
    ) -> Stream:
        """Another text for each response (None: no row), tokenised anew with the tokenizer of `tokens` where it differs."""
        return self.add(Edit(function, frozenset(reads)), name=name, model=tokens)

    def recontext(
        self,
        messages: Callable[[Row], list[Message] | None],
        *,
        tokens: Model,
        view: str | None = None,
        of: str = "response",
        reads: Iterable[str] = (),
        name: str | None = None,
    ) -> Stream:
        """The same response tokens under other messages (None: the row's own): instead of the prompt, or as a further view
        beside it, with the tokens of the view `of`. tokens: whose tokenizer and chat template."""
        return self.add(Recontext(messages, view, of, frozenset(reads)), name=name, model=tokens)

    def map(
        self,
        function: Callable[..., Any],
        *,
        adds: dict[str, pa.DataType] | None = None,
        reads: Iterable[str] = (),
        beside: Stream | None = None,
        name: str | None = None,
    ) -> Stream:
        """None, one or many rows for each row. `adds`: columns that come new, with their types."""
        op = Map(function, tuple((adds or {}).items()), frozenset(reads), beside is not None)
        return self.add(op, *([beside] if beside else []), name=name)

    def play(
        self,
        program: Program,
        *,
        adds: dict[str, pa.DataType] | None = None,
        reads: Iterable[str] = (),
        beside: Stream | None = None,
        name: str | None = None,
        **models: Model,
    ) -> Stream:
        """One small async program per prompt group: `await program(player, rows, rng)`, asking `player.NAME` of the models
        given as NAME=model. With `beside`, that stream's rows come before rng. See `flow.verbs.play`."""
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

    def gather(
        self,
        function: Callable[..., pa.Table],
        *,
        adds: Iterable[str] = (),
        reads: Iterable[str] = (),
        name: str | None = None,
    ) -> Stream:
        """A function of the whole stream (a barrier): `function(table, rng)`. `adds`: columns that its table has more. What it
        hands back is grouped by prompt again."""
        return self.add(Gather(function, frozenset(reads), frozenset(adds)), name=name)

    def merge(self, *others: Stream, name: str | None = None) -> Stream:
        """Join streams of the same prompts, batch by batch, inside each prompt group. Behind a `gather` of only one of them the
        batches hold other prompts, and the lint refuses it."""
        return self.add(Merge(), *others, name=name)

    def concat(self, *others: Stream, name: str | None = None) -> Stream:
        """Append streams of other prompts."""
        return self.add(Concat(), *others, name=name)

    def report(self, function: Callable[..., dict[str, float]], *, name: str | None = None) -> Stream:
        """Numbers for metrics.jsonl by name, from the whole stream (a barrier): `function(table, seed=…)`."""
        return self.add(Summary(function), name=name)

    def save(self, saved: str, *, name: str | None = None) -> Stream:
        """Keep the stream's rows for `it.saved(name)` of later iterations."""
        return self.add(Save(), name=name or saved)


@dataclass(frozen=True)
class Model:
    """A role at a version. It can sample, judge, be measured and be trained further."""

    builder: Builder
    ref: ModelRef
    max_tokens: int = 256

    @property
    def name(self) -> str:
        return self.ref.name

    def train(
        self,
        stream: Stream,
        objective: Objective,
        *,
        reference: Model | None,
        optimizer: Literal["fresh", "continued"],
        epochs: float = 1.0,
        lr: float | None = None,
        batch_size: int | None = None,
        role: str | None = None,
        frozen: Mapping[str, Model] | None = None,
        name: str | None = None,
    ) -> Model:
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
        training = Training(
            objective,
            self.ref,
            reference.ref if reference else None,
            optimizer,
            epochs,
            lr,
            batch_size,
            made,
            teachers,
        )
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
