"""Text of models and users, made safe for a terminal."""

from __future__ import annotations

import re

__all__ = ["clean"]

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def clean(text: str) -> str:
    """Model output for a terminal: one line, no control characters."""
    return CONTROL.sub(" ", text).strip()
