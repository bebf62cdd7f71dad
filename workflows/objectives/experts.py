"""DMoERM's parts that are no loss: which answers a capability label keeps, what the router sees, how experts fuse."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.nn import Sequential

__all__ = ["capability_label", "first_digit", "fusion_head", "router_text"]


def first_digit(reply: str) -> int | None:
    """The answer a comparison reply names: whichever of the digits 1 and 2 comes first; None without one."""
    found = re.search(r"[12]", reply)
    return int(found.group()) if found else None


def capability_label(reply: str, swapped_reply: str) -> tuple[int, int] | None:
    """Ranks of the two answers (1 better) if both orders agree on the same answer, else None (position bias)."""
    first, second = first_digit(reply), first_digit(swapped_reply)
    if first is None or second is None or first == second:
        return None
    return (1, 2) if first == 1 else (2, 1)


def router_text(messages: Sequence[Mapping[str, str]]) -> str:
    """What the router reads: the user's turns alone, so that all answers to a prompt meet the same experts."""
    return "\n".join(message["content"] for message in messages if message["role"] == "user")


def fusion_head(experts: int, width: int) -> Sequential:
    """Phase 3: the MLP on the experts' joined last hidden states, (rows, experts * width) -> (rows, 1)."""
    from torch.nn import Linear, PReLU, Sequential

    return Sequential(Linear(experts * width, width), PReLU(), Linear(width, 1))
