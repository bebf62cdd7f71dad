"""`selfloop show` on a small hand-made run folder, and the curve's words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from selfloop.workflows.data.batches import Counts
from selfloop.workflows.data.schema import COLUMNS
from selfloop.workflows.errors import InputError
from selfloop.workflows.report import curve
from selfloop.workflows.report.show import count_node, extremes, show
from selfloop.workflows.store.parts import write_part

METRICS = [
    {"iteration": 0, "wall_s": 30.0, "heldout_accuracy": 0.5, "heldout_accuracy_low": 0.44,
     "heldout_accuracy_high": 0.56, "heldout_accuracy_greedy": 0.625},
    {"iteration": 1, "wall_s": 90.0, "heldout_accuracy": 0.75, "heldout_accuracy_low": 0.7,
     "heldout_accuracy_high": 0.8, "heldout_accuracy_greedy": 0.8},
]  # fmt: skip
ROWS = [  # (prompt, response, score, state, status)
    ("sort 3 1 2", "1 2 3", 1.0, "score", "ok"),
    ("sort 3 1 2", "3 2 1", 0.0, "score", "ok"),
    ("count a in banana", "3", 0.9, "score", "ok"),
    ("count a in banana", "\x1b[31mred\x07\n4", 0.1, "score", "ok"),
    ("reverse abc", "", None, "abstain", "ok"),
    ("reverse abc", "", None, "failed", "failed"),
]


def table(rows: list[tuple[str, str, float | None, str, str]]) -> pa.Table:
    columns: dict[str, list[Any]] = {
        "prompt_id": [row[0] for row in rows],
        "prompt": [[{"role": "user", "content": row[0]}] for row in rows],
        "answer": ["gold" for _ in rows],
        "response": [row[1] for row in rows],
        "score": [row[2] for row in rows],
        "score_state": [row[3] for row in rows],
        "status": [row[4] for row in rows],
    }
    return pa.table({name: pa.array(values, COLUMNS[name][0]) for name, values in columns.items()})


def write_node(run: Path, iteration: int, node: str, tables: list[pa.Table]) -> None:
    for number, rows in enumerate(tables):
        write_part(
            str(run / f"iteration={iteration:04d}" / node),
            number,
            number,
            [rows],
            [Counts(rows=rows.num_rows)],
        )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    config = {"recipe": "self-rewarding", "model": "pocket", "iterations": 2, "seed": 7}
    (folder / "config.json").write_text(json.dumps({"format": 1, "config": config}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in METRICS))
    all_rows = table(ROWS)
    write_node(folder, 1, "sample", [all_rows.select(["prompt_id", "prompt", "response", "status"])])
    write_node(folder, 1, "judge", [all_rows.slice(0, 2), all_rows.slice(2)])
    write_node(folder, 1, "heldout-verified", [table(ROWS[:2])])
    (folder / "iteration=0001" / "policy").mkdir()
    return folder


def test_the_screen(run: Path) -> None:
    assert show(run).splitlines() == [
        str(run),
        "self-rewarding on pocket, 1 of 2 iterations, seed 7",
        "",
        "Held-out accuracy  ▁█",
        "  iteration  sampled   95 % interval   greedy   gain  minutes",
        "          0   50.0 %     44.0 - 56.0   62.5 %   +0.0      0.5  ██████████",
        "          1   75.0 %     70.0 - 80.0   80.0 %  +25.0      1.5  ███████████████",
        "",
        "Rows of iteration 1",
        "  node                   rows  failed  verdicts",
        "  sample                    6       1",
        "  judge                     6       1  1 abstain, 1 failed, 4 score",
        "  heldout-verified          2       0  2 score",
        "",
        "Best samples of iteration 1 (judge): score, prompt, -> response",
        "  1     sort 3 1 2",
        "     -> 1 2 3",
        "        answer: gold",
        "  0.9   count a in banana",
        "     -> 3",
        "        answer: gold",
        "Worst samples of iteration 1 (judge): score, prompt, -> response",
        "  0     sort 3 1 2",
        "     -> 3 2 1",
        "        answer: gold",
        "  0.1   count a in banana",
        "     -> [31mred 4",
        "        answer: gold",
    ]


def test_it_fits_a_terminal_of_eighty_columns(run: Path) -> None:
    long = table([("why " * 200, "because " * 200, 1.0, "score", "ok")])
    write_node(run, 2, "a-node-with-quite-a-long-name-that-somebody-gave-to-it", [long])
    lines = show(run, 80).splitlines()
    assert max(len(line) for line in lines if "/" not in line) <= 80


def test_counts_and_extremes(run: Path) -> None:
    parts = sorted((run / "iteration=0001" / "judge").glob("part-*"))
    count = count_node(parts)
    assert (count.rows, count.status["failed"], dict(count.states["score_state"])) == (
        6, 1, {"score": 4, "abstain": 1, "failed": 1})  # fmt: skip
    best, worst = extremes(parts, 1)
    assert ([row["response"] for row in best], [row["response"] for row in worst]) == (["1 2 3"], ["3 2 1"])


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"format": 1, "config": {"recipe": "r", "model": "m"}}))
    assert show(tmp_path).splitlines()[1] == "r on m, nothing is complete yet, seed 0"


def test_a_run_without_answers(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"iteration": 0, "wall_s": 6}\n')
    assert "Held-out accuracy was not measured (no answers to check against)." in show(run)


SCORES = [
    {"iteration": 0, "wall_s": 30.0, "heldout_score": 6.5, "heldout_score_low": 6.25, "heldout_score_high": 6.75,
     "heldout_score_greedy": 7.0},
    {"iteration": 1, "wall_s": 90.0, "heldout_score": 7.125},
]  # fmt: skip


def test_scores_are_shown_as_scores(run: Path) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SCORES))
    assert show(run).splitlines()[3:7] == [
        "Held-out score  ▁█",
        "  iteration  sampled   95 % interval   greedy   gain  minutes",
        "          0      6.5     6.25 - 6.75        7     +0      0.5",
        "          1    7.125               -        - +0.625      1.5",
    ]
    assert curve.sentence(1, SCORES[1], SCORES[0]) == (
        "after iteration 1: its sampled answers to held-out prompts have a mean score of 7.125 (+0.625)"
    )
    assert curve.sentence(0, SCORES[0]).endswith(
        "mean score of 6.5; 7 when it takes its likeliest words (greedy)"
    )


def test_one_score_that_is_neither_0_nor_1_makes_a_run_one_of_scores() -> None:
    all_right = {"heldout_score": 1.0, "heldout_accuracy": 1.0}
    assert curve.figure([all_right]) == curve.ACCURACY
    assert curve.figure([{"heldout_score": 0.5}, all_right]) == curve.figure([SCORES[0]]) == curve.SCORE


def test_the_first_failure_of_a_node(run: Path) -> None:
    why = [{"state": "failed", "score": None, "text": "KeyError: 'nope'\nin bad:raises"}]
    rows = table(ROWS[:2]).set_column(5, "score_state", pa.array(["score", "failed"]))
    rows = rows.append_column("score_judgements", pa.array([[], why], COLUMNS["score_judgements"][0]))
    write_node(run, 1, "broken", [rows])
    said = "first failure: KeyError: 'nope' in bad:raises, prompt sort 3 1 2 'sort 3 1 2'"
    assert said in " ".join(show(run, 80).split())


def test_no_run(run: Path) -> None:
    with pytest.raises(InputError) as caught:
        show(run.parent / "yours")
    assert str(caught.value) == (
        f"run folder {run.parent}/yours does not exist. Name the folder of a run, e.g. runs/quickstart. Runs beside it: mine"
    )
    with pytest.raises(InputError, match=r"has no config\.json, so it is no run"):
        show(run.parent)


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([], ""),
        ([None], ""),
        ([0.5], "▄"),
        ([0.1, 0.1], "▄▄"),
        ([0.0, None, 1.0], "▁ █"),
        ([3, 2, 1, 2], "█▅▁▅"),
    ],
)
def test_sparkline(values: list[float | None], bars: str) -> None:
    assert curve.sparkline(values) == bars


def test_sentences_for_newcomers() -> None:
    first, second = METRICS
    assert curve.sentence(0, first) == (
        "initial policy: 50.0 % of its sampled answers to held-out prompts are right; 62.5 % when it takes its likeliest "
        "words (greedy)"
    )
    assert "(+25.0 points)" in curve.sentence(1, second, first)
    assert curve.sentence(1, {"train_loss": 0.5}) == (
        "after iteration 1: done, train_loss 0.5 (not evaluated this time)"
    )
    assert "(no answers to check the held-out prompts with)" in curve.sentence(1, {"mean_length": 5.0})
