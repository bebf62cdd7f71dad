"""Answers of every kind, read as they are meant; what a verifier can read as gold, it scores as right, and nothing else."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import pytest

from selfloop.workflows.judges.answers import Extract, canonical, equivalent, extract_answer
from selfloop.workflows.judges.math.worker import score
from selfloop.workflows.judges.verifiers import verifier
from tests.unit.judges.answer_cases import BOXES, CHOICES, GOLDS, MATH, NUMBERS, SAME, TEXTS

WRAPS = ("{}", r"\boxed{{{}}}", "${}$", "The answer is {}", "So we get $\\boxed{{{}}}$.", "**Answer:** {}")


@pytest.mark.parametrize(("text", "value"), NUMBERS)
def test_numbers(text: str, value: str | None) -> None:
    read = extract_answer(text, "number")
    assert (read is None) == (value is None), read
    assert read is None or value is None or Fraction(read) == Fraction(value)


@pytest.mark.parametrize(("text", "letter"), CHOICES)
def test_choices(text: str, letter: str | None) -> None:
    assert extract_answer(text, "choice") == letter


@pytest.mark.parametrize(("text", "answer"), TEXTS)
def test_texts(text: str, answer: str | None) -> None:
    assert extract_answer(text, "text") == answer


@pytest.mark.parametrize(("text", "answer"), BOXES)
def test_boxes_by_hendrycks_rule(text: str, answer: str | None) -> None:
    assert extract_answer(text, "boxed") == answer


@pytest.mark.parametrize("extract", ["number", "boxed"])
@pytest.mark.parametrize(("a", "b", "same"), SAME)
def test_the_same_answer_has_one_canonical_form(a: str, b: str, same: bool, extract: Extract) -> None:
    assert equivalent(a, b, extract) is same
    for answer in (a, b):
        assert canonical(canonical(answer, extract), extract) == canonical(answer, extract)


@pytest.mark.parametrize(
    ("gold", "response", "right"),
    [
        ("2", r"\boxed{3\sqrt{2}}", 0.0),
        ("2", r"\boxed{\frac{\pi}{2}}", 0.0),
        ("3", r"\boxed{(1,3)}", 0.0),
        ("2", r"\boxed{\sqrt{4}}", None),  # may be it: it only has to be worked out
        ("18", r"\boxed{9 + 9}", None),
        ("18", r"\boxed{18!}", None),
        ("18", r"so it is \boxed{18", None),
        ("3:30", "The bus leaves at 4:30", 0.0),
        ("3:30", "The bus leaves at 3:30", 1.0),
        ("18", "I do not know", None),
    ],
)
def test_an_answer_that_can_be_no_number_is_wrong(gold: str, response: str, right: float | None) -> None:
    assert verifier("number").verify({"answer": gold, "response": response}) == right


def math_score(gold: str, text: str) -> Any:
    math_verify = pytest.importorskip("math_verify")
    try:
        return score(math_verify.parse, math_verify.verify, gold, text)
    except ValueError:
        return "refused"


@pytest.mark.parametrize(("gold", "response", "right"), MATH)
def test_mathematics(gold: str, response: str, right: float | str | None) -> None:
    assert math_score(gold, response) == right


@pytest.mark.parametrize("gold", GOLDS)
def test_math_scores_a_gold_answer_as_right(gold: str) -> None:
    assert [math_score(gold, wrap.format(gold)) for wrap in WRAPS] == [1.0] * len(WRAPS)


def drawn(kind: str, rng: random.Random) -> tuple[str, str]:
    """A gold answer, and one that is a little different."""
    a, b, c, d = rng.sample(range(2, 10), 4)
    prime, sign = rng.choice([2, 3, 5, 7, 11, 13]), rng.choice(["", "-"])
    unit = rng.choice([r"\text{ cm}^2", r"\text{ miles}", r"^\circ", r"\%", r"\,\mathrm{kg}", r"\text{ m/s}"])
    word, other = rng.sample(["Friday", "no solution", "even", "Evelyn", "decreasing", "New York"], 2)
    left, right = rng.choice("(["), rng.choice(")]")
    return {
        "number": (f"{sign}{a}{b}", f"{sign}{b}{a}"),
        "decimal": (f"{sign}{a}.{b}", f"{sign}{a}.{c}"),
        "thousands": (f"{a},{b}0{c},{d}00", f"{a},{b}0{d},{d}00"),
        "fraction": (rf"{sign}\frac{{{a}}}{{{prime * 17}}}", rf"{sign}\frac{{{b}}}{{{prime * 17}}}"),
        "mixed": (rf"{sign}{a}\frac{{1}}{{{b}}}", rf"{sign}{a}\frac{{1}}{{{c}}}"),
        "scientific": (rf"{a} \times 10^{{{b}}}", rf"{c} \times 10^{{{b}}}"),
        "radical": (rf"{sign}{a}\sqrt{{{prime}}}", f"{sign}{a}"),
        "polynomial": (f"{a}x^2-{b}x+{c}", f"{a}x^2-{b}x-{c}"),
        "interval": (f"{left}{sign}{a},{a + b}{right}", f"{left}{sign}{a},{a + b + 1}{right}"),
        "set": (rf"\{{{a},{b},{c}\}}", rf"\{{{a},{b},{d}\}}"),
        "tuple": (f"({a},{sign}{b},{c})", f"({sign}{b},{a},{d})"),
        "unit": (f"{a}{b}{unit}", f"{b}{a}{unit}"),
        "text": (rng.choice([word, rf"\text{{{word}}}"]), other),
        "equation": (f"y={a}x-{b}", f"y={a}x+{b}"),
        "matrix": (
            rf"\begin{{pmatrix}} {a} & {sign}{b} \\ {c} & {d} \end{{pmatrix}}",
            rf"\begin{{pmatrix}} {a} & {sign}{b} \\ {d} & {c} \end{{pmatrix}}",
        ),
    }[kind]


KINDS = ("number", "decimal", "thousands", "fraction", "mixed", "scientific", "radical", "polynomial", "interval", "set",
         "tuple", "unit", "text", "equation", "matrix")  # fmt: skip
PLAIN = ("number", "decimal", "thousands", "fraction", "mixed", "scientific", "unit")


@pytest.mark.parametrize("kind", KINDS)
def test_a_gold_answer_that_can_be_read_is_right_and_another_is_not(kind: str) -> None:
    rng = random.Random(kind)
    for _ in range(8):
        gold, other = drawn(kind, rng)
        names = ("math", "exact", "number") if kind in PLAIN else ("math", "exact")
        for name in names:
            for wrap in WRAPS[:4]:
                for answer, right in ((gold, 1.0), (other, 0.0)):
                    response = wrap.format(answer)
                    if name == "math":
                        found = math_score(gold, response)
                    else:
                        found = verifier(name).verify({"answer": gold, "response": response})
                    assert found == right, (name, gold, response)
        if kind not in PLAIN:
            assert verifier("number").gold(gold) is None or kind == "matrix", gold


def test_every_letter_is_right_and_no_other() -> None:
    judge = verifier("choice")
    for gold in "ABCDEFGHIJ":
        for shown in (gold, f"({gold})", rf"\text{{{gold}}}", rf"\text{{({gold})}}"):
            for wrap in WRAPS:
                for letter in "ABCDEFGHIJ":
                    response = wrap.format(shown.replace(gold, letter) if "text" not in shown else shown)
                    right = 1.0 if letter == gold or "text" in shown else 0.0
                    assert judge.verify({"answer": gold, "response": response}) == right, response


@pytest.mark.parametrize("extract", ["text", "number", "boxed", "choice"])
def test_hostile_texts_take_no_long(extract: Extract) -> None:
    pieces = [
        "A or ",
        "A, ",
        "\\frac{",
        "\\boxed{",
        "answer to ",
        "\\(",
        "\\[",
        " ",
        "\n",
        "$1",
        "1=",
        "not A or ",
        "\\text{",
        "1,",
    ]
    for piece in pieces:  # what is quadratic takes minutes
        read = extract_answer(piece * 3000, extract)
        assert read is None or len(canonical(read, extract)) <= 3000 * len(piece)
