"""Reading the final answer out of a response, and when two answers mean the same.

An answer is a string. `extract_answer` finds it, `equivalent` compares two by meaning, `canonical` gives equal
strings to equal answers. Nothing here knows which answer is right.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Literal

__all__ = ["Extract", "as_number", "canonical", "equivalent", "extract_answer"]

Extract = Literal["text", "number", "boxed", "choice"]
r"""How the final answer is read.

text: what follows the last "####", \boxed or "answer:" / "answer is", else the last line that is not empty; without
case, outer punctuation and repeated spaces. number: the last number (after the last "####" or in the last \boxed, if
there is one), without $, % and thousands commas; fractions stay fractions. boxed: inside the last \boxed{}.
choice: the letter of a multiple-choice option, A to J.
"""

_UNSIGNED = r"(?:(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?|(?<!\d)\.\d+)"
_NUMBER = re.compile(
    rf"(?:(?<![\w)\]}}])-)?\$?{_UNSIGNED}(?:[eE][-+]?\d{{1,2}}(?!\d)|\s?/\s?\d+(?!\d|\.\d))?"
)
_FRAC = re.compile(r"\\[dt]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
_STATED = re.compile(r"\banswer\s*(?:is\s*:?|:|=)\s*(\S.*)", re.IGNORECASE)
_CHOICES = (
    re.compile(r"\banswer\s*(?:is\s*:?|:|=)\s*(?:option\s*)?[(\[*]*([A-J])(?![\w'])", re.IGNORECASE),
    re.compile(r"[(\[]([A-J])[)\]]"),
    re.compile(r"^[ \t]*\**([A-J])\**(?:[).:]|\s*$)", re.MULTILINE),
    re.compile(r"(?<![\w'])([A-J])[\s.)*]*$"),
)
LONGEST = 300  # a number of more characters is noise: exact arithmetic on it would only cost time


def extract_answer(text: str, extract: Extract = "text") -> str | None:
    """The final answer of a response, or None when there is nothing to read."""
    return _READERS[extract](text)


def equivalent(a: str, b: str, extract: Extract = "text") -> bool:
    """Whether two extracted answers mean the same: 1/2 and 0.5 do as numbers, 07 and 7 do not as text."""
    return canonical(a, extract) == canonical(b, extract)


def canonical(answer: str, extract: Extract = "text") -> str:
    """One string for all answers that mean the same."""
    if extract in ("number", "boxed"):
        value = as_number(_FRAC.sub(_fraction, answer))
        return answer if value is None else str(value)
    return answer


def as_number(text: str) -> Fraction | None:
    """The exact value of a text that is one number, else None."""
    plain = re.sub(r"[\s$%,]", "", text)
    if len(plain) > LONGEST:
        return None
    try:
        return Fraction(plain)
    except (ValueError, ZeroDivisionError):
        return None


def _text(text: str) -> str | None:
    marked = _after_marker(text)
    if marked is None:
        stated = _STATED.findall(text)
        lines = [line for line in text.splitlines() if line.strip()]
        marked = stated[-1] if stated else lines[-1] if lines else ""
    return " ".join(marked.split()).strip(" *`\"'").rstrip(".").rstrip().casefold() or None


def _number(text: str) -> str | None:
    marked = _after_marker(text)
    found = _numbers(marked) if marked is not None else []
    found = found or _numbers(text)
    if not found or len(found[-1]) > LONGEST:
        return None
    return re.sub(r"[\s$,]", "", found[-1])


def _numbers(text: str) -> list[str]:
    text = text.replace("\N{MINUS SIGN}", "-").replace("\\$", "$").replace("{,}", ",")
    return _NUMBER.findall(_FRAC.sub(_fraction, text))


def _fraction(match: re.Match[str]) -> str:
    return f"{match[1] or match[2]}/{match[3] or match[4]}"


def _boxed(text: str) -> str | None:
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    begin = text.index("{", start) + 1
    depth = 1
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if not depth:
            inner = re.sub(r"\\(?:left|right|[,;!])|[\s$]", "", text[begin:place])
            return re.sub(r"\\[dt]frac", r"\\frac", inner).rstrip(".") or None
    return None


def _choice(text: str) -> str | None:
    marked = _after_marker(text)
    for pattern in _CHOICES:
        found = pattern.findall(text if marked is None else f"answer: {marked}")
        if found:
            return found[-1].upper()
    return None


def _after_marker(text: str) -> str | None:
    """What follows the last "####" on its line, or is inside the last box."""
    if "####" in text:
        line = text.rsplit("####", 1)[1].strip().split("\n", 1)[0]
        return line or None
    return _boxed(text)


_READERS: dict[Extract, Callable[[str], str | None]] = {
    "text": _text,
    "number": _number,
    "boxed": _boxed,
    "choice": _choice,
}
