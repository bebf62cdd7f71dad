r"""Reading the final answer out of a response, and when two answers mean the same.

An answer is a string. `extract_answer` finds it, `equivalent` compares two by meaning, `canonical` gives equal
strings to equal answers. Nothing here knows which answer is right. What cannot be read abstains: None.

One finder serves all; `math` (judges/math/expressions.py) finds by the same markers and reads the answer whole. Rule by rule,
ours beside GSM8K's strict match, lm-eval's flexible match, MATH's last box and DAPO's reward:

| rule | ours | GSM8K | lm-eval | MATH | DAPO |
| --- | --- | --- | --- | --- | --- |
| 1 reasoning that has ended (`</think>`) | not read | read | read | read | last 300 characters |
| 2 markers | last box, `####`, "answer is": the last wins | `####` | none | last box | last "Answer:" |
| 3 several boxes | the last | - | - | the last | - |
| 4 a box never closed, or empty | no box; `boxed`: no answer | - | - | no answer | - |
| 5 `####` | where an answer begins its line (see below) | where digits follow | - | - | - |
| 6 "answer is", "answer:" | where its sentence has a readable answer | - | - | - | rest of the line |
| 7 after a marker | the first number; of `a = b` the last member | the number | - | the whole box | the whole line |
| 8 no marker | the last number, letter, line or formula | no answer | last number | no answer | no answer |
| 9 a part of a formula, list or time | no number: no answer | its digits | its digits | text | text |
| 10 `boxed` | no box, no answer | - | - | the same | - |

5: for number and choice after `$`, a sign or `*`, and not in a numbered heading; for text only if blank lines alone follow; for
math either. 8: a choice is a conclusion ("B is correct") before a mere mention; options that are only listed again are no answer.
Numbers: exact; $, %, units and thousands separators (a comma before groups of three, a thin space, `{,}`) do not count, 12 % is
12; fractions, mixed numbers, powers and scientific notation are read. Choices: what is denied is no answer, nor is "A or B".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Literal, NamedTuple

from selfloop.workflows.judges.reading.choices import HEADING, alone, marked_choice, stated_choice
from selfloop.workflows.judges.reading.latex import BOX, SPAN, box_at, plain_text, squeezed, tidy, unwrapped
from selfloop.workflows.judges.reading.numbers import (
    LONGEST,
    first_number,
    last_number,
    never_a_number,
    whole_number,
)

__all__ = [
    "LONGEST",
    "Extract",
    "Marked",
    "as_number",
    "canonical",
    "equivalent",
    "extract_answer",
    "no_number",
]

Extract = Literal["text", "number", "boxed", "choice"]
"""How the final answer is read: see the table above.

text: without case, outer punctuation and repeated spaces. number: without $, % and thousands commas; fractions stay fractions.
boxed: inside the last box. choice: the letter of a multiple-choice option, A to J.
"""

STATED = re.compile(
    r"\banswer\b(?:\s+(?:to|for|of|in|here)\b[^.:=?!\n]{0,80}?)?[\s*_]*"
    r"(?:(?:is|was|equals|(?:would|should|must|will)\s+be)(?![\w'])|=|:)[\s*_:]*",
    re.IGNORECASE,
)
HASHES = re.compile(r"(?<!#)####(?!#)[^\S\n]*\n?")
SENTENCE = re.compile(r"(?<=[.!?])[\s*]+(?=[A-Z])|(?<=[.!?]\s)(?=Check\b)")
BEGINS = re.compile(
    r"[\s*$+\\(\[{~_\u20ac\u00a3\u00a5\u2010-\u2013\u2212-]*(?:approx\s*)?(?=\d|\.\d|\\?[dtc]?frac)"
)
NUMBERED = re.compile(r"\s*\d+[.):]+[ \t]+\S")


class Marked(NamedTuple):
    """What stands after a marker, or (kind "none") the whole text."""

    kind: Literal["box", "hashes", "stated", "none"]
    text: str


def extract_answer(text: str, extract: Extract = "text") -> str | None:
    """The final answer of a response, or None when there is nothing to read."""
    return _READERS[extract](after_thinking(text))


def equivalent(a: str, b: str, extract: Extract = "text") -> bool:
    """Whether two extracted answers mean the same: 1/2 and 0.5 do as numbers, 07 and 7 do not as text."""
    return canonical(a, extract) == canonical(b, extract)


def canonical(answer: str, extract: Extract = "text") -> str:
    """One string for all answers that mean the same; its own canonical form."""
    if extract == "choice":
        return alone(answer) or answer
    return one_form(answer) if extract in ("number", "boxed") else answer


def one_form(answer: str) -> str:
    """A number as a fraction in lowest terms; a list by its members; all else without spaces and in one typography."""
    if (value := as_number(answer)) is not None:
        return str(value)
    plain = re.sub(r"\s|^\$+|\$+$", "", unwrapped(tidy(answer))).rstrip(".")
    opened, closed = re.match(r"\\\{|[(\[]|", plain), re.search(r"(?:\\\}|[)\]]|)$", plain)
    assert opened is not None and closed is not None
    members = split(plain[opened.end() : closed.start()]) if len(plain) <= 10 * LONGEST else [plain]
    if len(members) < 2:
        return plain
    members = [one_form(member) for member in members]
    return opened[0] + ", ".join(sorted(members) if opened[0] == "\\{" else members) + closed[0]


def split(text: str) -> list[str]:
    """At the commas outside of brackets."""
    members, depth = [""], 0
    for char in text:
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(char, 0)
        if char == "," and not depth:
            members.append("")
        else:
            members[-1] += char
    return members


def as_number(text: str) -> Fraction | None:
    """The exact value of a text that is one number, else None."""
    found = whole_number(text)
    return None if found is None else found.value


def no_number(text: str) -> bool:
    """Whether a response has an answer that is no number and can be none (`3\\sqrt{2}`, `x^2`, a list, a time)."""
    text = after_thinking(text)
    marked = find(text, begins_number, lambda said: first_number(said) is not None)
    if marked.kind == "box":
        return _number(text) is None and never_a_number(marked.text)
    found = last_number(text) if marked.kind == "none" else first_number(marked.text)
    return found is not None and found.value is None and never_a_number(found.written)


def after_thinking(text: str) -> str:
    """What follows the last reasoning block that has ended."""
    ends = list(re.finditer(r"</think(?:ing)?>", text))
    return squeezed(text[ends[-1].end() :] if ends else text)


def last_box(text: str) -> tuple[int, str] | None:
    """Where the last box that is closed and not empty begins, and what is inside."""
    for start in reversed(list(BOX.finditer(text))[-3:]):  # a broken box or two behind it
        found = box_at(text, start.end())
        if found is not None and found[0].strip():
            return start.start(), found[0]
    return None


def find(text: str, begins: Callable[[str, str], bool], readable: Callable[[str], bool]) -> Marked:
    """The marked answer that stands last.

    begins: whether a line after `####` (and the text behind it) begins with an answer. readable: whether what follows
    "answer is" can be read.
    """
    found: list[tuple[int, Marked]] = []
    if box := last_box(text):
        found.append((box[0], Marked("box", box[1])))
    for match in reversed(list(HASHES.finditer(text))):
        line, _, rest = text[match.end() :].partition("\n")
        if begins(line, rest):
            found.append((match.start(), Marked("hashes", line.strip())))
            break
    ends = len(text)
    for match in reversed(list(STATED.finditer(text))):
        said = sentence(text[match.end() : ends])
        if readable(said):
            found.append((match.start(), Marked("stated", said)))
            break
        ends = match.start()
    return max(found, key=lambda one: one[0])[1] if found else Marked("none", text)


def sentence(text: str) -> str:
    """What a marker says: a formula with the rest of its line, else the first sentence of the first line."""
    text = text.lstrip(" \t\n*_:`")
    formula = SPAN.match(text)
    begin = formula.end() if formula else 0
    line, _, _ = text[begin:].partition("\n")
    return text[:begin] + SENTENCE.split(line, maxsplit=1)[0].rstrip()


def begins_number(line: str, rest: str) -> bool:
    heading = NUMBERED.match(line) and rest.strip()
    return bool(BEGINS.match(line)) and not heading


def begins_choice(line: str, rest: str) -> bool:
    heading = HEADING.match(line) and rest.strip()
    first = re.match(
        r"[\s*$(\[{_]*(?:\\text(?:bf)?\{)?[(\[]?([A-Ja-j])(?![\w'])[)\]}]*(?=\s*(?:[.,:;)*$]|$))", line
    )
    return bool(first) and not heading


def ends_text(line: str, rest: str) -> bool:
    return bool(line.strip()) and not rest.strip()


def _text(text: str) -> str | None:
    marked = find(text, ends_text, lambda said: bool(plain_text(said)))
    said = marked.text
    if marked.kind == "none":
        lines = [line for line in text.splitlines() if line.strip()]
        said = lines[-1] if lines else ""
    return plain_text(said) or None


def _number(text: str) -> str | None:
    marked = find(text, begins_number, lambda said: first_number(said) is not None)
    found = last_number(text) if marked.kind == "none" else first_number(marked.text)
    if marked.kind == "box":  # words make it a sentence, and no formula
        prose = re.search(r"(?<![\\A-Za-z])[A-Za-z]{3,}", unwrapped(marked.text))
        found = whole_number(marked.text) or (found if prose else None)
    return None if found is None or found.value is None else found.written


def _boxed(text: str) -> str | None:
    starts = list(BOX.finditer(text))
    found = box_at(text, starts[-1].end()) if starts else None
    if found is None:
        return None
    inner = re.sub(r"\\(?:left|right|[,;!])|[\s$]", "", found[0])
    return re.sub(r"\\[dt]frac", r"\\frac", inner).rstrip(".") or None


def _choice(text: str) -> str | None:
    marked = find(text, begins_choice, lambda said: marked_choice(said) is not None)
    if marked.kind == "none":
        return stated_choice(text)
    return marked_choice(marked.text)


_READERS: dict[Extract, Callable[[str], str | None]] = {
    "text": _text,
    "number": _number,
    "boxed": _boxed,
    "choice": _choice,
}
