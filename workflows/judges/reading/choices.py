"""The letter of a multiple-choice answer, A to J. What is denied (`not (A)`) is no answer, nor is `A or B`."""

from __future__ import annotations

import re

from selfloop.workflows.judges.reading.latex import tidy, unwrapped

__all__ = ["alone", "marked_choice", "stated_choice"]

_BARE = r"(?<![\w'(\[])(?:[B-HJ](?![\w'])|[AI](?=\s*(?:[.,;:)/&]|$|(?:or|and|nor|is|are|was|cannot|can't|isn't|does)\b)))"
_ONE = rf"(?:[(\[]\s*[A-Ja-hj]\s*[)\]]|(?<!\w)(?:[Oo]ptions?|[Cc]hoices?)\s+[A-Ja-hj](?![\w'])|{_BARE})"
_JOIN = r"(?:\s*(?:,|/|&|\+)\s*(?:or\s+|and\s+)?|\s+(?:or|and|nor)\s+|\s+as\s+well\s+as\s+)"
_ANY = rf"{_ONE}(?:{_JOIN}{_ONE}){{0,9}}"
_WRONG = (
    r"(?i:(?:is|are|was|were|would\s+be|seems?|looks?)\s+(?:\w+\s+)?(?:not\b|wrong|incorrect|false|out\b|impossible|irrelevant"
    r"|too\b|eliminated|ruled\s+out|excluded|tempting)|(?:is|are|do|does|did|ca|could|would|wo)n't\b|cannot\b"
    r"|(?:does|do|did|could|would|can|will)\s+not\b|fails?\b)"
)
DENIED = re.compile(
    r"(?i:\bnot|n't|\bneither|\brather\s+than|\binstead\s+of|\bruled?\s+out|\bruling\s+out|\beliminat(?:e|es|ed|ing)"
    r"|\bexclud(?:e|es|ed|ing)|\bexcept|\bunlike)\s+(?i:(?:be|the|simply|just|both|answer)\s+)*"
    rf"{_ANY}|{_ANY}\s*,?\s*{_WRONG}"
)
SEVERAL = re.compile(rf"(?:\b(?:either|both|between)\s+)?{_ONE}(?:{_JOIN}{_ONE}){{1,9}}")
EXPLICIT = re.compile(
    rf"(?<![\w\\])[(\[]\s*([A-Ja-hj])\s*[)\]]|\b(?i:options?|choices?)\s*[:#]?\s*({_BARE}|[b-hj](?![\w']))"
)
BARE = re.compile(_BARE)
START = re.compile(r"([A-Ja-j])(?![\w'])")
GOES_ON = re.compile(
    r"\s*(?:[.,;:)\]!?-]|\u2014|$)|\s+(?:because|since|as|is|for|due|which|with|by|and|but|\u2013)\b|\s+\("
)
RIGHT = r"(?:correct|right|true|best|the\s+(?:correct|right|best|only|most|final|answer))"
CONCLUDED = re.compile(
    rf"(?<![\w'])[(\[]?([A-J])[)\]]?\s+(?:is|must\s+be|has\s+to\s+be|would\s+be)\s+(?:clearly\s+|indeed\s+|therefore\s+|thus\s+|also\s+)?{RIGHT}\b"
    rf"|\b(?:correct|right|best|final)\s+(?:one|option|choice|letter)\s*(?:is|:)\s*[(\[]?([A-J])(?![\w'])"
    r"|(?<![\w'])[(\[]?([A-J])[)\]]?\s+(?:remains|is\s+left)\b"
    r"|\b(?:choose|chose|pick|select|go\s+with|going\s+with|opt\s+for|went\s+with|settle\s+on)\s+(?:option\s+|choice\s+|letter\s+)?[(\[]?"
    r"([A-J])(?![\w'])"
)
LINE = re.compile(r"^[ \t]*([A-J])(?:[).:](?!\w)|[ \t]*$)|(?<=\s)([A-J])\)(?=\s)", re.MULTILINE)
LAST = re.compile(r"(?<![\w'])([A-HJ])[\s.)]*$")
HEADING = re.compile(r"\s*[(\[]?[A-Ja-j][)\].:]+[ \t]+\S")


def plain(text: str) -> str:
    text = re.sub(r"['\"<\u2018\u201c]([A-Ja-j])['\">\u2019\u201d]", r"\1", text)
    return re.sub(r"[*_`$]+|\\[()\[\]]", "", unwrapped(tidy(text)))


def alone(text: str) -> str | None:
    r"""The letter of a text that is one letter, bare or in brackets: `(C)`, `\text{C}`, `c.`"""
    match = re.fullmatch(r"[{(\[\s]*([A-Ja-j])\s*[}\])]*[.,;:!]?\s*", plain(text).strip())
    return match[1].upper() if match else None


def marked_choice(text: str) -> str | None:
    """The first letter of what follows a marker; a bare A or I only where it is no English word."""
    text = DENIED.sub(" ", plain(text)).strip(" \n:,;")
    if found := alone(text):
        return found
    begins = START.match(text)
    if begins and (begins[1] in "BCDEFGHJ" or GOES_ON.match(text, begins.end())):
        place, letter = 0, begins[1]
    elif found := EXPLICIT.search(text):
        place, letter = found.start(), found[1] or found[2]
    else:
        bare = (one for one in BARE.finditer(text) if GOES_ON.match(text, one.end()))
        if (one := next(bare, None)) is None:
            return None
        place, letter = one.start(), one[0]
    several = SEVERAL.search(text)
    return None if several and several.start() <= place else letter.upper()


def stated_choice(text: str) -> str | None:
    """The letter that a text without markers ends with: a conclusion before a mere mention."""
    if found := alone(text):
        return found
    text = SEVERAL.sub(" ", DENIED.sub(" ", plain(text)))
    if concluded := CONCLUDED.findall(text):
        return "".join(concluded[-1]).upper()
    found = sorted(
        (match.start(), next(filter(None, match.groups())).upper())
        for pattern in (EXPLICIT, LINE, LAST)
        for match in pattern.finditer(text)
    )
    letters = list(dict.fromkeys(letter for _, letter in found))
    if len(letters) > 2 and letters == sorted(letters) and letters[0] == "A" and len(found) == len(letters):
        return None  # the options, listed again
    if found:
        return found[-1][1]
    therefore = re.findall(
        r"\b(?:therefore|thus|hence|so)\b[^.\n]{0,40}?(?<![\w'])([A-HJ])(?![\w'])", text, re.IGNORECASE
    )
    return therefore[-1].upper() if therefore and therefore[-1].isupper() else None
