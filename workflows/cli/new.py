"""`selfloop new recipe NAME`: a method to start from, in three files: its page, a config and a test."""

from __future__ import annotations

import importlib.util
import keyword
import re
from pathlib import Path
from typing import Annotated

import typer

from selfloop.workflows.cli.outcomes import outcomes
from selfloop.workflows.errors import InputError

__all__ = ["new", "new_recipe"]

new = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Begin a method of your own.")

PAGE = '''"""TITLE: what the method does, in a sentence."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from selfloop import SFT, Iteration, Model, Recipe, Row, reads, scored_rows

__all__ = ["KIND", "best"]


class KIND(Recipe):
    """What the method does, and where it was published.

    The policy answers each prompt several times and is fine-tuned on its best answer.

    Differs from the paper:
    1. Nothing yet.
    """

    title: ClassVar[str] = "TITLE"
    paper: ClassVar[str] = ""

    samples: int = Field(default=8, ge=2, description="answers a prompt")
    epochs: float = Field(default=1.0, gt=0, description="passes over the kept answers")

    def iteration(self, it: Iteration) -> Model:
        answers = it.prompts().sample(it.policy, n=self.samples)
        judged = answers.judge(it.verifier())
        return it.policy.train(
            judged.keep(best), SFT(), reference=None, optimizer="fresh", epochs=self.epochs
        )


@reads("score")
def best(rows: Sequence[Row], rng: random.Random) -> list[Row]:
    """The best answer to a prompt, if any is good for something."""
    good = [row for row in scored_rows(rows) if row["score"] > 0]
    return sorted(good, key=lambda row: row["score"], reverse=True)[:1]
'''
CONFIG = """\
# TITLE on the pocket world.
recipe: MODULE:KIND
settings: {samples: 8, epochs: 2}
model: pocket
prompts: {source: pocket, per_iteration: 256, heldout: 128, options: {size: 1024}}
iterations: 2
generator: {replicas: 1, max_tokens: 32, max_model_len: 512}
trainer: {lr: 2.0e-4, batch_size: 64}
"""
TEST = '''"""TITLE: its rule, and that its config passes `selfloop check`."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from MODULE import best


def test_the_best_answer_is_kept() -> None:
    rows = [{"sample": sample, "score": score} for sample, score in enumerate([0.0, 1.0, 0.5])]
    assert best(rows, random.Random(0)) == [rows[1]]
    assert best(rows[:1], random.Random(0)) == []


def test_the_config_is_fine() -> None:
    selfloop = str(Path(sys.executable).with_name("selfloop"))
    folder = Path(__file__).parent
    command = [selfloop, "check", "MODULE.yaml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
'''


@new.callback()
def kinds() -> None:
    """Begin a method of your own."""


@new.command()
def recipe(
    name: Annotated[str, typer.Argument(metavar="NAME", help="of the method, e.g. best-of-n")],
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> None:
    """Write a method to start from into the working folder: its page, a config and a test."""
    with outcomes(debug):
        page, config, test = new_recipe(name, Path.cwd())
        print(f"Written: {page.name}, {config.name}, {test.name}. docs/write-a-method.md says what is what.")
        print(f"  check it:  selfloop check {config.name}")
        print(f"  run it:    selfloop run {config.name}")
        print(f"  test it:   python -m pytest {test.name}")


def new_recipe(name: str, folder: Path) -> list[Path]:
    """Write page, config and test into the folder. Raises InputError for a name that will not do, and where a file is there."""
    module = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", module) or keyword.iskeyword(module):
        raise InputError(f"{name!r} is no name for a method: small letters, digits and -, e.g. best-of-n")
    texts = {f"{module}.py": PAGE, f"{module}.yaml": CONFIG, f"test_{module}.py": TEST}
    if there := [file for file in texts if (folder / file).exists()]:
        raise InputError(f"{', '.join(there)} is there already, and is left as it is. Take another name")
    kind = "".join(part.capitalize() for part in module.split("_"))
    if importlib.util.find_spec(module) is not None or re.search(rf"import .*\b{kind}\b", PAGE):
        raise InputError(f"{name!r} is the name of something that is imported elsewhere. Take another name")
    words = {"TITLE": name.replace("-", " ").replace("_", " ").capitalize(), "MODULE": module, "KIND": kind}
    for file, text in texts.items():
        filled = re.sub("|".join(words), lambda found: words[found[0]], text)
        with (folder / file).open("x", encoding="utf-8") as out:
            out.write(filled)
    return [folder / file for file in texts]
