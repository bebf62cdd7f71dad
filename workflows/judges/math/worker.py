"""A process that compares mathematical answers with math-verify, one JSON line in, one out. Run by `math.process`.

math-verify limits itself with SIGALRM, which only works in a main thread and would disturb a host process; here it
has a process of its own. `{"gold": ..., "text": ...}` gives `{"score": 1.0}`, `{"score": null}` when the text holds
no answer that can be read, or `{"error": ...}`.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from typing import Any

from selfloop.workflows.judges.math.expressions import Form, final_expression, form_of

LETTERS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]")
CONSTANTS = frozenset("eid")  # letters that a parser takes for a constant or a differential


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
    """1 if the text's answer equals the gold answer, 0 if not, None without an answer that can be read.

    Answers are found by our finder and handed to math-verify as delimited LaTeX, whole. Letters only are compared as text.
    Raises ValueError for a gold answer that is not read, or only in part.
    """
    answer = final_expression(gold, "whole")
    wanted = form_of(answer or "")
    read = parsed(parse, wanted)
    if answer is None or wanted.kind == "unread" or not wanted.text or read is None:
        raise ValueError(f"the gold answer {gold!r} is not mathematics that can be read as a whole")
    said = final_expression(text, "words" if wanted.kind == "text" else "formulas")
    if said is None:
        return None
    found = form_of(said)
    if wanted.kind == "text" or found.kind != "math":
        return float(wanted == found)
    target = parsed(parse, found)
    if not target:
        return None
    return float(brackets(wanted.text, found.text) and verify(read, target, allow_set_relation_comp=True))


def parsed(parse: Any, form: Form) -> list[Any] | None:
    """What math-verify reads; [] of a text, None where nothing or only a part is read."""
    if form.kind != "math":
        return []
    from math_verify import LatexExtractionConfig  # pyright: ignore[reportMissingImports]

    found = parse(
        f"${form.text}$",
        extraction_config=[LatexExtractionConfig()],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
    )
    return found if found and whole(found[0], form.text) else None


def whole(expression: Any, latex: str) -> bool:
    """Whether every letter of the LaTeX is in what was read of it."""
    names = str(expression).lower()
    bare = re.sub(r"\\(?:begin|end)\s*\{[a-z]+\*?\}|\\[A-Za-z]+", " ", latex)
    return all(letter.lower() in names for letter in LETTERS.findall(bare) if letter not in CONSTANTS)


def brackets(gold: str, found: str) -> bool:
    r"""Whether both are sets, or none is where both stand in brackets: math-verify takes (1, 2) and {1, 2} for equal."""
    sets = [text.startswith("\\{") for text in (gold, found)]
    other = [text.startswith(("(", "[")) and text.endswith((")", "]")) for text in (gold, found)]
    return not (sets[0] and other[1]) and not (sets[1] and other[0])


if __name__ == "__main__":
    main()
