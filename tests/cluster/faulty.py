"""Generators with one fault each, of kinds that real systems have shipped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfloop.actors.generator import Generator
from selfloop.actors.weights import receipt_of


class SkipsPublish(Generator):
    """Answers every publish after the first with a right receipt and goes on serving what it has."""

    loads = 0

    async def load(self, model: str, version: int, source: str | Sequence[Any]) -> dict[str, str]:
        self.loads += 1
        if self.loads == 1:
            return await super().load(model, version, source)
        self.model = model
        return receipt_of(self.tensors(source))
