"""Which columns a user's verifier reads: seen by giving it a few rows that are made up."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from selfloop.workflows.data.schema import assistant

__all__ = ["ALL", "columns_read"]

SECONDS = 5.0
ALL = frozenset({"prompt", "response", "answer"})
RESPONSES = ("42", "6 x 7 = 42. The answer is \\boxed{42}.", "")  # rules often turn off at an empty one
ROW: dict[str, Any] = {
    "prompt_id": "0" * 16,
    "prompt": [{"role": "user", "content": "What is 6 x 7?"}],
    "answer": "42",
    "meta": "{}",
    "parent": None,
    "sample": 0,
    "prompt_ids": [1],
    "response_ids": [1, 2],
    "response_logprobs": [-0.5, -0.5],
    "finish": "stop",
    "seed": 0,
    "model": "policy@0",
    "version": 0,
    "node": "sample",
    "status": "ok",
    "error": None,
}


class Watched(Mapping[str, Any]):
    """A row that notes which of its columns are read; to ask whether it has one is no reading."""

    def __init__(self, row: Mapping[str, Any]):
        self.row = row
        self.seen: set[str] = set()
        self.copied = False  # what is read of a copy cannot be seen

    def __getitem__(self, name: str) -> Any:
        value = self.row[name]
        self.seen.add(name)
        return value

    def __contains__(self, name: object) -> bool:
        return name in self.row

    def __iter__(self) -> Iterator[str]:
        self.copied = True
        return iter(self.row)

    def __len__(self) -> int:
        return len(self.row)


def columns_read(verify: Callable[[Mapping[str, Any]], Any], seconds: float = SECONDS) -> frozenset[str]:
    """The columns that `verify` reads of any trial row until it returns or raises, the response among them.

    It runs in a process of its own, so that it leaves no trace in this one. Where that does not end within `seconds`, or
    dies, what it reads is not known, and prompt, response and answer count.
    """
    here, there = multiprocessing.Pipe(duplex=False)
    # A fork has the user's modules already; this is asked first before Ray, torch and their threads are there.
    process = multiprocessing.get_context("fork").Process(target=watch, args=(verify, there), daemon=True)
    process.start()
    there.close()
    try:
        return here.recv() if here.poll(seconds) else ALL
    except EOFError:
        return ALL
    finally:
        process.kill()
        process.join()
        here.close()


def watch(verify: Callable[[Mapping[str, Any]], Any], there: Any) -> None:
    """The trial in its own process. What the code prints is not for the screen."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    seen = {"response"}
    for response in RESPONSES:
        row = Watched({**ROW, "response": response, "completion": assistant(response)})
        with contextlib.suppress(Exception):  # the user's own code: made-up rows may not suit it
            verify(row)
        seen |= ALL if row.copied else row.seen
    there.send(frozenset(seen))
