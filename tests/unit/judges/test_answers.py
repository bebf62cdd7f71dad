"""Reading final answers, and the verifiers that compare them."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest

from selfloop.workflows.errors import InputError
from selfloop.workflows.judges.answers import Extract, as_number, canonical, equivalent, extract_answer
from selfloop.workflows.judges.math import process as math_pool
from selfloop.workflows.judges.verifiers import VERIFIERS, Choice, Exact, FunctionVerifier, Number, verifier

GSM8K = "She sells 9 eggs.\nShe makes 9 * 2 = $<<9*2=18>>18.\n#### 18"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The total is $1,234.50.", "1234.50"),
        ("10-3=7", "7"),
        ("16 - 3 - 4", "4"),
        ("that is 5%", "5"),
        ("x = -5", "-5"),
        ("-$5 or $-6", "-6"),
        ("minus \N{MINUS SIGN}3", "-3"),
        (r"so \frac{1}{2}", "1/2"),
        (r"-\dfrac{3}{4}", "-3/4"),
        ("one half, 1/2.", "1/2"),
        ("7,8,9", "9"),
        ("half: .5", ".5"),
        ("1e3 grams", "1e3"),
        (r"\boxed{1{,}000} and 3 more", "1000"),
        (GSM8K, "18"),
        ("#### 18\nQuestion 2: 7 apples", "18"),
        ("no number", None),
        ("", None),
        ("1" * 5000, None),
    ],
)
def test_the_last_number(text: str, number: str | None) -> None:
    assert extract_answer(text, "number") == number


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is (B).", "B"),
        ("answer: c", "C"),
        ("D", "D"),
        ("(A) is wrong, so (D)", "D"),
        ("B. because", "B"),
        (r"\boxed{C}", "C"),
        ("I would say B", "B"),
        ("A good question", None),
        ("", None),
    ],
)
def test_the_letter_of_a_choice(text: str, letter: str | None) -> None:
    assert extract_answer(text, "choice") == letter


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" 012 \n", "012"),
        ("Let me think.\nParis.", "paris"),
        ("The answer is:\n  New   York ", "new york"),
        ("answer: 7\nThat was easy.", "7"),
        ("#### 18", "18"),
        (" \n ", None),
    ],
)
def test_the_final_text(text: str, answer: str | None) -> None:
    assert extract_answer(text, "text") == answer


def test_the_last_box() -> None:
    assert extract_answer(r"\boxed{1} then \boxed{\dfrac{1}{ 2 }}", "boxed") == r"\frac{1}{2}"
    assert extract_answer(r"\boxed{1", "boxed") is None
    assert extract_answer("1", "boxed") is None


@pytest.mark.parametrize(
    ("a", "b", "extract", "same"),
    [
        ("1/2", "0.5", "number", True),
        ("18", "18.00", "number", True),
        ("1/3", "0.333", "number", False),
        (r"\frac{1}{2}", ".5", "boxed", True),
        ("x+1", "1+x", "boxed", False),
        ("07", "7", "text", False),
        ("5/0", "5", "number", False),
    ],
)
def test_equivalence(a: str, b: str, extract: Extract, same: bool) -> None:
    assert equivalent(a, b, extract) is same
    assert (canonical(a, extract) == canonical(b, extract)) is same


def test_numbers_are_exact_and_bounded() -> None:
    assert as_number("0.1") == as_number("1/10")
    assert as_number("9" * 5000) is None


@pytest.mark.parametrize(
    ("name", "answer", "response", "score"),
    [
        ("exact", "Paris", " paris. ", 1.0),
        ("exact", "700", "007", 0.0),
        ("exact", "700", "  ", None),
        ("number", GSM8K, "9 * 2 is $18.00", 1.0),
        ("number", GSM8K, "17", 0.0),
        ("number", GSM8K, "I do not know", None),
        ("number", "70000", "about 70,000 dollars", 1.0),
        ("choice", "(B) a dog", "The answer is B", 1.0),
        ("choice", "B", "what a day", None),
    ],
)
def test_verifiers(name: str, answer: str, response: str, score: float | None) -> None:
    judge = verifier(name)
    assert judge.verify({"answer": answer, "response": response}) == score
    assert pickle.loads(pickle.dumps(judge)) == judge
    assert judge.needs_answer


def test_a_gold_answer_that_cannot_be_read_is_an_error_not_a_zero() -> None:
    with pytest.raises(ValueError, match="gold answer"):
        Number().verify({"answer": "none", "response": "1"})
    with pytest.raises(ValueError, match="gold answer"):
        Exact().verify({"answer": None, "response": "1"})


def test_an_unknown_verifier_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean number"):
        verifier("numbr")


def test_a_users_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "def long(row):\n    return None if not row['response'] else len(row['response']) > 3\nSIZE = 3\n"
    )
    (tmp_path / "my_checks.py").write_text(source)
    (tmp_path / "my_broken.py").write_text("def odd(row):\n    return 'yes'\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    judge = verifier("my_checks:long")
    assert isinstance(judge, FunctionVerifier)
    assert [judge.verify({"response": text}) for text in ("long one", "no", "")] == [1.0, 0.0, None]
    assert pickle.loads(pickle.dumps(judge)).verify({"response": "long one"}) == 1.0
    with pytest.raises(Exception, match="finite number"):
        verifier("my_broken:odd").verify({"response": ""})
    for path, said in [
        ("my_checks:short", "no 'short'"),
        ("my_checks:SIZE", "not a function"),
        ("nowhere:f", "cannot be imported"),
    ]:
        with pytest.raises(InputError, match=said):
            verifier(path)
    assert verifier("selfloop.workflows.judges.verifiers:Choice") == Choice()


def test_math_without_its_package_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_pool.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'selfloop\[math\]'"):
        VERIFIERS["math"]()


def test_math_equivalence() -> None:
    pytest.importorskip("math_verify")
    judge = verifier("math")
    cases = [(r"\frac{1}{2}", r"so \boxed{0.5}", 1.0), ("1/2", r"\boxed{0.6}", 0.0), ("18", "no idea", None)]
    assert [judge.verify({"answer": a, "response": r}) for a, r, _ in cases] == [
        score for _, _, score in cases
    ]
    assert judge.verify({"answer": GSM8K, "response": "it is 18"}) == 1.0


FAKE_WORKER = """
import sys, time
print('{"ready": true}', flush=True)
for line in sys.stdin:
    if "slow" in line:
        time.sleep(60)
    if "die" in line:
        sys.exit(3)
    print('{"error": "odd"}' if "odd" in line else '{"score": 1.0}', flush=True)
"""


def test_a_worker_is_killed_at_the_deadline_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "worker.py").write_text(FAKE_WORKER)
    monkeypatch.setattr(math_pool, "__file__", str(tmp_path / "process.py"))
    monkeypatch.setattr(math_pool, "require_math_verify", lambda: None)
    pool = math_pool.MathProcess()
    assert pool.compare("1", "quick", 30) == 1.0
    first = pool.process
    assert first is not None
    assert pool.compare("1", "slow", 0.2) is None
    assert first.poll() is not None
    assert pool.compare("1", "quick", 30) == 1.0
    with pytest.raises(Exception, match="odd"):
        pool.compare("1", "odd", 30)
    with pytest.raises(Exception, match="died"):
        pool.compare("1", "die", 30)
    assert pool.compare("1", "quick", 30) == 1.0
    pool.stop()
