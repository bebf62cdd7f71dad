"""A process that compares mathematical answers with math-verify, one JSON line in, one out. Run by `math_pool`.

math-verify limits itself with SIGALRM, which only works in a main thread and would disturb a host process; here it
has a process of its own. `{"gold": ..., "text": ...}` gives `{"score": 1.0}`, `{"score": null}` when the text holds
no answer that can be read, or `{"error": ...}`.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any


def main() -> None:
    """Answer requests until the other side closes."""
    from math_verify import parse, verify  # pyright: ignore[reportMissingImports]

    logging.disable(logging.CRITICAL)
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not mix with the answers
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply: dict[str, Any] = {"score": score(parse, verify, request["gold"], request["text"])}
        except Exception as error:  # the worker must outlive any input
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=answers, flush=True)


def score(parse: Any, verify: Any, gold: str, text: str) -> float | None:
    """1 if the text's answer equals the gold answer, 0 if not, None without an answer."""
    wanted = parse(gold) or parse(f"${gold}$")
    if not wanted:
        raise ValueError(f"the gold answer {gold!r} is not mathematics that can be read")
    found = parse(text)
    return float(verify(wanted, found)) if found else None


if __name__ == "__main__":
    main()
