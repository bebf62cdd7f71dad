"""A generator with faults that other systems have shipped, one at a time, each silent where it happens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from selfloop.actors.generate.generator import Generator
from selfloop.actors.weights.folder import folder_tensors
from selfloop.actors.weights.receipt import receipt_of

FAULTS = ("back to disk after sleep", "a tensor is not delivered", "the cache is kept", "the publish is missed",
          "the publish is not applied")  # fmt: skip
KEEPS = ("the cache is kept", "loads whenever it is told")


def hasty(core: Any, version: int, tensors: Any) -> dict[str, str]:
    """Load without a look at the requests that run."""
    running, core.waiting = core.waiting, {}
    try:
        return type(core).replace_weights(core, version, tensors)
    finally:
        core.waiting = running


class Faulty(Generator):
    """Right until it is armed; then wrong from version 1 on."""

    fault = ""

    def arm(self, fault: str) -> None:
        """Choose the fault, or none."""
        self.fault = fault
        core: Any = self.engine
        if not hasattr(self, "clear"):
            self.clear, self.names = core.engine.reset_prefix_cache, core.names
        core.engine.reset_prefix_cache = self.clear if fault not in KEEPS else lambda: True
        core.replace_weights = partial(hasty, core) if fault == "loads whenever it is told" else partial(
            type(core).replace_weights, core)  # fmt: skip
        core.names = set() if fault == "a tensor is not delivered" else self.names  # the engine does not look

    async def load(self, model: str, version: int, source: str | Sequence[Any]) -> dict[str, str]:
        if not version or not self.fault:
            return await super().load(model, version, source)
        if self.fault == "the publish is missed":
            return receipt_of(self.tensors(source))  # and goes on as before, under its old name
        if self.fault == "the publish is not applied":
            self.model = model
            return receipt_of(self.tensors(source))
        slept = self.asleep
        receipt = await super().load(model, version, source)
        if self.fault == "back to disk after sleep" and slept:
            self.engine.load(version, folder_tensors(self.spec.model, self.spec.dtype))
        return receipt

    def tensors(self, source: str | Sequence[Any]) -> Iterator[Any]:
        found = list(super().tensors(source))
        return iter(
            found[:-1] if self.fault == "a tensor is not delivered" and not isinstance(source, str) else found
        )
