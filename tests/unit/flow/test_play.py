"""The verb play: what programs see and give, seeds, coalescing, failures, both runtimes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from selfloop.actors.generate.fake import FakeEngine
from selfloop.actors.generate.spec import EngineSpec
from selfloop.workflows.errors import EngineError, FailedRowsError, RecipeError
from selfloop.workflows.flow.asks import Ask
from selfloop.workflows.flow.iteration import Iteration
from selfloop.workflows.flow.lint import lint
from selfloop.workflows.flow.recipe import Recipe
from selfloop.workflows.flow.stream import Model
from selfloop.workflows.flow.verbs.base import Context
from selfloop.workflows.flow.verbs.play import AskError, Play, Player
from selfloop.workflows.models.codec import codec_of
from selfloop.workflows.objectives.sft import SFT
from selfloop.workflows.pocket.source import POCKET_MODEL, pocket_prompts
from selfloop.workflows.store.folder import RunFolder
from selfloop.workflows.store.keys import identity
from selfloop.workflows.store.parts import read_table, row_hash
from tests.unit.flows import close_shared_actors, fake_config, rows_of, run_on, setup_of

USER = [{"role": "user", "content": "count 1 in 1 2"}]


class Counting(FakeEngine):
    """Notes how many asks each call brought."""

    def __init__(self, **options: Any):
        super().__init__(EngineSpec("fake", str(POCKET_MODEL), options=options))
        self.calls: list[int] = []

    async def sample(self, asks: Sequence[Ask]) -> Any:
        self.calls.append(len(asks))
        return await super().sample(asks)


def play(
    program: Any, engine: Any = None, prompts: int = 6, adds: Any = (), **context: Any
) -> list[dict[str, Any]]:
    told = Context(
        "play", 1, 7, "policy@0", engine=engine or Counting(), codec=codec_of(str(POCKET_MODEL)), **context
    )
    table = pocket_prompts("train", 50, 0).slice(0, prompts)
    return asyncio.run(Play(program, ("policy",), tuple(adds), max_tokens=16).run([table], told)).to_pylist()


async def twice(player: Player, rows: list[Any], rng: Any) -> Any:
    first = await player.policy.say(rows[0]["prompt"])
    second = await player.policy.say([*rows[0]["prompt"], *first.row()["completion"], *USER])
    return [first, second.row(seen=first.text)]


def test_rows_have_all_that_training_needs() -> None:
    rows = play(twice, adds=[("seen", pa.string())])
    codec = codec_of(str(POCKET_MODEL))
    assert len(rows) == 12 and [row["sample"] for row in rows[:3]] == [0, 1, 0]
    for row in rows:
        assert (
            row["status"] == "ok"
            and row["model"] == "policy@0"
            and row["node"] == "play"
            and row["version"] == 0
        )
        assert (
            len(row["response_ids"]) == len(row["response_logprobs"]) > 0
            and row["completion"][0]["content"] == row["response"]
        )
    assert rows[0]["prompt_ids"] == codec.encode(rows[0]["prompt"]) != rows[1]["prompt_ids"]
    assert rows[1]["seen"] == rows[0]["response"] and rows[0]["seen"] is None


def test_asks_of_one_turn_are_one_call() -> None:
    engine = Counting()
    play(twice, engine, prompts=50, adds=[("seen", pa.string())])
    assert engine.calls == [50, 50]


def test_what_a_program_says_depends_on_its_row_alone() -> None:
    async def late(player: Player, rows: list[Any], rng: Any) -> Any:
        await asyncio.sleep(0.002 * rng.random())
        return await twice(player, rows, rng)

    adds = [("seen", pa.string())]
    everyone, alone = play(twice, adds=adds), play(twice, prompts=1, adds=adds)
    assert everyone == play(late, adds=adds) and everyone[:2] == alone


def test_equal_asks_differ_by_their_number() -> None:
    async def program(player: Player, rows: list[Any], rng: Any) -> Any:
        return [*await player.policy.sample(USER, n=2), await player.policy.say(USER)]

    rows = play(program)
    assert len({row["seed"] for row in rows}) == len(rows) == 18


def test_a_continuation_keeps_the_tokens_that_were_said() -> None:
    async def program(player: Player, rows: list[Any], rng: Any) -> Any:
        begun = await player.policy.say(USER, max_tokens=2)
        whole = await player.policy.say(USER, after=begun)
        given = await player.policy.say(USER, after="12")
        with pytest.raises(ValueError, match="has ended"):
            await player.policy.say(USER, after=whole)
        assert (
            whole.ids[:2] == begun.ids
            and len(whole.ids) == 2 + whole.new == len(whole.logprobs)
            and whole.ended
        )
        assert (
            whole.prompt_ids == begun.prompt_ids
            and given.prompt_ids[: len(begun.prompt_ids)] == begun.prompt_ids
        )
        assert whole.text == begun.text + whole.step
        return whole

    engine = Counting(script=lambda ids, seed, version: [20, 21, 22])
    assert all(row["status"] == "ok" for row in play(program, engine))


def test_labels_are_asked_together() -> None:
    async def program(player: Player, rows: list[Any], rng: Any) -> Any:
        values = await asyncio.gather(player.policy.label_logprobs(USER, ["A", "B"]),
                                      player.policy.label_logprobs(rows[0]["prompt"], ["yes", "no"], after="1"))  # fmt: skip
        assert values[0] != values[1]
        return {"gap": values[0][0] - values[0][1]}

    rows = play(program, adds=[("gap", pa.float64())])
    assert all(row["gap"] == rows[0]["gap"] is not None and row["response_ids"] is None for row in rows)


def test_a_program_that_raises_is_a_failed_row() -> None:
    async def program(player: Player, rows: list[Any], rng: Any) -> Any:
        if rows[0]["answer"] == first:
            raise KeyError("nothing")
        return await player.policy.say(rows[0]["prompt"])

    first = pocket_prompts("train", 50, 0)["answer"][0].as_py()
    rows = play(program)
    assert rows[0]["status"] == "failed" and "raised KeyError: 'nothing'" in rows[0]["error"]
    assert [row["status"] for row in rows].count("ok") == 5


def test_a_refused_ask_fails_its_row_unless_caught() -> None:
    async def careless(player: Player, rows: list[Any], rng: Any) -> Any:
        return await player.policy.say([{"role": "user", "content": "1" * 2000}])

    async def careful(player: Player, rows: list[Any], rng: Any) -> Any:
        try:
            return await careless(player, rows, rng)
        except AskError:
            return await player.policy.say(USER)

    assert {row["status"] for row in play(careless)} == {"failed"}
    assert {row["status"] for row in play(careful)} == {"ok"}


def test_a_broken_engine_is_an_error_not_a_row() -> None:
    with pytest.raises(EngineError):
        play(twice, Counting(fail_on={"ids": [], "how": "raise"}), adds=[("seen", pa.string())])


def test_an_undeclared_column_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"'seen', which nobody declared; add adds="):
        play(twice)


def test_a_new_prompt_opens_a_group_with_a_parent() -> None:
    async def program(player: Player, rows: list[Any], rng: Any) -> Any:
        return [{"prompt": USER}, {"prompt": USER}, await player.policy.say(USER)]

    rows = play(program, prompts=2)
    assert [row["parent"] is None for row in rows] == [False, False, True] * 2
    assert len({row["prompt_id"] for row in rows}) == 6 and rows[0]["parent"] == rows[2]["prompt_id"]


class Chain(Recipe):
    """Answer, then refine, beside the rows of another stream."""

    async def refine(self, player: Player, rows: list[Any], beside: list[Any], rng: Any) -> Any:
        assert len(beside) == 48
        said = await player.policy.say(
            [*rows[0]["prompt"], *rows[0]["completion"], *rng.choice(beside)["prompt"]]
        )
        return [{**rows[0]}, said.row(was=rows[0]["response"])]

    def iteration(self, it: Iteration) -> Model:
        prompts = it.prompts()
        answers = prompts.sample(it.policy, n=1)
        beside = prompts.sample(it.policy, n=2, name="beside")
        refined = answers.play(self.refine, policy=it.policy, beside=beside, adds={"was": pa.string()})
        plain = refined.recontext(own_prompt, tokens=it.policy, reads=("was",))
        return it.policy.train(plain, SFT(), reference=None, optimizer="fresh")


def own_prompt(row: Any) -> list[dict[str, str]]:
    return row["prompt"]


class Several(Recipe):
    def iteration(self, it: Iteration) -> Model:
        rows = it.prompts().play(twice, policy=it.policy, past=it.initial)
        return it.policy.train(rows, SFT(), reference=None, optimizer="fresh")


class Fails(Recipe):
    def iteration(self, it: Iteration) -> Model:
        rows = it.prompts().play(boom, policy=it.policy)
        return it.policy.train(rows, SFT(), reference=None, optimizer="fresh")


async def boom(player: Player, rows: list[Any], rng: Any) -> Any:
    raise ValueError("boom")


def test_a_key_knows_the_settings_of_a_recipe_whose_method_is_the_program() -> None:
    class Set(Chain):
        rounds: int = 1

    assert (
        identity(Set().refine)
        == identity(Set().refine)
        != identity(Set(rounds=2).refine)
        != identity(Chain().refine)
    )
    assert identity(Chain().refine) != identity(Chain().iteration)


def test_two_models_in_one_play_are_refused_with_the_way_out() -> None:
    found = lint(setup_of(fake_config(iterations=3), Several()).planner)
    assert any("policy=policy@1, past=policy@0" in one and "nodes before it" in one for one in found)


def test_too_many_failed_programs_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(FailedRowsError, match="24 of 24 rows failed"):
        run_on("local", fake_config(iterations=1, max_failed_rows=0.5), tmp_path, Fails())


@pytest.fixture(scope="module", autouse=True)
def one_cluster() -> Iterator[None]:
    yield
    close_shared_actors()


def hashes(path: Path) -> dict[str, str]:
    folder = RunFolder(path)
    return {
        node: row_hash([read_table(part.path) for part in folder.parts(2, node)])
        for node in ("sample", "play", "recontext")
    }


def test_a_chain_runs_and_does_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    for size in (5, 64):
        run_on("local", fake_config(batch_size=size), tmp_path / str(size), Chain())
    assert hashes(tmp_path / "5") == hashes(tmp_path / "64")
    rows = rows_of(tmp_path / "5", 2, "play")
    assert [row["sample"] for row in rows[:4]] == [0, 1, 0, 1] and {row["model"] for row in rows} == {
        "policy@1"
    }
    assert [row["node"] for row in rows[:2]] == ["sample", "play"] and rows[1]["was"] == rows[0]["response"]


@pytest.mark.real
def test_both_runtimes_play_alike(tmp_path: Path) -> None:
    for runtime in ("local", "ray"):
        run_on(runtime, fake_config(), tmp_path / runtime, Chain())
    assert hashes(tmp_path / "local") == hashes(tmp_path / "ray")
