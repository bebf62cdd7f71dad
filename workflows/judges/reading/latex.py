r"""LaTeX and typography of answers: the last box, text commands, fractions, spaces, spans of mathematics."""

from __future__ import annotations

import re
import unicodedata

__all__ = [
    "BOX",
    "CLOSE",
    "OPEN",
    "SPAN",
    "box_at",
    "one_fraction",
    "plain_text",
    "squeezed",
    "tidy",
    "unwrapped",
]

OPEN, CLOSE = "\ue000", "\ue001"  # around what \\text{} held

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
SPAN = re.compile(
    r"\$\$(?P<double>[^$]+)\$\$|\\\[(?P<square>.{1,2000}?)\\\]|\\\((?P<round>.{1,2000}?)\\\)"
    r"|(?<![\\\w])\$(?=[^\s$])(?P<single>(?:\\\$|[^$\n])*?)(?<=[^\s\\])\$(?![\d<])",
    re.DOTALL,
)  # a single $ opens and closes as in pandoc: "$5 and $6" is money

TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up|sl)?|math(?:rm|bf|it|sf|tt|normal)|mbox|hbox|operatorname|emph|textrm|bm|boldsymbol)"
    r"\s*\{([^{}]*)\}"
)
ARGUMENT = 300  # characters of a numerator or denominator
FRACTION = re.compile(r"\\[dtc]?frac\s*(\{|[0-9a-zA-Z])\s*")
SPACES = "\u00a0\u2006\u2007\u2008\u2009\u200a\u202f\u205f"
THIN = re.compile(
    rf"(?<=\d)(?:\\[,;:]|\\ |~|\\thinspace|[{SPACES}])+(?=\d{{3}}(?!\d))|(?<=\d)(?:\{{,\}}|,\\!)(?=\d)"
)
WIDE = re.compile(rf"\\[,;:> ]|\\(?:quad|qquad|thinspace|enspace)(?![a-zA-Z])|~|[{SPACES}]")
SIZES = re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits)(?![a-zA-Z])\.?")
DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d"), "-")
RAISED = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b]+")
VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")
DEGREES = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])|[\u00b0\u00ba])")


def squeezed(text: str) -> str:
    """Without long runs of spaces or line breaks, over which patterns would take long."""
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[^\S\n]{3,}", "  ", text))


def box_at(text: str, begin: int, longest: int | None = None) -> tuple[str, int] | None:
    """What is inside the brace that was opened just before `begin`, and where it ends; None if it is never closed (within
    `longest` characters)."""
    depth, place = 1, begin
    end = len(text) if longest is None else min(len(text), begin + longest)
    while place < end:
        char = text[place]
        if char == "\\":  # an escaped brace is none
            place += 2
            continue
        depth += {"{": 1, "}": -1}.get(char, 0)
        if not depth:
            return text[begin:place], place + 1
        place += 1
    return None


def unwrapped(text: str, around: str = "{}") -> str:
    r"""Without \text{}, \mathrm{}, \textbf{} and their like; `around` says what their content becomes."""
    for _ in range(4):  # nested
        text, count = TEXT.subn(lambda match: around.replace("{}", match[1]), text)
        if not count:
            break
    return text


def one_fraction(text: str) -> str:
    r"""\dfrac, \tfrac, \frac12 and \frac1{2} as \frac{1}{2}."""

    def argument(at: int) -> tuple[str, int] | None:
        while text[at : at + 1].isspace():
            at += 1
        if text[at : at + 1] == "{":
            return box_at(text, at + 1, ARGUMENT)
        return (text[at], at + 1) if text[at : at + 1].isalnum() else None

    parts, done = list[str](), 0
    for match in FRACTION.finditer(text):
        if match.start() < done:
            continue
        top = argument(match.start(1))
        bottom = top and argument(top[1])
        if top and bottom:
            parts += [
                text[done : match.start()],
                f"\\frac{{{one_fraction(top[0])}}}{{{one_fraction(bottom[0])}}}",
            ]
            done = bottom[1]
    return "".join([*parts, text[done:]])


def tidy(text: str) -> str:
    r"""One way to write what typography writes in many: dashes, thin spaces, \left, unicode powers and fractions, degrees."""
    text = squeezed(text).translate(DASHES).replace("\\!", "" if ",\\!" not in text else "\\!")
    text = THIN.sub(",", text).replace("\\!", "")
    text = SIZES.sub("", WIDE.sub(" ", text)).replace("\\$", "$").replace("\\%", "%").replace("\uff05", "%")
    text = RAISED.sub(lambda match: f"^{{{unicodedata.normalize('NFKC', match[0]).translate(DASHES)}}}", text)
    text = VULGAR.sub(vulgar, text)
    return one_fraction(DEGREES.sub(" deg ", text))


def vulgar(match: re.Match[str]) -> str:
    top, bottom = unicodedata.normalize("NFKC", match[0]).split("\N{FRACTION SLASH}")
    return f"\\frac{{{top}}}{{{bottom}}}"


def plain_text(text: str) -> str:
    """An answer as text: without case, delimiters, outer punctuation and repeated spaces."""
    text = " ".join(unwrapped(text).split()).strip(" *`\"'$")
    for left, right in ((r"\(", r"\)"), (r"\[", r"\]")):
        if text.startswith(left) and text.rstrip(".").endswith(right):
            text = text.rstrip(".")[2:-2]
    return text.strip(" *`\"'$").rstrip(".").rstrip(" *`\"'$").casefold()
