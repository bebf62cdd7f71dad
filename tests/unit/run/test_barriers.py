"""Prompt groups stay whole, and the streams of a merge together, whatever the batch size and the barriers before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from selfloop.actors.judge.worker import Worker
from selfloop.workflows.data.batches import Counts, count_batch, split_groups, whole_groups
from selfloop.workflows.flow.iteration import Iteration
from selfloop.workflows.flow.lint import lint
from selfloop.workflows.flow.recipe import Recipe
from selfloop.workflows.flow.stream import Model, Stream
from selfloop.workflows.flow.verbs.base import Context
from selfloop.workflows.flow.verbs.whole import Gather
from selfloop.workflows.objectives.dpo import DPO
from selfloop.workflows.objectives.sft import SFT
from selfloop.workflows.store.parts import read_batches
from tests.unit.flows import fake_config, rows_of, run_on, setup_of


def problems(recipe: Recipe, **config: Any) -> list[str]:
    return lint(setup_of(fake_config(**config), recipe).planner)


def learn(it: Iteration, rows: Stream) -> Model:
    return it.policy.train(rows, SFT(), reference=None, optimizer="fresh")


def by_length(table: pa.Table, rng: Any) -> pa.Table:
    lengths = [len(ids) for ids in table["response_ids"].to_pylist()]
    return table.take(pa.array(sorted(range(len(lengths)), key=lambda row: (lengths[row], row))))


def without_three(table: pa.Table, rng: Any) -> pa.Table:
    return table.slice(3)


def as_it_is(table: pa.Table, rng: Any) -> pa.Table:
    return table


def ends(rows: list[Any], rng: Any) -> list[Any]:
    return [(rows[0], rows[-1])] if len(rows) > 1 else []


def table_of(names: str) -> pa.Table:
    return pa.table({"prompt_id": list(names), "row": range(len(names))})


# groups after a barrier


class Sorted(Recipe):
    def iteration(self, it: Iteration) -> Model:
        pairs = it.prompts().sample(it.policy, n=4).gather(by_length).pair(ends)
        return it.policy.train(pairs, DPO(), reference=it.policy, optimizer="fresh")


def test_pairs_do_not_depend_on_the_batch_size_after_a_barrier_that_sorts(tmp_path: Path) -> None:
    pairs = []
    for size in (5, 64):
        run_on("local", fake_config(iterations=1, batch_size=size), tmp_path / str(size), Sorted())
        pairs.append(rows_of(tmp_path / str(size), 1, "pair"))
    assert pairs[0] == pairs[1] and len(pairs[0]) > 20


def test_a_barrier_on_a_worker_gives_whole_groups() -> None:
    packed, counted = Worker().gather(Gather(as_it_is), Context("gather", 1, 0), 2, [table_of("bacbaab")])
    (made,) = read_batches([packed])
    assert "".join(made["prompt_id"].to_pylist()) == "bbbaaac"
    assert made["row"].to_pylist() == [0, 3, 6, 1, 4, 5, 2] and [one.rows for one in counted] == [6, 1]


def test_grouped_rows_are_left_as_they_are() -> None:
    table = pa.concat_tables([table_of("bb"), table_of("baa"), table_of("c")])
    assert (
        whole_groups(table) is table
        and split_groups(table, 2) == [5, 1]
        and split_groups(table, 1) == [3, 2, 1]
    )
    assert whole_groups(numbers := pa.table({"name": ["a"]})) is numbers and split_groups(numbers, 2) == [1]
    assert whole_groups(none := table.slice(0, 0)) is none and split_groups(none, 2) == [0]


# merges


class MergedBehindABarrier(Recipe):
    def iteration(self, it: Iteration) -> Model:
        prompts = it.prompts()
        fewer = prompts.sample(it.policy, name="b").gather(without_three)
        return learn(it, prompts.sample(it.policy).merge(fewer))


class MergedSources(Recipe):
    def iteration(self, it: Iteration) -> Model:
        given = it.data("given").demonstrate(it.initial, column="chosen")
        return learn(it, it.prompts().sample(it.policy).merge(given))


class MergedWithSaved(Recipe):
    def iteration(self, it: Iteration) -> Model:
        new = it.prompts().sample(it.policy).save("kept", name="kept")
        old = it.saved("kept")
        return learn(it, new if old is None else new.merge(old))


class Together(Recipe):
    """What the refusal names as the way out."""

    def iteration(self, it: Iteration) -> Model:
        prompts = it.prompts()
        fewer = prompts.sample(it.policy, name="b").gather(without_three)
        return learn(it, prompts.sample(it.policy).concat(fewer).gather(as_it_is, name="together"))


class MergedAlike(Recipe):
    """Streams of one source, of one slice of rows, of one barrier, of concatenated ones, of saved ones and within grow."""

    def iteration(self, it: Iteration) -> Model:
        one, same = it.prompts(), it.prompts(name="same")
        rows = one.sample(it.policy, n=2).keep(ends_kept).merge(same.sample(it.policy, name="again"))
        behind = rows.gather(without_three)
        both = behind.keep(ends_kept).concat(rows).merge(behind.concat(rows))
        one.sample(it.policy, name="left").save("x")
        one.sample(it.policy, name="right").save("y")
        x, y = it.saved("x"), it.saved("y")
        grown = it.grow(self.attempt, until=4, rounds=3)
        return learn(it, both.concat(grown) if x is None or y is None else both.concat(grown, x.merge(y)))

    def attempt(self, it: Iteration) -> Stream:
        return it.prompts().sample(it.policy).merge(it.prompts().sample(it.policy))


def ends_kept(rows: list[Any], rng: Any) -> list[Any]:
    return rows[:1]


GIVEN = {"given": {"options": {"preferences": True, "size": 24}}}


@pytest.mark.parametrize(("recipe", "words"), [
    (MergedBehindABarrier(), "batch k of 'sample' (cut by 'prompts') with batch k of 'gather' (cut by 'gather')"),
    (MergedSources(), "'demonstrate' (cut by 'given')"),
    (MergedWithSaved(), "'kept@1' (cut by 'kept@1')"),
])  # fmt: skip
def test_a_merge_of_streams_that_are_not_cut_alike_is_refused(recipe: Recipe, words: str) -> None:
    data = GIVEN if isinstance(recipe, MergedSources) else {}
    found = problems(recipe, data=data)
    assert len(found) == 1 and words in found[0] and "a.concat(b).gather(…)" in found[0], found


def test_a_merge_of_streams_that_are_cut_alike_is_not() -> None:
    assert problems(MergedAlike(), iterations=4) == []


def test_the_way_out_of_a_refused_merge_brings_the_prompts_together(tmp_path: Path) -> None:
    assert problems(Together()) == []
    run_on("local", fake_config(iterations=1), tmp_path / "run", Together())
    names = [row["prompt_id"] for row in rows_of(tmp_path / "run", 1, "together")]
    starts = [name for place, name in enumerate(names) if place == 0 or name != names[place - 1]]
    assert len(names) == 45 and len(starts) == len(set(names)) == 24


# counts


def test_rows_that_were_never_judged_are_not_counted_among_verdicts() -> None:
    judged = pa.table({"score_state": ["score", "failed", "score"], "score": [1.0, None, 2.0]})
    merged = pa.concat_tables([judged, pa.table({"other": [1, 2]})], promote_options="default")
    assert count_batch(merged).entry() == {
        "rows": 5,
        "score_state": {"failed": 1, "score": 2},
        "score_sum": 3.0,
    }
    assert count_batch(pa.table({"score_state": pa.nulls(2)})).entry() == {"rows": 2, "score_state": {}}


def test_counts_say_in_parts_and_manifests_what_they_always_said() -> None:
    judged = {"score_state": {"failed": 1, "score": 2}, "score_sum": 3.0}
    one = {
        "rows": 5,
        "groups": 2,
        "silent": 1,
        "failed": 0,
        **judged,
        "truncated": 1,
        "tokens": 9,
        "seconds": 0.5,
    }
    for entry in (one, {"rows": 2, "score_state": {}}, {"rows": 0}):
        assert list(Counts.of({**entry, "parts": 1, "key": "x"}).entry().items()) == list(entry.items())
    both = (Counts() + Counts.of(one) + Counts.of({"rows": 1, "score_state": {"abstain": 1}})).entry()
    assert both == {**one, "rows": 6, "score_state": {"failed": 1, "score": 2, "abstain": 1}}


class HalfJudged(Recipe):
    def iteration(self, it: Iteration) -> Model:
        from selfloop.workflows.judges.votes import VoteShare

        prompts = it.prompts()
        judged = prompts.sample(it.policy, n=2).judge(VoteShare())
        return learn(it, judged.merge(prompts.sample(it.initial, name="unjudged")))


def test_judged_rows_merge_with_unjudged_ones(tmp_path: Path) -> None:
    run_on("local", fake_config(iterations=1), tmp_path / "run", HalfJudged())
    assert len(rows_of(tmp_path / "run", 1, "merge")) == 72


# folders


class Named(Recipe):
    """Saves rows under `saved`, beside a reward model (returned if `returned`) and one that is thrown away."""

    saved: str = "rows"
    ahead: str = "ahead"
    reward: str = "make-reward"
    returned: bool = True

    def iteration(self, it: Iteration) -> Any:
        rows = it.prompts().sample(it.policy)
        rows.save(self.saved)
        made = it.policy.train(
            rows, SFT(), reference=None, optimizer="fresh", role="reward", name=self.reward
        )
        ahead = it.policy.train(rows, SFT(), reference=None, optimizer="fresh", name=self.ahead)
        later = rows.measure(ahead).measure(made, column="other")
        policy = learn(it, later)
        return {"policy": policy, "reward": made} if self.returned else policy


@pytest.mark.parametrize(("recipe", "node", "role"), [
    (Named(saved="policy"), "policy", "policy"),
    (Named(saved="policy-state"), "policy-state", "policy"),
    (Named(saved="policy/rows"), "policy/rows", "policy"),
    (Named(saved="reward"), "reward", "reward"),
    (Named(saved="reward", returned=False), "reward", "reward"),
    (Named(ahead="policy"), "policy", "policy"),
])  # fmt: skip
def test_rows_in_the_folder_of_a_checkpoint_are_refused(recipe: Recipe, node: str, role: str) -> None:
    found = problems(recipe)
    assert len(found) == 1, found
    assert f"node {node!r} writes into the folder" in found[0] and f"role {role!r}" in found[0]


class SourceNamedLikeARole(Recipe):
    def iteration(self, it: Iteration) -> Model:
        return learn(it, it.prompts(name="policy").sample(it.policy))


@pytest.mark.parametrize("recipe", [
    Named(), Named(reward="reward"), Named(reward="reward", returned=False), Named(saved="policy-2"), SourceNamedLikeARole(),
])  # fmt: skip
def test_other_names_are_not(recipe: Recipe) -> None:
    assert problems(recipe) == []
