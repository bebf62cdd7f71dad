"""The columns that flow through a graph: each name once, with its Arrow type and what it means.

A verb adds columns to the rows it is given and never renames one. Rows hold no clock, process, host, path, run
name, replica or attempt: the same run gives the same rows anywhere.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

import pyarrow as pa

__all__ = [
    "COLUMNS",
    "MESSAGES",
    "Message",
    "RowStatus",
    "VerdictState",
    "assistant",
    "empty",
    "prompt_id",
    "schema_of",
]

Message = dict[str, str]
"""One message: its `role` (system, user, assistant; plain: text that a base model goes on with) and `content`."""

RowStatus = Literal["ok", "failed"]
VerdictState = Literal["score", "abstain", "failed"]

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
"""OpenAI messages."""
JUDGEMENTS = pa.list_(pa.struct([("state", pa.string()), ("score", pa.float64()), ("text", pa.string())]))

# name -> (Arrow type, meaning)
COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    # the prompt
    "prompt_id": (pa.string(), "hash of messages, answer and occurrence number: names a prompt group"),
    "prompt": (MESSAGES, "the messages the model answers"),
    "answer": (pa.string(), "the gold answer; null where there is none; read by checkers only"),
    "meta": (pa.string(), "what the source says of the prompt, as JSON: task kind, level, ..."),
    "parent": (pa.string(), "prompt_id of the prompt this one was made from; null for a source's own"),
    # one response
    "sample": (pa.int64(), "number of the response in its prompt group, from 0"),
    "prompt_ids": (pa.list_(pa.int32()), "tokens the model was given"),
    "response_ids": (pa.list_(pa.int32()), "tokens sampled, with the end token when one was sampled"),
    "response": (pa.string(), "response_ids as text, without special tokens"),
    "completion": (MESSAGES, "the response as one assistant message"),
    "response_logprobs": (pa.list_(pa.float32()), "sampling log-probs, nats, before temperature and top-p"),
    "finish": (pa.string(), "stop: ended by itself; length: cut at max_tokens; error"),
    "seed": (pa.int64(), "seed of this sample"),
    "model": (pa.string(), "role@version that wrote the response"),
    "version": (pa.int64(), "version of the weights that wrote the response"),
    "node": (pa.string(), "node that made the response"),
    "stripped": (pa.bool_(), "whether a given response spelled end markers at its end, which were taken off"),
    "edited": (pa.bool_(), "whether text or context are other than what was sampled; null or absent: no"),
    "status": (pa.string(), "ok, or failed: kept as data, never learned from"),
    "error": (pa.string(), "why the row failed; null otherwise"),
    # a verdict (a judge with column='quality' adds quality, quality_state, quality_judgements)
    "score": (pa.float64(), "the verdict; null unless its state is score"),
    "score_state": (pa.string(), "score, abstain (nothing could be read), failed (the judge broke)"),
    "score_judgements": (JUDGEMENTS, "each single judgement behind the verdict"),
    # a preference pair: one row a pair, both sides of one prompt group
    "chosen": (MESSAGES, "the preferred response as messages"),
    "rejected": (MESSAGES, "the other response as messages"),
    "chosen_ids": (pa.list_(pa.int32()), "tokens of the preferred response"),
    "rejected_ids": (pa.list_(pa.int32()), "tokens of the other response"),
    "chosen_logprobs": (pa.list_(pa.float32()), "sampling log-probs of chosen_ids"),
    "rejected_logprobs": (pa.list_(pa.float32()), "sampling log-probs of rejected_ids"),
    "chosen_score": (pa.float64(), "verdict of the preferred response"),
    "rejected_score": (pa.float64(), "verdict of the other response"),
    "chosen_sample": (pa.int64(), "sample number of the preferred response"),
    "rejected_sample": (pa.int64(), "sample number of the other response"),
    "chosen_version": (pa.int64(), "weights that wrote the preferred response; null for a named source"),
    "rejected_version": (pa.int64(), "weights that wrote the other response; null for a named source"),
    "weight": (pa.float64(), "weight of the example in the loss; 1 where a recipe does not say otherwise"),
    # for objectives on single responses
    "label": (pa.float64(), "1 desirable, 0 not"),
    "advantages": (pa.float64(), "advantage of the response, the same for each of its tokens"),
    "margin": (pa.float64(), "how much better chosen is than rejected"),
}


def schema_of(*names: str) -> pa.Schema:
    """The Arrow schema of these columns, in this order."""
    return pa.schema([(name, COLUMNS[name][0]) for name in names])


def empty(*names: str) -> pa.Table:
    """A table of these columns without rows."""
    return schema_of(*names).empty_table()


def assistant(text: str) -> list[Message]:
    """A response as messages."""
    return [{"role": "assistant", "content": text}]


def prompt_id(messages: list[Message], answer: str | None, occurrence: int = 0, **more: Any) -> str:
    """Sixteen hex digits that name a prompt: equal prompts stay apart by their occurrence number."""
    text = json.dumps([messages, answer, occurrence, more], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
