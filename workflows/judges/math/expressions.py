r"""The mathematics of a final answer, whole: found by the same markers as other answers, and written for a LaTeX parser."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from selfloop.workflows.judges.answers import after_thinking, begins_number, ends_text, find
from selfloop.workflows.judges.reading.latex import CLOSE, OPEN, SPAN, plain_text, tidy, unwrapped
from selfloop.workflows.judges.reading.numbers import (
    CLOCK,
    EQUALS,
    FUNCTIONS,
    POWERED,
    ROUNDED,
    UNIT,
    first_number,
    last_number,
    whole_number,
)

__all__ = ["Form", "final_expression", "form_of"]

WORD = re.compile(
    rf"(?<![\\A-Za-z{OPEN}])(?!(?:{FUNCTIONS}|arcsin|arccos|arctan|sinh|cosh|tanh|det|gcd|lcm)(?![A-Za-z]))[A-Za-z'\u00c0-\u024f]{{2,}}"
)
ARTICLE = re.compile(r"[AaI](?=\s+[A-Za-z]{2,})")
JOIN = re.compile(r"\s*(?:,?\s*(?:and|or)|,)\s*")
GEOMETRY = re.compile(
    r"\\(?:angle|triangle|overline|overrightarrow|widehat|vec|odot|square|parallelogram|mathbf|mathcal)(?![A-Za-z])"
)
BASED = re.compile(r"[\dA-F]+_\{?\d+\}?")
BOLD = re.compile(r"(?<!\d)\*\*|\*\*(?!\d)")
OR = re.compile(
    r"\s*,?\s*(?:\\(?:text|mathrm|mbox|quad)\s*\{\s*,?\s*(?:and|or)\s*\}|(?<=\s)(?:and|or)(?=\s))\s*"
)
ROOT = re.compile(r"\u221a\s*\(?\s*(\w+)\s*\)?")
SYMBOLS = str.maketrans(
    {
        "\u03c0": "\\pi ",
        "\u03b8": "\\theta ",
        "\u221e": "\\infty ",
        "\u2264": "\\le ",
        "\u2265": "\\ge ",
        "\u2260": "\\ne ",
        "\u00b1": "\\pm ",
        "\u00d7": "\\times ",
        "\u00b7": "\\cdot ",
        "\u00f7": "\\div ",
        "\u222a": "\\cup ",
        "\u2229": "\\cap ",
        "\u2208": "\\in ",
        "\u2205": "\\emptyset ",
    }
)
UNIT_WORDS = 2  # behind an expression that ends a text: "square feet"
SHORT = 6  # words of a line that is an answer by itself
NAME = re.compile(r"\s*(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\([A-Za-z]\))?)\s*")


class Form(NamedTuple):
    """kind: mathematics to be parsed, or text that only equals itself; unread: words and mathematics that do not come apart."""

    kind: Literal["math", "text", "unread"]
    text: str


def final_expression(text: str, unmarked: Literal["whole", "words", "formulas"] = "words") -> str | None:
    """The final answer of a response as it is written, without what stands around it; None when there is none.

    unmarked: a text without markers is the answer as a whole (a gold answer), is if it is a few words, or only its last
    formula or number is.
    """
    text = after_thinking(text)
    marked = find(
        text,
        lambda line, rest: begins_number(line, rest) or ends_text(line, rest),
        lambda said: bool(stated(said)),
    )
    if marked.kind == "box":
        return marked.text.strip()
    if marked.kind == "none":
        return text.strip() or None if unmarked == "whole" else bare(text, unmarked == "words")
    return stated(marked.text)


def stated(said: str) -> str | None:
    """What a sentence states: its first formula, expression or number; else the sentence is the answer."""
    said = BOLD.sub("", said).strip(" _`\n\t")
    begin = SPAN.search(said)
    if begin is not None and not re.search(r"\d", said[: begin.start()]) and is_formula(begin):
        return joined(said, begin)
    masked = re.sub(r"\s+(?:and|or)\s+(?=[-+\\$(\d]|[a-z]\s*[=<>])", ", ", said)
    first = WORD.search(unwrapped_mask(masked))
    run = masked[: first.start()] if first else masked
    run = run.rstrip(" ,;(").rstrip()
    if ARTICLE.match(masked) or not run:
        run = ""
    if run and re.search(r"[\d\\A-Za-z\u03c0\u221e]", run):
        return run
    if re.search(r"\d", said):
        found = first_number(said)
        return None if found is None or found.value is None else found.written
    return said.rstrip(".") or None


def bare(text: str, words: bool) -> str | None:
    """The answer of a text without markers: the whole of it if it is one expression or a few words, else its last formula
    or number."""
    whole = BOLD.sub("", text.strip()).strip("`").strip()
    if not whole:
        return None
    formula_only = re.sub(r"\\(?:begin|end)\s*\{\w+\*?\}", " ", OR.sub(", ", whole))
    if "\n\n" not in whole and not WORD.search(unwrapped_mask(formula_only)):
        return whole
    if whole_number(whole) is not None:
        return whole
    formulas = [
        match for match in SPAN.finditer(text) if is_formula(match) and match[0].strip("$ ")[-1:] != "="
    ]
    if formulas and last_number(text[formulas[-1].end() :]) is None:
        first = formulas[-1]
        while (earlier := previous(formulas, first, text)) is not None:
            first = earlier
        return joined(text, first)
    found = last_number(text)
    if found is not None:
        return tail(whole) if found.value is None else found.written
    return whole if words and "\n" not in whole and len(whole.split()) <= SHORT else None


def tail(text: str) -> str | None:
    """The expression that a text ends with, a unit aside."""
    line = text.rstrip(" .*`").rpartition("\n")[2]
    masked, ends = unwrapped_mask(line), [0]
    for word in WORD.finditer(masked):
        ends += [word.start(), word.end()]
    pieces = [line[begin:end] for begin, end in zip(ends[::2], [*ends[1::2], len(line)], strict=True)]
    found = [place for place, piece in enumerate(pieces) if re.search(r"\d", piece)]
    if not found or len(pieces) - found[-1] > UNIT_WORDS + 1:
        return None
    end = pieces[found[-1]].strip(" :,$")
    return None if re.search(r"[.!?]\s", end) else end


def previous(formulas: list[re.Match[str]], first: re.Match[str], text: str) -> re.Match[str] | None:
    """The formula that is joined to this one by "and", "or" or a comma."""
    place = formulas.index(first)
    if not place or not JOIN.fullmatch(text[formulas[place - 1].end() : first.start()]):
        return None
    return formulas[place - 1] if alike(inside(formulas[place - 1]), inside(first)) else None


def alike(a: str, b: str) -> bool:
    """Whether two formulas are members of one answer: two values, or the values of two names."""
    (left, first, _), (right, second, _) = a.partition("="), b.partition("=")
    return first == second and all(not first or NAME.fullmatch(side) for side in (left, right))


def is_formula(match: re.Match[str]) -> bool:
    """Whether a span is mathematics, and not what stands between two amounts of money."""
    prose = re.search(r"(?<![\\A-Za-z{])[A-Za-z]{4,}\s|\s[a-z]{2,}\s", unwrapped_mask(match[0]))
    return match["single"] is None or not prose


def unwrapped_mask(text: str) -> str:
    r"""The text with commands, and what \text{} holds, blotted out: places stay."""
    return re.sub(
        r"\\[A-Za-z]+(?:\s*\{[A-Za-z\s.,'-]*\}|\s[A-Z]{1,4}(?![A-Za-z]))?",
        lambda match: "\\" + "." * (len(match[0]) - 1),
        text,
    )


def joined(text: str, first: re.Match[str]) -> str:
    """A formula with those that follow it by "and", "or" or a comma."""
    parts, end = [inside(first)], first.end()
    while (
        (join := JOIN.match(text, end))
        and (more := SPAN.match(text, join.end()))
        and alike(parts[-1], inside(more))
    ):
        parts.append(inside(more))
        end = more.end()
    percent = "\\%" if re.match(r"\s*\\?%", text[end:]) else ""
    return ", ".join(parts) + percent


def inside(match: re.Match[str]) -> str:
    return next(part for part in match.groups() if part is not None).strip()


def form_of(answer: str) -> Form:
    """How an answer is compared: letters only as text, times and numbers of another base too; all else as mathematics."""
    answer = stripped(answer)
    words = GEOMETRY.sub(" ", unwrapped(answer))
    letters = re.sub(r"[\s{}()$.,;:!?'\"*_-]|\\[,;!: ]|~", "", words)
    if letters.isalpha() and len(letters.replace("\u03c0", "")) == len(letters):
        return Form("text", re.sub(r"[\s(){}]+", " ", plain_text(words)).strip())
    if CLOCK.fullmatch(answer) or BASED.fullmatch(answer):
        return Form("text", re.sub(r"[{}\s]", "", answer))
    answer = chained(OR.sub(", ", answer))
    if "=" not in answer and (number := whole_number(answer)) is not None:
        percent = "\\%" if re.search(r"%|percent", answer) else ""
        top, _, bottom = (number.written if "/" in number.written else f"{number.written}/").partition("/")
        if bottom:
            return Form(
                "math", f"{'-' * top.startswith('-')}\\frac{{{top.lstrip('-')}}}{{{bottom}}}{percent}"
            )
        plain = re.fullmatch(r"-?\d*\.?\d*", number.written)
        return Form("math", (number.written if plain else str(number.value)).replace("-.", "-0.") + percent)
    return formula(answer)


def stripped(answer: str) -> str:
    """Without delimiters, outer dots and line breaks."""
    answer = " ".join(answer.split()).strip("*` ")
    if (whole := SPAN.fullmatch(answer.rstrip(" .,;"))) is not None:
        answer = inside(whole)
    return answer.rstrip(" .,;") if not answer.endswith("\\,") else answer[:-2]


def chained(answer: str) -> str:
    """Of `3 + 6 = 9` the last member, of `x = 3 + 2 = 5` the first and the last; of `10/3 \\approx 3.33` what is exact."""
    answer = ROUNDED.split(answer)[0] if ROUNDED.split(answer)[0].strip(" =") else answer
    members = EQUALS.split(answer)
    if len(members) < 2 or "," in answer or "\\begin" in answer:
        return answer
    if not re.search(
        r"[A-Za-z\u03c0]", re.sub(r"\\(?:frac|sqrt|times|cdot|div|left|right)(?![A-Za-z])", "", members[0])
    ):
        return members[-1].strip()
    return f"{members[0]}={members[-1]}" if len(members) > 2 and NAME.fullmatch(members[0]) else answer


def formula(answer: str) -> Form:
    """The LaTeX of an answer that is no plain number, units aside."""
    latex = unwrapped(
        tidy(ROOT.sub(r"\\sqrt{\1}", answer).translate(SYMBOLS).replace("\\varnothing", "\\emptyset")),
        f" {OPEN}{{}}{CLOSE}",
    )
    latex = re.sub(rf"{OPEN}([^{CLOSE}]*[\d\\][^{CLOSE}]*|\s*|[A-Za-z]){CLOSE}", r"\1", latex)
    latex = POWERED.sub(r"\1", latex)
    latex = re.sub(
        rf"\s*{OPEN}[^\d{CLOSE}]*{CLOSE}\s*(?=$|,)|(?<=[\d)}}\]])(?:[\s/*]*{UNIT})+\s*$", "", latex
    )
    rest = re.sub(r"\\(?:begin|end)\s*\{[a-z]+\*?\}(?:\{[lcr|]+\})?", " ", latex)
    if (
        OPEN in rest
        or WORD.search(unwrapped_mask(rest))
        or re.search(r"(?<![_\d])\d+\s+[\d.]|\.\.|\u2026|\\[lc]?dots|\?", rest)
    ):
        return Form("unread", plain_text(answer))
    return Form("math", latex.replace("$", "").replace(CLOSE, "").replace("%", "\\%").strip())
