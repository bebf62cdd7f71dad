"""The graph of one iteration: nodes in topological order, and the models it ends in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from selfloop.workflows.flow.verbs.base import Op
from selfloop.workflows.flow.verbs.judge import JudgeOp
from selfloop.workflows.flow.verbs.source import Saved, Source
from selfloop.workflows.judges.base import Judge
from selfloop.workflows.objectives.base import Objective
from selfloop.workflows.store.keys import identity

__all__ = ["Graph", "ModelRef", "Node", "Training"]


@dataclass(frozen=True)
class ModelRef:
    """A role at a version, e.g. policy@3. `node`: the train node of this graph that makes it, None if it exists already.
    `head`: whether it has a scalar head, and whether that was ever trained."""

    role: str
    version: int
    node: str | None = None
    head: Literal["none", "new", "trained"] = "none"

    @property
    def name(self) -> str:
        return f"{self.role}@{self.version}"

    @property
    def label(self) -> str:
        """Its name while an iteration runs: a model of this iteration carries its train node's name too."""
        return self.name if self.node is None else f"{self.name}#{self.node}"


@dataclass(frozen=True)
class Training:
    """What a train node does: an objective on a finished stream, from `start`."""

    objective: Objective
    start: ModelRef
    reference: ModelRef | None
    optimizer: Literal["fresh", "continued"]
    epochs: float = 1.0
    lr: float | None = None
    batch_size: int | None = None
    role: str = "policy"  # what is made
    frozen: tuple[tuple[str, ModelRef], ...] = ()  # teachers, by the name that the objective knows

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "objective": identity(self.objective),
            "start": self.start.name,
            "reference": self.reference.name if self.reference else None,
            "optimizer": self.optimizer,
            "epochs": self.epochs,
            "lr": self.lr,
            "batch_size": self.batch_size,
            "role": self.role,
            "frozen": {name: model.name for name, model in self.frozen},
            **({} if self.start.head == "none" else {"head": True}),
        }


@dataclass(frozen=True)
class Node:
    """One step. Its rows have `columns`; `version` names the model its engine or trainer must serve."""

    name: str
    verb: str
    inputs: tuple[str, ...]
    columns: frozenset[str]
    op: Op | None = None
    model: ModelRef | None = None
    training: Training | None = None
    evaluation: bool = False  # part of the engine's own evaluation, not of the recipe

    @property
    def models(self) -> tuple[ModelRef, ...]:
        """Every model this node needs."""
        if self.training is None:
            return (self.model,) if self.model else ()
        more = (self.training.reference,) if self.training.reference else ()
        return (self.training.start, *more, *(model for _, model in self.training.frozen))

    @property
    def saved(self) -> Saved | None:
        """The rows of an earlier iteration that it reads, if it begins with such."""
        return self.op if isinstance(self.op, Saved) else None

    @property
    def row_inputs(self) -> tuple[str, ...]:
        """The inputs whose rows become its rows; the others stand beside them."""
        return self.inputs[:1] if self.op is not None and self.op.takes == "first" else self.inputs

    @property
    def given(self) -> bool:
        """Whether its rows are there before the iteration begins: it computes and stores none."""
        return self.op is not None and self.op.place == "driver"

    @property
    def settings(self) -> dict[str, Any]:
        if self.training:
            return self.training.settings
        return self.op.settings if self.op else {}


@dataclass
class Graph:
    """Nodes by name, in an order in which every input comes before its reader."""

    iteration: int
    nodes: dict[str, Node] = field(default_factory=dict)
    outputs: dict[str, ModelRef] = field(default_factory=dict)

    def add(self, node: Node) -> None:
        assert node.name not in self.nodes, f"two nodes are named {node.name}"
        self.nodes[node.name] = node

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    def readers(self, name: str) -> list[Node]:
        """The nodes that read this node's rows."""
        return [node for node in self if name in node.inputs]

    def before(self, name: str) -> Iterator[Node]:
        """The node itself and all that its rows come from, in this iteration."""
        waiting, seen = [name], set[str]()
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                yield self.nodes[name]
                waiting += reversed(self.nodes[name].inputs)

    def sources(self, name: str) -> Iterator[str]:
        """The named sources that a node's rows come from."""
        return (node.op.source for node in self.before(name) if isinstance(node.op, Source))

    def judges(self) -> Iterator[tuple[Node, Judge]]:
        """The nodes that judge, with their judges."""
        return ((node, node.op.judge) for node in self if isinstance(node.op, JudgeOp))

    def with_op(self, name: str, op: Op, columns: frozenset[str]) -> None:
        """Replace a node's op, e.g. a source that shall not carry answers."""
        self.nodes[name] = replace(self.nodes[name], op=op, columns=columns)
