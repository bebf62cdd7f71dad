"""What several sketches need to write and read prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rapidfuzz.distance import Indel

Messages = list[dict[str, str]]


def user(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def plain(text: str) -> Messages:
    """Text that a base model goes on with."""
    return [{"role": "plain", "content": text}]


def task(row: Any) -> str:
    """The prompt as text."""
    return row["prompt"][-1]["content"]


def own_prompt(row: Any) -> Messages:
    return row["prompt"]


def rouge(one: str, other: str) -> float:
    """ROUGE-L F1 on words."""
    return Indel.normalized_similarity(one.split(), other.split())


def unlike(text: str, others: Sequence[str], limit: float = 0.7) -> bool:
    return all(rouge(text, other) <= limit for other in others)
