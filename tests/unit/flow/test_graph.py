"""What the graph language refuses before anything runs, and what it lets through."""

from __future__ import annotations

from typing import Any

import pytest

from selfloop.workflows.errors import InputError
from selfloop.workflows.flow.iteration import Iteration
from selfloop.workflows.flow.lint import lint
from selfloop.workflows.flow.recipe import Recipe
from selfloop.workflows.flow.stream import Model
from selfloop.workflows.flow.verbs.sample import Sample
from selfloop.workflows.judges.prompts.rubric import AdditiveRubric
from selfloop.workflows.judges.verifiers import VERIFIERS
from selfloop.workflows.judges.votes import VoteShare
from selfloop.workflows.objectives.dpo import DPO
from selfloop.workflows.objectives.sft import SFT
from selfloop.workflows.recipes import RECIPES
from selfloop.workflows.report.graph import describe, mermaid
from selfloop.workflows.rules.pairs import best_against_worst
from selfloop.workflows.run.setup import Setup
from selfloop.workflows.store.keys import identity
from tests.unit.flows import fake_config, setup_of


def problems(recipe: Recipe, **config: Any) -> list[str]:
    return lint(setup_of(fake_config(**config), recipe).planner)


class NoReference(Recipe):
    def iteration(self, it: Iteration) -> Model:
        pairs = it.prompts().sample(it.policy, n=2).judge(VoteShare()).pair(best_against_worst)
        return it.policy.train(pairs, DPO(), reference=None, optimizer="fresh")


class NoView(Recipe):
    def iteration(self, it: Iteration) -> Model:
        return it.policy.train(it.prompts().sample(it.policy), DPO(), reference=it.policy, optimizer="fresh")


class Unread(Recipe):
    def iteration(self, it: Iteration) -> Model:
        answers = it.prompts().sample(it.policy)
        answers.judge(VoteShare())
        it.policy.train(answers, SFT(), reference=None, optimizer="fresh", name="forgotten")
        return it.policy.train(answers, SFT(), reference=None, optimizer="fresh")


class Unsampled(Recipe):
    def iteration(self, it: Iteration) -> Model:
        judged = it.prompts().judge(VoteShare())
        return it.policy.train(judged, SFT(), reference=None, optimizer="fresh")


class Future(Recipe):
    def iteration(self, it: Iteration) -> Model:
        from selfloop.workflows.flow.graph import ModelRef

        later = Model(it.builder, ModelRef("policy", 7))
        return it.policy.train(it.prompts().sample(later), SFT(), reference=None, optimizer="fresh")


class Checks(Recipe):
    def iteration(self, it: Iteration) -> Model:
        rows = it.prompts().sample(it.policy).judge(it.verifier()).keep(best_against_worst)
        return it.policy.train(rows, SFT(), reference=None, optimizer="fresh")


class NotAModel(Recipe):
    def iteration(self, it: Iteration) -> Any:
        return it.prompts()


class NoJudgeModel(Recipe):
    def iteration(self, it: Iteration) -> Model:
        rows = it.prompts().sample(it.policy).judge(AdditiveRubric())
        return it.policy.train(rows, SFT(), reference=None, optimizer="fresh")


class NoData(Recipe):
    def iteration(self, it: Iteration) -> Model:
        return it.policy.train(it.data("demos"), SFT(), reference=None, optimizer="fresh")


@pytest.mark.parametrize(("recipe", "words"), [
    (NoReference(), "reference=None was given"),
    (NoView(), "learns from the view 'chosen'"),
    (Unsampled(), "reads response"),
    (Future(), "policy@7, which does not exist"),
    (NotAModel(), "must return a Model"),
    (NoJudgeModel(), "say which model judges"),
    (NoData(), "names no such source"),
])  # fmt: skip
def test_the_lint_finds_what_is_wrong(recipe: Recipe, words: str) -> None:
    assert any(words in problem for problem in problems(recipe)), problems(recipe)


def test_several_mistakes_are_found_together() -> None:
    found = problems(Unread())
    assert len(found) == 2
    assert any("nobody reads" in one for one in found) and any("'forgotten'" in one for one in found)


def test_a_checker_without_answers_is_refused(tmp_path: Any) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(f'{{"prompt": "say {k}"}}\n' for k in range(20)))
    found = problems(Checks(), prompts={"source": str(path), "heldout": 4}, judge="number")
    assert len(found) == 1 and "prompts.columns.answer" in found[0]


@pytest.mark.parametrize("slug", sorted(RECIPES))
def test_every_recipe_passes_the_lint(slug: str) -> None:
    assert lint(Setup(fake_config(slug, iterations=4)).planner) == []


@pytest.mark.parametrize("slug", sorted(slug for slug, recipe in RECIPES.items() if recipe.label_free))
def test_without_labels_answers_and_verifier_verdicts_reach_only_the_evaluation(slug: str) -> None:
    graph = Setup(fake_config(slug)).planner.graph(2)
    verifiers = tuple(VERIFIERS.values())
    for node in graph:
        if not node.evaluation:
            assert "answer" not in node.columns, f"{node.name} carries answers"
            judge = getattr(node.op, "judge", None)
            assert not isinstance(judge, verifiers), f"{node.name} is a verifier"
            assert not any(graph.nodes[name].evaluation for name in node.inputs)
    assert "answer" in graph.nodes["heldout-verified"].columns


def test_evaluation_comes_before_the_first_and_after_every_iteration() -> None:
    planner = Setup(fake_config(iterations=5, evaluation={"every": 2, "bootstrap": 100})).planner
    evaluated = [index for index in range(6) if "evaluation" in planner.graph(index).nodes]
    assert evaluated == [0, 2, 4, 5]
    saved = planner.graph(5).nodes["heldout-greedy-before"].saved
    assert saved is not None and (saved.iteration, saved.node) == (4, "heldout-greedy")


def test_check_prints_the_graph_as_text_and_mermaid() -> None:
    text = describe(fake_config("self-rewarding"))
    assert (
        "train <- pair" in text
        and "DPO from policy@1, reference policy@1, fresh optimizer -> policy@2" in text
    )
    assert "```mermaid\nflowchart LR" in text and "Devices:" in text
    assert mermaid(Setup(fake_config()).planner.graph(1)).count("-->") >= 8


def test_settings_of_a_node_know_functions_by_their_source() -> None:
    assert identity(best_against_worst) == identity(best_against_worst)
    assert identity(best_against_worst)[1] != identity(setup_of)[1]
    assert Sample(3).settings["n"] == 3


def test_prompts_go_on_where_the_last_iteration_stopped(tmp_path: Any) -> None:
    from selfloop.workflows.run.job import make_job
    from selfloop.workflows.store.folder import RunFolder

    setup = Setup(fake_config(prompts={"heldout": 8, "per_iteration": 10, "options": {"size": 24}}))
    job = make_job(setup, RunFolder(tmp_path), {})
    taken = [[name for batch in job.sources.batches(setup.planner.graph(index).nodes["prompts"].op, 64)  # type: ignore[arg-type]
              for name in batch["prompt_id"].to_pylist()] for index in (1, 2, 3)]  # type: ignore[index]  # fmt: skip
    assert [len(names) for names in taken[:2]] == [10, 10] and 8 <= len(taken[2]) <= 10
    assert all(
        len(set(names)) == len(names) for names in taken
    )  # also where an epoch ends within an iteration
    everything = {name for names in taken for name in names}
    assert len(set(taken[0] + taken[1])) == 20 and len(everything) == 24


def test_more_prompts_asked_than_there_are_takes_all_of_them_every_time(tmp_path: Any) -> None:
    from selfloop.workflows.flow.verbs.source import Source
    from selfloop.workflows.report.graph import describe
    from selfloop.workflows.run.job import make_job
    from selfloop.workflows.store.folder import RunFolder

    config = fake_config(prompts={"heldout": 8, "per_iteration": 41, "options": {"size": 24}})
    setup = Setup(config)
    job, everything = (
        make_job(setup, RunFolder(tmp_path), {}),
        set(setup.sources["prompts"]["prompt_id"].to_pylist()),
    )
    orders: list[list[str]] = []
    for index in (1, 2, 3):
        op = setup.planner.graph(index).nodes["prompts"].op
        assert isinstance(op, Source)
        orders.append(job.sources.rows(op)["prompt_id"].to_pylist())
        assert len(orders[-1]) == 24 and set(orders[-1]) == everything
    assert orders[0] != orders[1] != orders[2]
    assert "  prompts  [driver]  about 24 rows" in describe(config)
    assert setup.planner.build(1, dict(setup.planner.sources)).nodes["prompts"].op.count == 24  # type: ignore[union-attr]


def test_two_nodes_of_one_name_are_refused() -> None:
    class Twice(Recipe):
        def iteration(self, it: Iteration) -> Model:
            it.prompts().sample(it.policy, name="a")
            it.prompts(name="a")
            return it.policy

    with pytest.raises(InputError, match="two nodes of one iteration are named 'a'"):
        setup_of(fake_config(), Twice()).planner.build(1, setup_of(fake_config()).planner.sources)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["judge_model"])
def test_a_setting_that_nothing_obeys_yet_is_refused(name: str, tmp_path: Any) -> None:
    from selfloop.workflows.executor.run import run

    with pytest.raises(InputError, match=f"{name} is set, and this version"):
        run(fake_config(**{name: "somewhere"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
