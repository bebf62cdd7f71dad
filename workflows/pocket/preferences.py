"""Preference pairs of the pocket world: a right answer against a wrong one. Made with the verifier's answers: no method
that claims to work without labels may learn from them.

    python -m selfloop.workflows.pocket.preferences --out pocket-preferences

writes train.jsonl and test.jsonl with the columns prompt, chosen, rejected, as other libraries read them. Configs need no
file: `data.NAME: {source: pocket, options: {preferences: true}}` gives the same rows.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import pyarrow as pa

from selfloop.workflows.data.schema import COLUMNS, assistant
from selfloop.workflows.pocket.mistakes import wrong_answer
from selfloop.workflows.pocket.roles import task_of
from selfloop.workflows.pocket.source import pocket_prompts
from selfloop.workflows.pocket.tasks import Split, parse_task

__all__ = ["with_preferences", "write_preferences"]


def with_preferences(table: pa.Table, seed: int) -> pa.Table:
    """Prompt rows of the pocket source with the columns chosen (the answer) and rejected (a wrong one), without `answer`.

    A wrong answer is the habitual mistake of its kind of task or a slip, the base model's own two sorts, equally often.
    """
    tasks = [parse_task(task_of(prompt)) for prompt in table["prompt"].to_pylist()]
    names = table["prompt_id"].to_pylist()
    pairs = [(task.answer, wrong_answer(random.Random(f"{seed} {name}"), task))
             for task, name in zip(tasks, names, strict=True) if task is not None]  # fmt: skip
    for place, column in enumerate(("chosen", "rejected")):
        values = pa.array([assistant(pair[place]) for pair in pairs], COLUMNS[column][0])
        table = table.append_column(column, values)
    hidden = pa.nulls(table.num_rows, pa.string())
    return table.set_column(table.column_names.index("answer"), "answer", hidden)


def write_preferences(folder: Path, seed: int = 0, size: int = 2048, test: int = 256) -> list[Path]:
    """Write train.jsonl and test.jsonl (tasks of the held-out side); the same files for the same seed and sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    wanted: tuple[tuple[str, Split, int], ...] = (("train", "train", size), ("test", "heldout", test))
    for name, split, rows in wanted:
        table = with_preferences(pocket_prompts(split, rows, seed), seed)
        lines = [json.dumps({"prompt": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"]}, ensure_ascii=False)
                 for row in table.to_pylist()]  # fmt: skip
        paths.append(folder / f"{name}.jsonl")
        paths[-1].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return paths


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("pocket-preferences"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--test", type=int, default=256)
    given = parser.parse_args()
    for path in write_preferences(given.out, given.seed, given.size, given.test):
        print(path)


if __name__ == "__main__":
    main()
