"""What holds for every recipe because it is in the dict: one page, a config, a clean graph, a run of two iterations."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from selfloop import configs
from selfloop.workflows.config import load_config
from selfloop.workflows.flow.lint import lint, lint_graph
from selfloop.workflows.recipes import RECIPES
from selfloop.workflows.run.setup import Setup
from selfloop.workflows.store.folder import RunFolder
from tests.recipes.runs import pocket_config, run_recipe
from tests.unit.flows import rows_of

SLUGS = sorted(RECIPES)
CONFIGS = sorted(Path(str(configs.__file__)).parent.glob("*.yaml"))
SMALL = {"expert-iteration": {"samples": 4}, "grpo": {"samples": 4}}  # fewer samples: the same graph
OPEN = {"own-data": ["prompts.source=pocket", "model=pocket"]}  # what a config leaves to its user
each = pytest.mark.parametrize("slug", SLUGS)


@each
def test_a_recipe_is_a_page(slug: str) -> None:
    source = Path(inspect.getsourcefile(RECIPES[slug]) or "").read_text()
    assert len(source.splitlines()) <= 120
    assert not re.search(r"^\s*(import|from) (ray|torch|vllm|deepspeed|transformers)\b", source, re.MULTILINE)
    assert "selfloop.actors" not in source


@each
def test_a_recipe_names_its_paper_and_what_differs(slug: str) -> None:
    recipe = RECIPES[slug]
    assert recipe.title and recipe.paper
    text = inspect.cleandoc(recipe.__doc__ or "")
    differs = text.partition("Differs from the paper")[2]
    numbers = [int(number) for number in re.findall(r"^\s*(\d+)[.)]", differs, re.MULTILINE)]
    assert numbers and numbers == list(range(1, len(numbers) + 1))
    assert re.search(r"arXiv \d{4}\.\d{5}", text)


@each
def test_settings_are_said_and_closed(slug: str) -> None:
    assert RECIPES[slug].model_config.get("extra") == "forbid" and RECIPES[slug].model_config.get("frozen")
    with pytest.raises(ValueError, match="no_such_setting"):
        RECIPES[slug](no_such_setting=1)


@each
def test_the_graphs_of_all_iterations_are_clean(slug: str) -> None:
    planner = Setup(pocket_config(slug, iterations=5)).planner
    assert lint(planner) == []
    for index in (1, 2, 3, 5):
        graph = planner.graph(index)
        assert lint_graph(graph) == []
        assert graph.outputs["policy"].version == index


@each
def test_two_iterations_run_on_the_local_runtime(slug: str, tmp_path: Path) -> None:
    metrics = run_recipe(pocket_config(slug, SMALL.get(slug)), tmp_path / "run")
    assert [line["iteration"] for line in metrics] == [0, 1, 2]
    assert all(0 < line["heldout_accuracy"] < 1 for line in metrics)
    folder = RunFolder(tmp_path / "run")
    for index in (1, 2):
        manifest = folder.manifest(index)
        assert manifest["complete"] and manifest["nodes"]["train"]["steps"]
        samples = rows_of(tmp_path / "run", index, "sample")
        writers = set() if RECIPES[slug].kind == "offline" else {f"policy@{index - 1}"}
        assert {row["model"] for row in samples} == writers


@each
def test_a_recipe_has_a_small_config_and_one_for_gpus(slug: str) -> None:
    found = [path.stem for path in CONFIGS if load_config(str(path), OPEN.get(path.stem)).recipe == slug]
    assert any(name.endswith("-gpu") for name in found) and any(not name.endswith("-gpu") for name in found)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_its_settings_fit_the_recipe(path: Path) -> None:
    config = load_config(str(path), OPEN.get(path.stem))
    recipe = RECIPES[config.recipe](**config.settings)
    if config.model == "pocket":
        assert recipe == Setup(config).recipe and lint(Setup(config).planner) == []
