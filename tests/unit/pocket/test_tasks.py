"""The pocket world's tasks: verifiers, splits, prompt source."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfloop.workflows.data.schema import COLUMNS, prompt_id
from selfloop.workflows.pocket.make.demonstrations import ROLES, Noise, attempt, demonstration
from selfloop.workflows.pocket.mistakes import habit, slip
from selfloop.workflows.pocket.roles import task_of
from selfloop.workflows.pocket.source import pocket_prompts
from selfloop.workflows.pocket.tasks import (
    CORE_LEVELS,
    HARD_LEVELS,
    KINDS,
    PocketVerifier,
    Task,
    draw,
    generate,
    parse_task,
    side_of,
    verify,
)

cells = st.tuples(st.sampled_from(KINDS), st.sampled_from(CORE_LEVELS + HARD_LEVELS), st.integers(0, 2**32))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("sort 52913", "12359"),
        ("sort 3303", "0333"),
        ("reverse 1204", "4021"),
        ("unique 33153", "315"),
        ("count 3 in 33153", "3"),
        ("count 9 in 331", "0"),
        ("max 1805", "8"),
        ("add 95 7", "102"),
        ("add 123 4567", "4690"),
    ],
)
def test_answers(text: str, answer: str) -> None:
    task = parse_task(text)
    assert task is not None and task.text == text and task.answer == answer
    assert verify(text, answer) and verify(task, f" {answer}\n")
    for wrong in (
        "",
        answer + "0",
        answer[:-1],
        f"{answer} {answer}",
        f"answer: {answer}",
        str(int(answer) + 1),
    ):
        assert not verify(text, wrong)


@pytest.mark.parametrize(
    "text", ["", "sort", "sort 12a", "sort 1 2", "count 12 in 3", "add 5", "shout 123", "max -1"]
)
def test_not_a_task(text: str) -> None:
    assert parse_task(text) is None
    assert not verify(text, "1")


@settings(deadline=None)
@given(cells)
def test_a_task_is_read_back_from_its_text(cell: tuple[str, int, int]) -> None:
    kind, level, seed = cell
    task = draw(random.Random(seed), kind, level)
    assert parse_task(task.text) == task
    assert (task.kind, task.level) == (kind, level)
    assert task.band == ("core" if level <= 7 else "hard")
    assert verify(task, task.answer)


@settings(deadline=None)
@given(cells)
def test_wrong_answers_are_wrong(cell: tuple[str, int, int]) -> None:
    rng = random.Random(cell[2])
    task = draw(rng, *cell[:2])
    assert not verify(task, slip(rng, task.answer))
    assert habit(task)
    assert attempt(rng, task, Noise(slip=0, habit=(0,) * 5, leaning=0)) == task.answer


@settings(deadline=None)
@given(cells)
def test_the_side_belongs_to_the_task(cell: tuple[str, int, int]) -> None:
    """Train and held-out can never overlap: the side is a function of the task alone, drawn with either side asked."""
    rng = random.Random(cell[2])
    for side in ("train", "heldout"):
        task = draw(rng, *cell[:2], side)
        assert side_of(task) == side
        again = parse_task(task.text)
        assert again is not None and side_of(again) == side
    if cell[0] == "add":
        task = draw(rng, *cell[:2])
        assert side_of(task) == side_of(Task("add", task.args[::-1]))


@settings(deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(sorted(ROLES)))
def test_demonstrations_come_from_the_train_side(seed: int, role: str) -> None:
    messages, reply = demonstration(random.Random(seed), Noise(), role)
    task = parse_task(reply if role == "new_task" else task_of(messages))
    assert task is not None and side_of(task) == "train" and task.level in CORE_LEVELS


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(0, 1000))
def test_splits_do_not_overlap(a: int, b: int) -> None:
    train = {task.text for task in generate("train", 60, a)}
    for split in ("heldout", "hard"):
        assert not train & {task.text for task in generate(split, 60, b)}
    assert len(train) == 60


def test_generate_is_even_seeded_and_bounded() -> None:
    tasks = generate("heldout", 300, 3)
    assert tasks == generate("heldout", 300, 3) != generate("heldout", 300, 4)
    for kind in KINDS:
        for level in CORE_LEVELS:
            assert sum((t.kind, t.level) == (kind, level) for t in tasks) in range(8, 13)
    assert {task.level for task in generate("hard", 90, 0)} == set(HARD_LEVELS)
    assert {task.kind for task in generate("train", 20, 0, kinds=["max"], levels=[9])} == {"max"}
    with pytest.raises(ValueError, match="unknown kinds of task shout"):
        generate("train", 3, 0, kinds=["shout"])
    with pytest.raises(ValueError, match=r"only .* different heldout tasks"):
        generate("heldout", 900, 0, kinds=["max"], levels=[3])


def test_prompt_rows() -> None:
    table = pocket_prompts("train", 24, 5)
    assert table.column_names == ["prompt_id", "prompt", "answer", "meta", "parent"]
    assert all(field.type == COLUMNS[field.name][0] for field in table.schema)
    for row in table.to_pylist():
        assert row["prompt_id"] == prompt_id(row["prompt"], row["answer"]) and row["parent"] is None
        task = parse_task(task_of(row["prompt"]))
        assert task is not None and json.loads(row["meta"]) == {
            "kind": task.kind,
            "level": task.level,
            "band": "core",
        }
        assert PocketVerifier().verify({**row, "response": row["answer"]}) == 1.0
        assert PocketVerifier().verify({**row, "response": row["answer"] + "1"}) == 0.0
