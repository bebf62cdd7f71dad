"""How many tokens a model takes: its positions, and what the settings leave of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfloop.workflows.data.files import read_json

__all__ = ["LONGEST_DEFAULT", "positions_in", "positions_of", "sampled_limit", "trained_limit"]

LONGEST_DEFAULT = 4096
"""Tokens of prompt and response together that an engine takes where the user does not say: many models allow far more than
fits into memory."""
POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
    "n_ctx",
)
"""What config.json calls the positions of a model, by the age of the name."""


def positions_in(config: Mapping[str, Any]) -> int | None:
    """Positions that a config.json states, YaRN's stretch included; None where it states none."""
    text = {**config, **(config.get("text_config") or {})}
    stated = (text.get(name) for name in POSITIONS)
    found = next((value for value in stated if isinstance(value, int) and value > 0), None)
    scaling = text.get("rope_scaling") or text.get("rope_parameters") or {}
    first, factor = scaling.get("original_max_position_embeddings"), scaling.get("factor")
    if found and first and factor and "yarn" in (scaling.get("rope_type"), scaling.get("type")):
        return max(found, int(first * factor))
    return found


def positions_of(folder: str | Path) -> int | None:
    """The same of a model folder."""
    return positions_in(read_json(Path(folder) / "config.json"))


def sampled_limit(positions: int | None, max_model_len: int | None) -> int:
    """Tokens of prompt and response together that an engine takes."""
    longest = max_model_len or LONGEST_DEFAULT
    return min(longest, positions or longest)


def trained_limit(positions: int | None, max_model_len: int | None) -> int | None:
    """Tokens of one sequence that is trained or measured; None: as many as there are."""
    return min((limit for limit in (positions, max_model_len) if limit), default=None)
