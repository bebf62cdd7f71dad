"""Which asks engines refuse."""

from __future__ import annotations

from typing import Any

from selfloop.workflows.flow.asks import Ask
from selfloop.workflows.models.facts import ModelFacts

__all__ = ["NOT_FINITE", "ask_problem", "ids_problem"]

NOT_FINITE = "the log-probs are not finite: the weights that are served are damaged"


def ids_problem(ids: Any, facts: ModelFacts, room: int = 1) -> str | None:
    """Why the model cannot be given these tokens with `room` more to come, or None."""
    if len(ids) == 0:
        return "the prompt has no tokens; a response needs at least one token before it"
    if len(ids) + room > facts.longest:
        return (
            f"the prompt has {len(ids)} tokens and the model takes {facts.longest} of prompt and response together; "
            "shorten the prompt or raise generator.max_model_len"
        )
    if min(ids) < 0 or max(ids) >= facts.vocabulary:
        return (
            f"the prompt has token ids outside the model's vocabulary of {facts.vocabulary}; it was made with "
            "another tokenizer than the model's"
        )
    return None


def ask_problem(ask: Ask, facts: ModelFacts) -> str | None:
    """Why this ask cannot be served, or None."""
    params = ask.params
    if params.max_tokens < 1:
        return f"max_tokens is {params.max_tokens} and must be at least 1"
    if not 0.0 <= params.temperature <= 2.0:
        return f"temperature is {params.temperature} and must be from 0 (greedy) to 2"
    if not 0.0 < params.top_p <= 1.0:
        return f"top_p is {params.top_p} and must be above 0 and at most 1 (off)"
    if params.top_k < 0:
        return f"top_k is {params.top_k} and must be 0 (off) or more"
    if "" in params.stop:
        return "a stop string is empty: it would end every response at once"
    return ids_problem(ask.prompt_ids, facts)
