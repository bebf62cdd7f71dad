"""Twelve sketches: each builds, passes the lint and runs two iterations on the local runtime with a fake engine."""

from __future__ import annotations

import functools
import inspect
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from selfloop.actors.engines import EngineSpec, make_engine
from selfloop.actors.fakes import FakeTrainer
from selfloop.workflows.flow.lint import lint
from selfloop.workflows.flow.loop import local_runtime, loop
from selfloop.workflows.pocket.source import POCKET_MODEL
from selfloop.workflows.recipes.base import Recipe
from selfloop.workflows.report.console import Console
from selfloop.workflows.store.run import RunFolder

from ..unit.flows import fake_config, setup_of
from .sketches import (
    answers,
    augcon,
    cut,
    dno,
    evolve,
    i_sheep,
    muscle,
    rain,
    salmon,
    self_align,
    spo,
    temporal_self_rewarding,
    tree_plv,
)

SKETCHES: dict[str, tuple[Recipe, answers.Says]] = {
    "dno": (dno.DNO(), answers.dno),
    "temporal-self-rewarding": (temporal_self_rewarding.TemporalSelfRewarding(), answers.anything),
    "i-sheep": (i_sheep.ISheep(), answers.i_sheep),
    "self-align": (self_align.SelfAlign(), answers.self_align),
    "salmon": (salmon.Salmon(), answers.anything),
    "evolve": (evolve.Evolve(), answers.anything),
    "cut": (cut.CUT(), answers.cut),
    "augcon": (augcon.AugCon(), answers.augcon),
    "tree-plv": (tree_plv.TreePLV(), answers.tree_plv),
    "rain": (rain.Rain(turns=8, least_visits=2, longest=8), answers.rain),
    "spo": (spo.SPO(), answers.spo),
    "muscle": (muscle.Muscle(), answers.anything),
}
POCKET = {"source": "pocket", "options": {"size": 12}}
CORPUS = Path(__file__).parent / "sketches" / "corpus.jsonl"
SOURCES = ("seeds", "types", "identity", "examples", "task")


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(POCKET_MODEL / "tokenizer.json"))


def config() -> Any:
    """Twelve rows of each named source; the corpus holds texts of 150 characters."""
    prompts = {"heldout": 4, "per_iteration": 8, "options": {"size": 40}}
    return fake_config(prompts=prompts, data=dict.fromkeys(SOURCES, POCKET) | {"corpus": {"source": str(CORPUS)}}, max_failed_rows=0.2,
                       generator={"engine": "fake", "max_tokens": 200})  # fmt: skip


@functools.cache
def run_of(slug: str, root: Path) -> Path:
    """The folder of a sketch's two iterations."""
    sketch, says = SKETCHES[slug]

    def script(ids: Any, seed: int, version: int) -> str:
        return says(tokenizer().decode(list(ids), skip_special_tokens=False), random.Random(seed))

    def labels(ids: Any, labels: Any, version: int) -> list[float]:
        return [-random.Random(f"{ids}{label}").random() for label in labels]

    setup, folder = setup_of(config(), sketch), RunFolder(root / slug)
    folder.open(setup.config.model_dump(mode="json"))
    engine = make_engine(EngineSpec("fake", str(setup.folder), options={"script": script, "labels": labels}))
    runtime, job = local_runtime(setup, folder, engine, FakeTrainer(str(setup.folder)))
    loop(setup, folder, runtime, job, Console(live=False))
    folder.close()
    return root / slug


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sketches")


@pytest.mark.parametrize("slug", SKETCHES)
def test_a_sketch_passes_the_lint(slug: str) -> None:
    assert lint(setup_of(config(), SKETCHES[slug][0]).planner) == []


@pytest.mark.parametrize("slug", SKETCHES)
def test_a_sketch_runs_two_iterations(slug: str, root: Path) -> None:
    assert (run_of(slug, root) / "iteration=0002" / "manifest.json").exists()


def test_sketches_are_short(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines of the recipe class, and of its file with prompts, parsers and rules."""
    table = [f"{'sketch':<26}{'recipe':>8}{'file':>8}"]
    for slug, (sketch, _) in SKETCHES.items():
        recipe, file = (
            len(inspect.getsource(thing).splitlines())
            for thing in (type(sketch), inspect.getmodule(type(sketch)))
        )
        table.append(f"{slug:<26}{recipe:>8}{file:>8}")
        assert recipe <= 60 and file <= 120, slug
    with capsys.disabled():
        print("\n" + "\n".join(table))
