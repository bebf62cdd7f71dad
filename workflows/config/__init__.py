"""What a user may say: the settings of a run, read from YAML and `key.sub=value`. The door of this folder."""

from __future__ import annotations

from selfloop.workflows.config.file import Draft, load_config, read_config
from selfloop.workflows.config.settings import (
    Checkpoints,
    Config,
    Evaluation,
    Generator,
    Lora,
    Prompts,
    Schedule,
    Section,
    Trainer,
)

__all__ = [
    "Checkpoints",
    "Config",
    "Draft",
    "Evaluation",
    "Generator",
    "Lora",
    "Prompts",
    "Schedule",
    "Section",
    "Trainer",
    "load_config",
    "read_config",
]
