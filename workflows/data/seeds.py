"""Seeds that depend on what is computed, never on when, where or how often."""

from __future__ import annotations

import hashlib

__all__ = ["derive_seed"]


def derive_seed(*parts: object) -> int:
    """A seed in [0, 2**31) from any printable parts, e.g. (run seed, iteration, node, prompt_id, sample)."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
