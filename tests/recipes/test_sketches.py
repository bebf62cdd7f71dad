"""Twelve sketches: each builds, passes the lint and runs two iterations on the local runtime with a fake engine."""

from __future__ import annotations

import functools
import inspect
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from selfloop.actors.generate.generator import make_engine
from selfloop.actors.generate.spec import EngineSpec
from selfloop.actors.train.fake import FakeTrainer
from selfloop.workflows.flow.lint import lint
from selfloop.workflows.flow.recipe import Recipe
from selfloop.workflows.pocket.source import POCKET_MODEL
from selfloop.workflows.report.console import Console
from selfloop.workflows.run.local import local_runtime
from selfloop.workflows.run.loop import loop
from selfloop.workflows.store.folder import RunFolder
from tests.recipes.sketches import (
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
from tests.unit.flows import fake_config, rows_of, setup_of

SKETCHES: dict[str, tuple[Recipe, answers.Says]] = {
    "dno": (dno.DNO(), answers.dno),
    "temporal-self-rewarding": (temporal_self_rewarding.TemporalSelfRewarding(), answers.digits),
    "i-sheep": (i_sheep.ISheep(tasks=80), answers.i_sheep),
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


@dataclass(frozen=True)
class Ran:
    """The folder of a sketch's two iterations, and what its trainer was given."""

    path: Path
    works: list[Any]

    def rows(self, iteration: int, node: str) -> list[dict[str, Any]]:
        return rows_of(self.path, iteration, node)

    def works_of(self, iteration: int) -> list[Any]:
        return [work for work in self.works if work.version == iteration]


@functools.cache
def ran(slug: str, root: Path) -> Ran:
    sketch, says = SKETCHES[slug]

    def script(ids: Any, seed: int, version: int) -> str:
        return says(text_of(ids), random.Random(seed))

    def labels(ids: Any, labels: Any, version: int) -> list[float]:
        return [-random.Random(f"{ids}{label}").random() for label in labels]

    setup, folder = setup_of(config(), sketch), RunFolder(root / slug)
    folder.open(setup.config.model_dump(mode="json"))
    engine = make_engine(EngineSpec("fake", str(setup.folder), options={"script": script, "labels": labels}))
    trainer = FakeTrainer(str(setup.folder))
    runtime, job = local_runtime(setup, folder, engine, trainer)
    loop(setup, folder, runtime, job, Console(live=False))
    folder.close()
    return Ran(root / slug, trainer.works)


def text_of(ids: Any) -> str:
    return tokenizer().decode(list(ids), skip_special_tokens=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sketches")


@pytest.mark.parametrize("slug", SKETCHES)
def test_a_sketch_passes_the_lint(slug: str) -> None:
    assert lint(setup_of(config(), SKETCHES[slug][0]).planner) == []


@pytest.mark.parametrize("slug", SKETCHES)
def test_a_sketch_runs_two_iterations(slug: str, root: Path) -> None:
    run = ran(slug, root)
    assert RunFolder(run.path).manifest(2)["complete"]
    for work in run.works:
        assert work.table.num_rows > 0, f"{work.role}@{work.version}"


def test_sketches_are_short(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines of the recipe class, and of its file with prompts, parsers and rules."""
    table = [f"{'sketch':<26}{'recipe':>8}{'file':>8}"]
    for slug, (sketch, _) in SKETCHES.items():
        recipe, file = (
            len(inspect.getsource(thing).splitlines())
            for thing in (type(sketch), inspect.getmodule(type(sketch)))
        )
        table.append(f"{slug:<26}{recipe:>8}{file:>8}")
        assert recipe <= 60 and file <= 135, slug
    with capsys.disabled():
        print("\n" + "\n".join(table))


def row(score: float | None, **more: Any) -> dict[str, Any]:
    return {"score": score, "response": f"say {score}", "version": 1, "status": "ok", **more}


def scores(pairs: list[Any]) -> list[tuple[float, float]]:
    return [(one["score"], other["score"]) for one, other, *_ in pairs]


def start_is(work: Any, where: str) -> bool:
    return Path(work.start).as_posix().endswith(where)


BASE = "pocket/base"


def test_dno(root: Path) -> None:
    rng = random.Random(0)
    rows = [row(6, version=None), *map(row, (5, 5, 4, 3, 2))]
    pairs = dno.wide_pairs(rows, rng)
    assert [s for s in scores(pairs) if s[0] == 6] == [(6, 4), (6, 3), (6, 2)] and len(pairs) == 9
    rows = [row(4, version=None), *map(row, (5, 5, 3, 2, 1))]
    assert sum(other["version"] is None for _, other in dno.wide_pairs(rows, rng)) == 2
    loops = row(6, response="a b c d a b c d")
    assert dno.wide_pairs([loops, row(5)], rng) == [(row(5), loops)]
    run = ran("dno", root)
    new, old = run.rows(2, "pairs"), run.rows(1, "pairs")
    assert run.works[1].table.num_rows == len(new) + int(0.3 * len(old))
    assert run.works[1].start == run.works[1].reference and start_is(run.works[1], "iteration=0001/policy")
    assert not {one["prompt_id"] for one in new} & {one["prompt_id"] for one in old}
    teachers = [one for one in run.rows(1, "play") if one["version"] is None]
    assert len(teachers) == 8 and all(one["response"] == one["answer"] for one in teachers)


def test_temporal_self_rewarding(root: Path) -> None:
    def pick(present: Any, past: Any, future: Any = ()) -> Any:
        rows = [
            row(s, node=n)
            for n, every in (("present", present), ("past", past), ("future", future))
            for s in every
        ]
        pairs = temporal_self_rewarding.past_and_future(rows, random.Random(0))
        return [(one["score"], one["node"], other["score"], other["node"]) for one, other in pairs]

    assert pick((4.0, 3.5, 2.0), (3.0, 1.0)) == [(4.0, "present", 1.0, "past")]
    assert pick((4.0, 1.0), (3.0, 2.0)) == [(4.0, "present", 1.0, "present")]
    assert pick((4.0, 1.0), (3.0, 1.0)) == [(4.0, "present", 1.0, "present")]
    assert pick((4.0,), (1.0,), (4.5, 4.0))[0][:2] == (4.5, "future") and pick((4.0,), (1.0,), (4.0,))[0][
        :2
    ] == (4.0, "present")
    run = ran("temporal-self-rewarding", root)
    ahead, made = run.works_of(2)
    assert ahead.start == made.start == ahead.reference == made.reference and start_is(
        made, "iteration=0001/policy"
    )
    assert {one["model"] for one in run.rows(2, "past")} == {"policy@0"}
    assert {one["model"] for one in run.rows(2, "future")} == {"policy@2#ahead"}
    assert len(run.rows(2, "pair-2")) >= len(run.rows(2, "pair"))


def test_i_sheep(root: Path) -> None:
    parse = i_sheep.Grade(of="quality").parse
    read = [parse(text) for text in ("9", "8.6 || ok", "8.5 || ok", "9/10", "good", "11")]
    assert read == [9, 9, 8, 9, None, None]
    run = ran("i-sheep", root)
    assert all(start_is(work, BASE) and work.optimizer == "fresh" for work in run.works)
    first, second = (run.rows(k, "sample")[0]["prompt_ids"] for k in (1, 2))
    assert "<|" not in text_of(first) and text_of(second).startswith("<|user|>")
    assert all(min(one["quality"], one["following"]) > 8 for one in run.rows(2, "keep-2"))
    tasks = [one["prompt"][0]["content"] for one in run.rows(2, "tasks/pool")]
    assert len(tasks) == 80 and all(i_sheep.unlike(text, tasks[:k]) for k, text in enumerate(tasks))
    assert len(run.rows(2, "tasks/round-2/sample")) == 12 and not run.rows(2, "tasks/round-3/sample")


def test_self_align(root: Path) -> None:
    kept = [self_align.without_repeats({"response": text}) for text in ("X. A. B. A. C.", "A. B. A. C.")]
    assert kept == ["X. A. B.", "A. B. A. C."]
    run = ran("self-align", root)
    assert all(start_is(work, BASE) for work in run.works) and len(run.works) == 4
    seen = [
        text_of(one["prompt_ids"] + one["response_ids"])
        for work in run.works
        for one in work.table.to_pylist()
    ]
    assert not any("principles" in text or "Selfloop" in text or "at length" in text for text in seen)
    topics = [one["meta"] for one in run.rows(1, "gather")]
    assert len({topics.count(kind) for kind in topics}) == 1


def test_salmon(root: Path) -> None:
    rng = random.Random(0)
    drawn = [salmon.geometric(rng) for _ in range(20000)]
    assert {*drawn} == {*range(1, 9)} and sum(drawn) / len(drawn) == pytest.approx(3.387, abs=0.05)
    run = ran("salmon", root)
    assert [work.role for work in run.works] == ["reward", "policy", "critic", "policy", "critic"]
    assert Path(run.works[2].start).name == "reward" and start_is(run.works[4], "iteration=0001/critic")
    assert RunFolder(run.path).manifest(2)["roles"]["reward"]["folder"].endswith("iteration=0001/reward")
    rollout = run.rows(2, "measure")[0]
    assert "be " not in text_of(rollout["prompt_ids"]) and "be " in text_of(rollout["judged_prompt_ids"])
    assert rollout["judged_ids"] == rollout["response_ids"]
    for one in run.rows(1, "gather"):
        signs = zip(one["one"], one["two"], one["leads"], strict=True)
        assert all((lead == 0) == (a * b <= 0) for a, b, lead in signs)


def test_evolve(root: Path) -> None:
    run = ran("evolve", root)
    activate, first = run.works_of(1)
    assert start_is(activate, BASE) and Path(first.start) == Path(first.reference) != Path(activate.start)
    contexts = [
        (one["weight"], "improve" in text_of(one["prompt_ids"]))
        for one in run.works_of(2)[0].table.to_pylist()
    ]
    assert {*contexts} == {(1.0, False), (1.0, True)} and len(contexts) == 2 * len(run.rows(1, "pairs"))
    lessons = activate.table.to_pylist()
    assert {"improve" in text_of(one["response_prompt_ids"]) for one in lessons} == {False, True}
    assert all(one["response_ids"] == one["chosen_ids"] for one in lessons)
    chain = run.rows(2, "play")[:4]
    assert [one["sample"] for one in chain] == [0, 1, 2, 3] and {one["model"] for one in chain} == {
        "policy@2#train"
    }
    assert all(chain[k]["response"] in text_of(chain[k + 1]["prompt_ids"]) for k in range(3))
    pair = run.rows(2, "pairs")[0]
    assert pair["chosen_sample"] == 3 and pair["rejected_sample"] == 0 and pair["chosen_logprobs"] is None


def test_cut(root: Path) -> None:
    for one in ran("cut", root).works[1].table.to_pylist():
        assert one["judged_ids"] == one["response_ids"]
        assert (one["judged_prompt_ids"] == one["prompt_ids"]) == (one["label"] == 1)
        assert "wrong at" not in text_of(one["prompt_ids"])
    labels = [one["label"] for one in ran("cut", root).rows(1, "gather")]
    assert labels.count(1) <= 0.25 * labels.count(0)


def test_augcon(root: Path) -> None:
    run = ran("augcon", root)
    for one in run.rows(1, "lessons"):
        assert "reasons" not in text_of(one["prompt_ids"]) and one["parent"]
    chunks: dict[str, list[Any]] = {}
    for one in run.rows(1, "keep"):
        chunks.setdefault(one["prompt_id"], []).append(one)
    for kept in chunks.values():
        every = [one for one in run.rows(1, "measure") if one["prompt_id"] == kept[0]["prompt_id"]]
        quota = max(len(one["context"]) for one in every) // 35
        assert len(kept) <= quota and max(every, key=lambda one: one["quality"]) in kept
    contexts = [len(one["context"]) for one in run.rows(1, "play")]
    assert max(contexts) > 100 and min(contexts) < 60
    assert {one["edited"] for one in run.rows(1, "edit")} == {True}


def test_tree_plv(root: Path) -> None:
    run = ran("tree-plv", root)
    steps = {(one["prompt_id"], tuple(one["response_ids"])): one for one in run.rows(1, "play")}
    assert {one["score"] for one in steps.values()} <= {k / 8 for k in range(9)} and len(
        {one["under"] for one in steps.values()}
    ) > 1
    for pair in run.rows(1, "pair"):
        one, other = (steps[pair["prompt_id"], tuple(pair[side])] for side in ("chosen_ids", "rejected_ids"))
        assert one["under"] == other["under"] and pair["chosen_score"] - pair["rejected_score"] >= 0.375
    assert [work.role for work in run.works] == ["verifier"] * 2
    assert RunFolder(run.path).manifest(2)["roles"].keys() == {"verifier"}
    assert len(run.rows(1, "solutions")) == 8


def test_rain(root: Path) -> None:
    search = rain.Search(rain.Rain(), None, {})  # type: ignore[arg-type]
    above, child = rain.Node("", n=4), rain.Node("", prior=0.5, n=1)
    assert search.worth(child, above) == pytest.approx(0.5 + 1.0, abs=1e-4)  # q 0 is the middle of [-1, 1]
    assert search.worth(rain.Node("", prior=0.0), above) == 0.0
    run = ran("rain", root)
    assert not run.works and all(
        one["status"] == "ok" and one["response_ids"] for one in run.rows(2, "answers")
    )
    assert all(one["model"] == "policy@0" for one in run.rows(1, "answers"))


def test_spo(root: Path) -> None:
    run = ran("spo", root)
    first, second = run.rows(1, "best")[0], run.rows(2, "best")[0]
    assert first["wins"] == 4 and second["best"] == (second["tried"] if second["wins"] > 2 else first["best"])
    assert not run.works and second["prompt_id"] == first["prompt_id"]


def test_muscle(root: Path) -> None:
    update, made = ran("muscle", root).works_of(2)
    assert start_is(update, BASE) and made.start == update.out == made.frozen["second"]
    assert made.frozen["first"].endswith("iteration=0001/policy")
