"""From a recipe to the graph of one iteration, with the engine's own evaluation at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from selfloop.workflows.config import Evaluation
from selfloop.workflows.config.sentences import in_short
from selfloop.workflows.errors import InputError, SelfloopError, blamed
from selfloop.workflows.flow.graph import Graph, ModelRef
from selfloop.workflows.flow.iteration import Iteration, SourceInfo
from selfloop.workflows.flow.recipe import Recipe
from selfloop.workflows.flow.stream import Builder, Model, Stream
from selfloop.workflows.flow.verbs.join import Save
from selfloop.workflows.flow.verbs.source import Saved
from selfloop.workflows.flow.verbs.whole import Summary
from selfloop.workflows.judges.answers import Extract
from selfloop.workflows.judges.base import Figure, Verifier

__all__ = ["HeldoutSummary", "Planner"]

GREEDY = "heldout-greedy"


@dataclass(frozen=True)
class HeldoutSummary:
    """The evaluation's last node: `evaluation.heldout.heldout_metrics` on the held-out rows."""

    bootstrap: int
    extract: Extract = "text"
    figure: Figure = "seen"

    def __call__(
        self, sampled: pa.Table, greedy: pa.Table, previous: pa.Table | None = None, *, seed: int
    ) -> dict[str, float]:
        from selfloop.workflows.evaluation.heldout import heldout_metrics

        return heldout_metrics(
            sampled,
            greedy,
            previous,
            seed=seed,
            bootstrap=self.bootstrap,
            extract=self.extract,
            figure=self.figure,
        )


@dataclass(frozen=True)
class Planner:
    """Builds the graph of any iteration. Iteration 0 holds only the evaluation of the initial policy."""

    recipe: Recipe
    sources: Mapping[str, SourceInfo]
    evaluation: Evaluation
    iterations: int
    checker: Verifier | None = None
    max_tokens: int = 256

    def graph(self, index: int) -> Graph:
        """The graph of iteration `index`, with answers only where the recipe's own nodes read them."""
        graph = self.build(index, dict(self.sources))
        reads_answers = any(node.op and node.op.sees_answer for node in graph if not node.evaluation)
        if index == 0 or reads_answers:
            return graph
        blind = {
            name: info if name == "heldout" else replace(info, columns=info.columns - {"answer"})
            for name, info in self.sources.items()
        }
        return self.build(index, blind)

    def build(self, index: int, sources: dict[str, SourceInfo]) -> Graph:
        builder = Builder(index)
        first = self.build(1, sources) if index > 1 else Graph(0)
        saved = {node.name: node.columns for node in first if isinstance(node.op, Save)}
        scalar = frozenset(role for role, model in first.outputs.items() if model.head != "none")
        it = Iteration(builder, index, sources, self.checker, self.max_tokens, saved, scalar_roles=scalar)
        if index == 0:
            policy = it.initial
        else:
            outputs = as_roles(written(self.recipe, it), self.recipe)
            builder.graph.outputs = {role: model.ref for role, model in outputs.items()}
            policy = outputs.get("policy", Model(builder, ModelRef("policy", index - 1), self.max_tokens))
        if index % self.evaluation.every == 0 or index == self.iterations:
            self.evaluate(it, policy)
        return builder.graph

    def evaluate(self, it: Iteration, policy: Model) -> None:
        """Held-out prompts, sampled and greedy, verified where there are answers, summed up in one node."""
        it.builder.evaluation = True
        heldout = it.source("heldout", "heldout")
        chosen = self.evaluation
        sampled = heldout.sample(
            policy, chosen.samples, temperature=chosen.temperature, top_p=chosen.top_p, name="heldout-sampled"
        )
        greedy = heldout.sample(
            policy, 1, temperature=0.0, name="heldout-answered" if self.verified(it) else GREEDY
        )
        if self.verified(it):
            assert self.checker is not None
            sampled = sampled.judge(self.checker, name="heldout-verified")
            greedy = greedy.judge(self.checker, name=GREEDY)
        sampled = sampled.measure(it.initial, column="initial_logprobs", name="heldout-measured")
        extract: Extract = getattr(self.checker, "extract", "text")
        figure: Figure = self.checker.figure if self.checker else "seen"
        inputs = [greedy]
        earlier = (
            it.index - self.evaluation.every
            if it.index % self.evaluation.every == 0
            else it.index - it.index % self.evaluation.every
        )
        if earlier >= 0:
            inputs.append(self.stored(it, earlier, GREEDY, greedy))
        sampled.add(Summary(HeldoutSummary(chosen.bootstrap, extract, figure)), *inputs, name="evaluation")
        it.builder.evaluation = False

    def verified(self, it: Iteration) -> bool:
        return self.checker is not None and (
            it.sources["heldout"].has_answers or not self.checker.needs_answer
        )

    @staticmethod
    def stored(it: Iteration, iteration: int, node: str, like: Stream) -> Stream:
        """The committed rows of a node of an earlier iteration."""
        return it.builder.stream(Saved(iteration, node, like.columns), (), f"{node}-before")


def written(recipe: Recipe, it: Iteration) -> Model | dict[str, Model]:
    """What the recipe's page gives; what it raises becomes one sentence with its place."""
    try:
        return recipe.iteration(it)
    except SelfloopError:
        raise
    except Exception as error:  # a recipe may be the user's own, and its objects refuse wrong settings
        raise InputError(
            f"{type(recipe).__name__}.iteration raised {type(error).__name__}: {in_short(error)}{blamed(error)}. Mend it there"
        ) from error


def as_roles(result: Model | dict[str, Model], recipe: Recipe) -> dict[str, Model]:
    """What `iteration` returned, as models by role."""
    outputs: dict[str, Any] = (
        result if isinstance(result, dict) else {"policy": result}
    )  # what a recipe may return
    for role, model in outputs.items():
        if not isinstance(model, Model):
            raise InputError(
                f"{type(recipe).__name__}.iteration returned {type(model).__name__} for {role!r}; it must return a Model, "
                "as model.train(…) gives it, or a dict of them by role"
            )
    return outputs
