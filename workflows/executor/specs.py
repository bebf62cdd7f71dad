"""What the actors of a run are started with."""

from __future__ import annotations

from dataclasses import dataclass

from selfloop.actors.generate.spec import EngineSpec
from selfloop.actors.train.spec import TrainerSpec
from selfloop.workflows.data.schema import Message

__all__ = ["Specs"]


@dataclass(frozen=True)
class Specs:
    """Engine and trainer, and the probe: prompts on which they are compared, and the gap, in nats, they may show."""

    engine: EngineSpec
    trainer: TrainerSpec
    probe_messages: list[list[Message]]
    probe_limit: float
    trust_remote_code: bool = False

    @property
    def fake(self) -> bool:
        return self.engine.engine == "fake"
