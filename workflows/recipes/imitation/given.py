"""Rows for training from the given responses of a named source: what each kind of objective learns from."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from selfloop import MESSAGES, Iteration, Message, Objective, Pair, RecipeError, Row, Stream

__all__ = ["given_rows", "mismatched", "served"]


def served(objective: Objective) -> bool:
    """Whether given responses are all that an objective needs: pairs, responses, or responses with a label."""
    reads = {read for names in objective.reads.values() for read in names}
    pairs = set(objective.views) == {"chosen", "rejected"} and not objective.columns
    single = set(objective.views) <= {"response", "kl"} and set(objective.columns) <= {"label"}
    return reads <= {"logprobs", "reference_logprobs"} and (pairs or single)


def given_rows(it: Iteration, source: str, objective: Objective, take: int | None = None) -> Stream:
    """A source's responses with the views and columns of the objective.

    Pair objectives learn from chosen and rejected; label objectives from completions with a label, or from both sides of
    pairs; the others from completions, else from the chosen sides, else from the answers.
    """
    given = it.data(source, take=take, name=f"{source}-rows")
    has = it.sources[source].columns

    def said(column: str) -> Stream:
        return given.demonstrate(it.initial, column=column, name=f"{source}-{column}")

    if "chosen" in objective.views:
        return (
            said("chosen")
            .merge(said("rejected"), name=f"{source}-both")
            .pair(first_against_second, name=f"{source}-pairs")
        )
    if not objective.columns:
        return said(next((name for name in ("completion", "chosen") if name in has), "answer"))
    if "chosen" in has:
        both = said("chosen").merge(said("rejected"), name=f"{source}-both")
        rows = both.keep(differing, name=f"{source}-differing").score(
            first_is_good, column="label", reads=("sample",), name=f"{source}-labels"
        )
    else:
        rows = said("completion")
    if "kl" in objective.views:
        rows = rows.gather(mismatched, adds=("other",), reads=("prompt",), name=f"{source}-mismatched")
        rows = rows.recontext(other, tokens=it.initial, view="kl", reads=("other",), name=f"{source}-kl")
    return rows


def first_against_second(rows: Sequence[Row], rng: random.Random) -> list[Pair]:
    """Chosen against rejected, unless they are the same."""
    return [(rows[0], rows[1])] if len(differing(rows, rng)) == 2 else []


def differing(rows: Sequence[Row], rng: random.Random) -> list[Row]:
    """Both sides of a pair, but none of one whose sides are the same: they say nothing of what is better."""
    same = len(rows) == 2 and rows[0]["response_ids"] == rows[1]["response_ids"]
    return [] if same else list(rows)


def first_is_good(rows: Sequence[Row], rng: random.Random) -> list[float]:
    """Chosen is desirable, rejected is not."""
    return [1.0 - row["sample"] for row in rows]


def mismatched(table: pa.Table, rng: random.Random) -> pa.Table:
    """Each row beside the messages of another prompt, as `other`: KTO's estimate of the divergence is made of these."""
    prompts = table["prompt"].to_pylist()
    order = rng.sample(range(len(prompts)), len(prompts))
    others: list[Any] = [None] * len(prompts)
    for place, row in enumerate(order):
        turned = (prompts[one] for one in (*order[place + 1 :], *order[:place]))
        others[row] = next((prompt for prompt in turned if prompt != prompts[row]), None)
    if None in others:
        raise RecipeError(
            "all rows have one prompt, and KTO compares with other prompts. Give rows of several prompts"
        )
    return table.append_column("other", pa.array(others, MESSAGES))


def other(row: Row) -> list[Message]:
    """The messages that `mismatched` found."""
    return row["other"]
