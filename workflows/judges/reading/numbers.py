"""Plain numbers in answers: one exact value, or none. A part of an expression is never taken for a number."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from math import isqrt
from typing import NamedTuple

from selfloop.workflows.judges.reading.latex import CLOSE, OPEN, SPAN, tidy, unwrapped

__all__ = ["CLOCK", "LONGEST", "Token", "first_number", "last_number", "never_a_number", "whole_number"]

LONGEST = 300  # a number of more characters is noise: exact arithmetic on it would only cost time
NEAR = 60  # characters before and after a number that are looked at
NONE, OPEN_END = (
    "\ue002",
    "\ue003",
)  # stand for mathematics that is no number, and for such that would have to be worked out
PLACE = f"[{NONE}{OPEN_END}]"

MONEY = "[$\u20ac\u00a3\u00a5\u20b9\u20bd\u20a9]"
UNSIGNED = r"(?:(?:(?<!\d,)\d{1,3}(?:,\d{3})+(?!\d|,\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+)"
POWER = r"(?:\s*\^\s*(?:\{{\s*(?P<{0}>[-+]?\d{{1,4}})\s*\}}|(?P<{0}_bare>-?\d{{1,4}}))|\*\*(?P<{0}_star>-?\d{{1,4}}))"
NUMBER = re.compile(
    rf"""(?:(?<![\w)\]}}{NONE}{OPEN_END}])(?P<sign>[-+]))?(?:{MONEY}\s?(?P<minus>-)?)?(?<![A-Za-z0-9_])(?<!\d\.)
    (?: (?:(?P<whole>\d+)\s*)?\\frac\{{\s*(?P<top>[-+]?{UNSIGNED})\s*\}}\{{\s*(?P<bottom>[-+]?{UNSIGNED})\s*\}}
      | (?P<mixed>\d+)\ +(?P<mixed_top>\d+)\s?/\s?(?P<mixed_bottom>\d+)(?![\d/]|\.\d)
      | (?P<repeated>\d+\.\d*)(?:\\(?:overline|bar|dot)\s*\{{\s*(?P<again>\d+)\s*\}}|\((?P<again_round>\d+)\))
      | (?P<number>{UNSIGNED})(?:(?P<e>[eE][-+]?\d{{1,2}}(?!\d))|\s?/\s?(?P<under>{UNSIGNED})(?![\d/]|\.\d))?
        {POWER.format("power")}?(?:\s*(?:\\times|\\cdot|[*x\u00d7\u00b7\u22c5])\s*10{POWER.format("ten")})? )""",
    re.VERBOSE,
)
SOME = re.compile(rf"{PLACE}|{NUMBER.pattern}", re.VERBOSE)

UNITS = (  # of two or three letters, for mathematics without \text{}; longer words are units
    "mm|cm|dm|km|nm|in|ft|yd|mi|kg|mg|lbs?|oz|ml|mL|cl|dl|hrs?|mins?|secs?|ms|mph|kph|rpm|deg|kWh?|[MGK]B|[kM]?Hz|USD|EUR"
    "|GBP|pts?|pcs|sq|cu|per|am|pm|rad|mol"
)
LETTERS = "mgshlLNJWVAKCF"  # units of one letter
FUNCTIONS = "sin|cos|tan|cot|sec|csc|log|ln|exp|lim|max|min|mod"
UNIT = (
    rf"(?:{OPEN}[^\d{OPEN}{CLOSE}]*{CLOSE}|(?:{UNITS})(?![A-Za-z])|(?<=[\s/])[{LETTERS}](?![A-Za-z])"
    rf"|(?!(?:or|and|{FUNCTIONS})(?![A-Za-z]))[A-Za-z\u00b5-\u024f]{{3,}}\.?)(?:\s*\^\s*\{{?\s*-?\d\s*\}}?|[23](?!\d))?"
)
UNITS_ALONE = re.compile(rf"\s*%?(?:[\s/*-]*{UNIT})*[\s.%]*")
POWERED = re.compile(
    rf"((?<![A-Za-z\\])(?!(?:{FUNCTIONS})(?![A-Za-z]))[A-Za-z]{{2,}}|(?<=[\da-z]\s)[ms]|(?<=/)[{LETTERS}]"
    rf"|{OPEN}[^\d{OPEN}{CLOSE}]*{CLOSE})\s*\^\s*\{{?\s*-?\d\s*\}}?"
)
CODES = re.compile(r"(?<![A-Za-z])(?:USD|EUR|GBP|INR|Rs\.?|US|AU|CA|HK|NZ)\s?(?=[$\d])")
CLOCK = re.compile(r"(?<![\d:.])\d{1,4}(?::\d{1,4})+(?![\d:])|(?<![\d/])\d+/\d+/\d+(?![\d/])")
TUPLE = re.compile(rf"\\?[(\[{{]\s*[-+]?{UNSIGNED}(?:\s*[,;]\s*[-+]?{UNSIGNED})+\s*\\?[)\]}}]")
NOT = re.compile(rf"\bnot\s+(?:equal\s+to\s+)?[*$]*-?{UNSIGNED}")

GREEK = "\u0391-\u03bb\u03bd-\u03c9\u221a\u221b\u221e"  # without the micro sign
CALM = (  # commands that may stand beside a number without making it a part of something
    r"(?:times|cdot|div|approx|leq?|geq?|lt|gt|neq?|Rightarrow|implies|Longrightarrow|rightarrow|to|therefore|because|item"
    r"|begin|end|checkmark|square|blacksquare|qed|tag|notag|nonumber|[lc]?dots|sim|text)(?![A-Za-z])"
)
PART_BEFORE = re.compile(
    rf"(?:[\^_]\s*\{{?|[)\]{GREEK}]|\}}\s*\{{?|{PLACE}|\\(?!{CALM})[A-Za-z]+\s*[{{\[(]?"
    rf"|(?:(?<![A-Za-z\\.])[b-hj-z]|{PLACE}|[)}}{GREEK}])\s*[-+*/]\s*)\s*$"
)
PART_AFTER = re.compile(
    rf"\s*\\(?!{CALM})[A-Za-z]+|\s*[\^_]|(?![{LETTERS}])[A-Za-z](?![A-Za-z])|[{LETTERS}]\s*\^|\s*[{GREEK}]|\s*{PLACE}"
    r"|\s[b-fijknop-rt-z]\s*(?:\^|[-+*/=]\s*[\w\\])|\s*[-+*/]\s*[b-fijknop-rt-z](?![A-Za-z'])"
)
POINTS = re.compile(r"\.{2,}|\u2026|\s*\\[lc]?dots")
SPACED = re.compile(r" \d{3}(?!\d)")  # a thousands separator, or another number
SPACED_BEFORE = re.compile(r"(?<![\d.,])\d{1,3} $")
GOES_ON = re.compile(
    rf"\s*(?:[-+*/\u00d7\u00f7]|\\times|\\cdot|\\div|\\pm|\u00b1)\s*(?:[\d\\($.{NONE}{OPEN_END}]|-\d|[A-Za-z](?![A-Za-z']))"
)
_GAP = rf"[\s{OPEN}{CLOSE}]*"
LIST = re.compile(
    rf"{_GAP},?{_GAP}\bor\b{_GAP}[$-]*\d|{_GAP},?{_GAP}\band\b{_GAP}[$-]*{UNSIGNED}\s*(?:[.,;]|$)"
    rf"|(?:\s*[,;]\s*[$+-]*{UNSIGNED})+\s*(?:,?\s*(?:and|or)\s+[$-]*\d.*)?[.\s]*$"
)
CHAIN = re.compile(r"(?:[^=,;:!?<>\u2264\u2265.]|(?<=\d)[.,](?=\d)|\.(?=\d))*=\s*")
BREAKS = re.compile(
    r"\b(?:because|since|as|when|if|where|so|and|or|for|with|which|that|from|check)\b", re.IGNORECASE
)
EQUALS = re.compile(r"(?<![<>!\\:])=(?![=>])")
ROUNDED = re.compile(r"\\(?:approx|simeq|doteq)(?![A-Za-z])|\u2248")
ABOUT = re.compile(r"\s*(?:\\approx|\u2248|~|\\sim|about|approximately|approx\.?|exactly|only|roughly)\s*")


class Token(NamedTuple):
    """A number, or (value None) mathematics that is no plain number. written: as it is said, without $ and commas."""

    start: int
    end: int
    value: Fraction | None
    written: str


def whole_number(text: str) -> Token | None:
    """The number that the whole text is, unit, name (`x = 5`) and chain (`3 + 6 = 9`) aside; None if it is no plain number."""
    if len(text) > 10 * LONGEST:
        return None
    members = [one.strip() for one in EQUALS.split(prepared(text, begins=True)) if one.strip()]
    if re.search(r",(?!\d{3}(?!\d))|;", "".join(members[:-1])):
        return None  # x = 1, y = 2
    last = ROUNDED.split(members[-1])[0] if members else ""
    last = ABOUT.sub("", last or members[-1], count=1).strip(" $*`\n\t").rstrip(" .,;$") if members else ""
    while last[:1] + last[-1:] in ("{}", "()"):
        last = last[1:-1].strip()
    match = NUMBER.search(re.sub(r"^-\s+", "-", last))
    if match is None:
        return None
    before, after = match.string[: match.start()], match.string[match.end() :]
    alone = not before.strip(f" {OPEN}{CLOSE}") and UNITS_ALONE.fullmatch(after)
    found = token(match)
    return found if alone and found.value is not None else None


def first_number(text: str) -> Token | None:
    """The first number of a marked answer, of a chain `a = b` the last member; value None where it is a part of more."""
    text = prepared(text, begins=True)
    found = list(tokens(text))
    if not found:
        return None
    said = found[0]
    while (link := CHAIN.match(text, said.end)) and not BREAKS.search(link[0]) and balanced(link[0]):
        later = next((one for one in found if one.start >= link.end()), None)
        if later is None or not re.fullmatch(r"[\s*$({\[]*", text[link.end() : later.start]):
            return said._replace(value=None)
        said = later
    part = GOES_ON.match(text, said.end) or LIST.match(text, said.end)
    return said._replace(value=None) if part else said


def last_number(text: str) -> Token | None:
    """The last number of a text without markers; value None where it is a part of more."""
    found = None
    for found in tokens(prepared(text)):  # noqa: B007
        pass
    return found


def never_a_number(text: str) -> bool:
    """Whether an answer that is no plain number cannot be one either: a variable, pi, a list, a time, the root of no square.

    What only has to be worked out (`9 + 9`, `18!`) may be one.
    """
    text = tidy(unwrapped(text, "")).strip(" .,;:")
    roots = [int(root) for root in re.findall(r"\\sqrt\s*\{?\s*(\d{1,15})(?!\d)", text)]
    words = re.sub(r"\\(?:frac|sqrt|cdot|times|div|boxed|fbox)(?![A-Za-z])", " ", text)
    return bool(re.search(rf"[A-Za-z,;:\u03c0{NONE}]", words)) or any(
        isqrt(root) ** 2 != root for root in roots
    )


def balanced(text: str) -> bool:
    return text.count("(") <= text.count(")")


def tokens(text: str) -> Iterator[Token]:
    """Numbers, and what is none, of a prepared text in their order."""
    for match in SOME.finditer(text):
        found = token(match)
        before, after = (
            text[max(0, match.start() - NEAR) : match.start()],
            text[match.end() : match.end() + NEAR],
        )
        cut = POINTS.match(after) if "." in match[0] else SPACED.match(after)  # 0.333..., 1 000
        cut = cut or (re.fullmatch(r"\d{3}(?:\.\d+)?", match[0]) and SPACED_BEFORE.search(before))
        if match[0] in (NONE, OPEN_END) or cut or PART_BEFORE.search(before) or PART_AFTER.match(after):
            run = re.search(r"\S*$", before), re.match(r"\S*", after)
            found = found._replace(
                value=None, written=f"{run[0] and run[0][0]}{match[0]}{run[1] and run[1][0]}"
            )
        yield found


def prepared(text: str, begins: bool = False) -> str:
    """Text with one typography, where mathematics in delimiters is a number or `NONE`.

    begins: whether an answer begins the text, so that a dash there is a sign and no bullet.
    """
    text = unwrapped(tidy(text), f" {OPEN}{{}}{CLOSE}")
    text = re.sub(rf"{OPEN}([^{OPEN}{CLOSE}]*\d[^{OPEN}{CLOSE}]*){CLOSE}", r"\1", text)
    text = SPAN.sub(spanned, text)
    text = re.sub(r"(?<!\d)\*\*|\*\*(?!\d)|__|`", "", text)
    text = re.sub(r"(?<==)\s*([-+])\s+(?=[\d.$\\])", r" \1", text)
    if begins:
        text = re.sub(r"^[\s:]*([-+])\s+(?=[\d.$\\])", r"\1", text)
    text = POWERED.sub(r"\1", CODES.sub("", text))
    return NOT.sub("", TUPLE.sub(NONE, CLOCK.sub(NONE, text)))


def spanned(match: re.Match[str]) -> str:
    """What a span of mathematics becomes: its number, `NONE`, or its letters where it has no digit."""
    inner = next(part for part in match.groups() if part is not None)
    prose = re.sub(rf"{OPEN}[^{CLOSE}]*{CLOSE}", "", inner)
    if match["single"] is not None and re.search(r"(?<![\\A-Za-z])[A-Za-z]{4,}|\s[a-z]{2,}\s", prose):
        return match[0]  # money, and words between
    if not re.search(r"\d", inner) or not EQUALS.split(inner)[-1].strip() or "\\boxed" in inner:
        return f" {inner} "
    found = whole_number(inner)
    if found is None:
        return f" {NONE if never_a_number(inner) else OPEN_END} "
    return f" {found.written} "


def token(match: re.Match[str]) -> Token:
    """The value of a match, exact; None where it is too long, divides by zero or is no number."""
    value, simple = None, ""
    if match[0] not in (NONE, OPEN_END) and len(match[0]) <= LONGEST:
        try:
            value, simple = value_of(match)
        except ZeroDivisionError:
            value = None
    if value is None:
        return Token(match.start(), match.end(), None, match[0])
    minus = ((match["sign"] or "") + (match["minus"] or "")).count("-") == 1
    value = -value if minus else value
    return Token(match.start(), match.end(), value, f"{'-' * minus}{simple}" if simple else str(value))


def value_of(match: re.Match[str]) -> tuple[Fraction | None, str]:
    """Its value without the sign, and how it is written if that is simple."""
    if match["top"] or match["mixed"]:
        top, bottom = match["top"] or match["mixed_top"], match["bottom"] or match["mixed_bottom"]
        value, whole = fraction(top) / fraction(bottom), match["whole"] or match["mixed"]
        if whole:
            return (int(whole) + value, "") if 0 <= value < 1 else (None, "")
        return value, f"{top}/{bottom}" if (top + bottom).isdigit() else ""
    if match["repeated"]:
        again, places = match["again"] or match["again_round"], len(match["repeated"].partition(".")[2])
        return fraction(match["repeated"] + "0") + Fraction(
            int(again), (10 ** len(again) - 1) * 10**places
        ), ""
    simple = match["number"] + (match["e"] or "")
    value = fraction(simple)
    power, ten = exponent(match, "power"), exponent(match, "ten")
    if match["under"]:
        value, simple = value / fraction(match["under"]), f"{simple}/{match['under']}"
    if power is not None:
        if match["under"] or abs(power) * len(simple) > LONGEST:
            return None, ""
        value **= power
    if ten is not None:
        value = value * Fraction(10) ** ten if abs(ten) <= LONGEST else None
    return value, "" if power is not None or ten is not None else re.sub(r"[\s,]", "", simple)


def exponent(match: re.Match[str], name: str) -> int | None:
    found = match[name] or match[f"{name}_bare"] or match[f"{name}_star"]
    return None if found is None else int(found)


def fraction(text: str) -> Fraction:
    return Fraction(re.sub(r"[\s,]", "", text))
