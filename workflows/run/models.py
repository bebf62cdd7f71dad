"""Where each model of a run is: the initial one, what train nodes made, and what each iteration ended in."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from selfloop.workflows.flow.graph import Graph, ModelRef, Node
from selfloop.workflows.store.checkpoint import Place
from selfloop.workflows.store.folder import RunFolder

__all__ = ["Models", "carried", "made_by"]


def made_by(node: Node, graph: Graph) -> ModelRef:
    """The model that a train node makes."""
    assert node.training is not None
    return ModelRef(node.training.role, graph.iteration, node.name)


def carried(node: Node, graph: Graph) -> ModelRef:
    """Which model a train node leaves as it is: its start if that was made in this iteration or nobody keeps the result,
    else its role's last one, which for a role that is trained from the initial policy every time is not its start."""
    training = node.training
    assert training is not None
    kept = any(model.node == node.name for model in graph.outputs.values())
    if training.start.node is not None or not kept:
        return training.start
    return ModelRef(training.role, graph.iteration - 1)


@dataclass(frozen=True)
class Models:
    """places: by label, as policy@3 for what iteration 3 ended in."""

    folder: RunFolder
    places: dict[str, Place] = field(default_factory=dict)

    def has(self, model: ModelRef) -> bool:
        return model.label in self.places

    def place(self, model: ModelRef) -> Place:
        return self.places[model.label]

    def note(self, model: ModelRef, place: Place) -> None:
        """A model was made, and is here."""
        self.places[model.label] = place

    def out(self, node: Node, graph: Graph) -> Path:
        """Where a train node's checkpoint goes: iteration=…/policy, or beside its node when it is thrown away."""
        for role, model in graph.outputs.items():
            if model.node == node.name:
                return self.folder.iteration(graph.iteration) / role
        return self.folder.node(graph.iteration, node.name) / "model"

    def before(self, node: Node, graph: Graph) -> Place | None:
        """The model that a train node leaves as it is where it has nothing to learn. None: there is none yet that has the
        scalar head which is asked for."""
        training = node.training
        assert training is not None
        last = carried(node, graph)
        if self.has(last):
            return self.place(last)
        return None if training.start.head == "new" else self.place(training.start)

    def settle(self, graph: Graph) -> dict[str, Place]:
        """The models an iteration ended in, by role, under their plain names (policy@3) from now on."""
        made = {role: self.place(model) for role, model in graph.outputs.items()}
        self.ended(graph.iteration, made)
        return made

    def restore(self, initial: Place) -> int:
        """Note where the models of the complete iterations are; returns the last of these."""
        self.places["policy@0"] = initial
        last = self.folder.completed()
        for index in range(last + 1):
            roles = self.folder.manifest(index)["roles"]
            self.ended(index, {role: Place.of(entry, self.folder) for role, entry in roles.items()})
        return last

    def ended(self, iteration: int, made: dict[str, Place]) -> None:
        """An iteration ended in these models; a role that it left out stays as it was."""
        before = f"@{iteration - 1}"
        earlier = {
            name.removesuffix(before): place for name, place in self.places.items() if name.endswith(before)
        }
        self.places.update({f"{role}@{iteration}": place for role, place in (earlier | made).items()})
