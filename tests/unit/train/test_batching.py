from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from selfloop.actors.train.rows.examples import examples_of
from selfloop.actors.train.rows.micro import columns_of, micro_of
from selfloop.actors.train.rows.plan import Plan, Shapes, cut, deal
from selfloop.actors.train.rows.views import sequences_view
from selfloop.workflows.errors import ObjectiveError, TrainerError
from selfloop.workflows.objectives.base import Objective
from selfloop.workflows.objectives.dpo import DPO
from selfloop.workflows.objectives.policy_gradient import GRPO
from selfloop.workflows.objectives.ranking import AFT, PRO
from selfloop.workflows.objectives.reward_model import BradleyTerryRanking
from selfloop.workflows.objectives.sft import SFT
from tests.unit.train.trainer_rows import IDS, Likelihood, pair_rows, response_rows


def shapes_of(rows: list[list[tuple[str, int]]], *, flat: bool = True) -> Shapes:
    """Of rows of (context, tokens after it) sequences."""
    contexts = {
        name: [ord(sign) for sign in name] for name in dict.fromkeys(c for row in rows for c, _ in row)
    }
    flat_rows = [(contexts[name], [1] * size) for row in rows for name, size in row]
    view = sequences_view([context for context, _ in flat_rows], [target for _, target in flat_rows])
    bounds = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return Shapes({"": replace(view, row_bounds=bounds)}, flat=flat)


def computed(shapes: Shapes, rows: list[list[tuple[str, int]]], part: np.ndarray) -> int:
    """Tokens of a forward, counted another way."""
    sequences = [one for row in part for one in rows[row]]
    if not shapes.flat:
        return len(sequences) * max(len(context) + size for context, size in sequences)
    return sum(len(context) for context in {context for context, _ in sequences}) + sum(
        size for _, size in sequences
    )


@pytest.mark.parametrize("flat", [True, False])
def test_every_example_is_in_one_micro_batch_and_all_are_within_the_budget(flat: bool):
    rng = np.random.default_rng(0)
    for seed in range(12):
        prompts = ["".join(rng.choice(list("abcdefgh"), rng.integers(1, 60))) for _ in range(25)]
        rows = [
            [(str(rng.choice(prompts)), int(rng.integers(1, 300)))] * int(rng.integers(1, 3))
            for _ in range(100)
        ]
        shapes = shapes_of(rows, flat=flat)
        some = rng.permutation(100)[:80]
        parts = cut(shapes, some, 1024, parts=1 + seed % 3)
        assert sorted(np.concatenate(parts)) == sorted(some)
        for part in parts:
            assert shapes.cost(part) == computed(shapes, rows, part)
            assert shapes.cost(part) <= 1024 or len(part) == 1
        assert len(parts) % (1 + seed % 3) == 0


def test_rows_of_one_prompt_are_computed_together():
    rows = [[(prompt, size)] for size in (5, 9, 7) for prompt in ("a" * 50, "b" * 50, "c" * 50)]
    parts = cut(shapes_of(rows), np.arange(9), 75)
    assert sorted(sorted(part.tolist()) for part in parts) == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]


def test_padded_lines_of_a_skewed_distribution_waste_less_than_a_tenth():
    lengths = np.random.default_rng(1).lognormal(4.5, 1.0, 256).astype(int).clip(4, 2000)
    rows = [[("x", int(length) - 1)] for length in lengths]
    shapes = shapes_of(rows, flat=False)
    for budget in (2048, 8192, 65536):
        parts = cut(shapes, np.arange(256), budget)
        assert 1 - lengths.sum() / sum(shapes.cost(part) for part in parts) < 0.1
        assert len(parts) <= lengths.sum() / budget + 30


def test_an_example_over_the_budget_stands_alone():
    parts = cut(shapes_of([[("a", 10)], [("b", 5000)], [("c", 12)]]), np.arange(3), 100)
    assert [part.tolist() for part in parts] == [[1], [2, 0]]


def test_equal_lengths_make_as_few_micro_batches_as_the_budget_allows():
    rows = [[(f"{place:02d}", 30), (f"{place:02d}", 32)] for place in range(64)]
    assert [len(part) for part in cut(shapes_of(rows), np.arange(64), 1024)] == [16] * 4


def test_every_rank_gets_equally_many_micro_batches():
    parts = cut(shapes_of([[("a", 7)], [("b", 5)], [("c", 3)]]), np.arange(3), 100, parts=2)
    dealt = [deal(parts, rank, 2) for rank in range(2)]
    assert len(dealt[0]) == len(dealt[1])
    one = deal([np.array([0])], 1, 2)
    assert one == [None]


def test_an_epoch_takes_every_row_once_in_an_order_of_its_seed():
    plan = Plan(rows=10, batch_size=4, epochs=2, seed=3)
    assert plan.steps == 6
    first, second = (np.concatenate([plan.step(epoch * 3 + step) for step in range(3)]) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first.tolist() != second.tolist()
    assert np.array_equal(Plan(10, 4, 2, 3).step(4), plan.step(4))
    assert not np.array_equal(Plan(10, 4, 2, 4).step(0), plan.step(0))


@pytest.mark.parametrize(("epochs", "steps", "rows"), [(0.5, 2, 5), (1, 3, 10), (1.5, 5, 10), (0.01, 1, 1)])
def test_a_fraction_of_an_epoch(epochs: float, steps: int, rows: int):
    plan = Plan(rows=10, batch_size=4, epochs=epochs, seed=0)
    assert plan.steps == steps
    seen = [plan.step(index) for index in range(steps)]
    assert all(len(step) for step in seen)
    assert len(set(np.concatenate(seen))) == rows


def test_rows_are_sorted_and_failed_ones_left_out():
    table = response_rows(8)
    status = pa.array(["ok", "failed", None, "ok", "ok", "ok", "ok", "ok"])
    shuffled = table.set_column(table.schema.get_field_index("status"), "status", status).take(
        [5, 1, 7, 0, 2, 3, 6, 4]
    )
    examples = examples_of(shuffled, Likelihood())
    names = list(
        zip(examples.table["prompt_id"].to_pylist(), examples.table["sample"].to_pylist(), strict=True)
    )
    assert names == sorted(names)
    assert (len(examples), examples.left_out) == (7, {"failed": 1, "too_long": 0, "identical": 0})


def test_nothing_to_train_on():
    with pytest.raises(TrainerError, match="nothing to train on"):
        examples_of(response_rows(4).slice(0, 0), Likelihood())
    with pytest.raises(TrainerError, match="nothing to train on"):
        examples_of(pa.table({}), Likelihood())


def test_a_micro_batch_holds_all_views_in_one_matrix():
    table = pair_rows(6, seed=2)
    examples = examples_of(table, DPO())
    rows = np.array([4, 1, 2])
    micro = micro_of(examples.views, rows)
    assert micro.input_ids.shape[0] == 6
    sorted_rows = examples.table.to_pylist()
    for line, (view, row) in enumerate((view, row) for view in ("chosen", "rejected") for row in rows):
        whole = sorted_rows[row]["prompt_ids"] + sorted_rows[row][f"{view}_ids"]
        assert micro.input_ids[line, : len(whole)].tolist() == whole
        assert not micro.input_ids[line, len(whole) :].any()
    flat = micro.input_ids.reshape(-1)
    assert flat[micro.index + 1].tolist() == micro.targets.tolist()
    wanted = [
        token for view in ("chosen", "rejected") for row in rows for token in sorted_rows[row][f"{view}_ids"]
    ]
    assert micro.targets.tolist() == wanted
    spread = micro.spread(micro.targets.float(), "rejected")
    for line, row in enumerate(rows):
        ids = sorted_rows[row]["rejected_ids"]
        assert spread[line, : len(ids)].tolist() == ids
        assert micro.masks["rejected"][line].sum() == len(ids)


@pytest.mark.parametrize("seed", range(5))
def test_a_line_holds_each_context_once_and_every_answer(seed: int):
    examples = examples_of(pair_rows(16, seed=seed, longest=60), DPO())
    rows = np.random.default_rng(seed).permutation(16)
    shapes = Shapes(examples.views)
    plain, line = (micro_of(examples.views, rows, contexts=contexts) for contexts in (None, shapes.contexts))
    assert line.input_ids.shape == (1, shapes.cost(rows))
    assert line.tokens == plain.tokens
    assert line.tokens > shapes.cost(rows)
    assert line.targets.tolist() == plain.targets.tolist()
    assert line.layout is not None
    tokens = examples.table.to_pylist()
    flat, positions = line.input_ids[0], line.layout.positions[0]
    place = 0
    for view in ("chosen", "rejected"):
        assert torch.equal(line.masks[view], plain.masks[view])
        for number, row in enumerate(rows):
            prompt, answer = tokens[row]["prompt_ids"], tokens[row][f"{view}_ids"]
            index = line.index[place : place + len(answer)]
            assert positions[index].tolist() == list(range(len(prompt) - 1, len(prompt) + len(answer) - 1))
            assert flat[index].tolist() == [prompt[-1], *answer[:-1]]
            end = int(line.ends[line.sequences[view]][number])
            assert (int(flat[end]), int(positions[end])) == (answer[-1], len(prompt) + len(answer) - 1)
            place += len(answer)


def test_columns_of_a_micro_batch():
    examples = examples_of(response_rows(6), Likelihood())
    micro = micro_of(examples.views, np.array([3, 0]))
    batch = columns_of(examples, micro)
    assert set(batch) == {"response.mask"}
    weighted = response_rows(6, weight=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    batch = columns_of(examples_of(weighted, Likelihood()), micro)
    assert batch["weight"].tolist() == [4.0, 1.0]


def test_sampling_logprobs_come_from_the_column_of_the_samples():
    class Reads(Likelihood):
        @property
        def reads(self) -> dict[str, tuple[str, ...]]:
            return {"response": ("logprobs", "sampling_logprobs")}

    table = response_rows(4)
    values = [[-float(row)] * len(ids) for row, ids in enumerate(table["response_ids"].to_pylist())]
    index = table.schema.get_field_index("response_logprobs")
    table = table.set_column(index, "response_logprobs", pa.array(values, pa.list_(pa.float32())))
    examples = examples_of(table, Reads())
    batch = columns_of(examples, micro_of(examples.views, np.array([2, 1])))
    mask = batch["response.mask"].bool()
    assert set(batch["response.sampling_logprobs"][0][mask[0]].tolist()) == {-2.0}
    assert set(batch["response.sampling_logprobs"][1][mask[1]].tolist()) == {-1.0}


def test_segments_say_which_tokens_are_trained():
    segments = [[{"ids": [1, 2], "trained": False}, {"ids": [3, 4], "trained": True},
                 {"ids": [5], "trained": False}, {"ids": [6], "trained": True}]]  # fmt: skip
    kind = pa.list_(pa.struct([("ids", IDS), ("trained", pa.bool_())]))
    table = pa.table({"prompt_id": ["a"], "sample": [0], "response_segments": pa.array(segments, kind)})
    micro = micro_of(examples_of(table, SFT()).views, np.array([0]))
    assert micro.input_ids.tolist() == [[1, 2, 3, 4, 5, 6]]
    assert micro.targets.tolist() == [3, 4, 6]
    assert micro.index.tolist() == [1, 2, 4]
    first = [[{"ids": [1], "trained": True}]]
    with pytest.raises(ObjectiveError, match=r"no context .*prompt_id 'a'"):
        examples_of(table.set_column(2, "response_segments", pa.array(first, kind)), SFT())


def test_a_context_of_its_own_replaces_the_prompt():
    table = pair_rows(2).append_column("chosen_prompt_ids", pa.array([[9], [8]], IDS))
    micro = micro_of(examples_of(table, DPO()).views, np.array([0]))
    assert micro.input_ids[0, 0] == 9
    assert micro.input_ids[1, :2].tolist() == table["prompt_ids"][0].as_py()[:2]


def test_a_ranked_view_has_k_sequences_a_row():
    ranked = pa.array([[[1, 2], [3]], [[4], [5, 6, 7], [8]]], pa.list_(IDS))
    table = pa.table({"prompt_id": ["a", "b"], "sample": [0, 0], "prompt_ids": pa.array([[9], [9, 9]], IDS),
                      "ranked_ids": ranked, "rank": pa.array([[1, 0], [0, 1, 2]]),
                      "scores": pa.array([[0.1, 0.9], [3.0, 2.0, 1.0]])})  # fmt: skip
    examples = examples_of(table, PRO())
    micro = micro_of(examples.views, np.array([1, 0]))
    assert micro.input_ids.shape == (5, 5)
    assert micro.masks["ranked"].tolist()[1] == [[1, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert columns_of(examples, micro)["rank"].tolist() == [[0, 1, 2], [1, 0, -1]]


def candidates(*names: str) -> pa.Table:
    """Two, then four candidates, best last; the columns `rank` and `scores` if named."""
    ids = pa.array([[[1], [2, 3]], [[4], [5], [6], [7, 8]]], pa.list_(IDS))
    table = pa.table({"prompt_id": ["a", "b"], "prompt_ids": pa.array([[9], [9, 9]], IDS), "ranked_ids": ids})
    columns = {"rank": [[1, 0], [3, 2, 1, 0]], "scores": [[1.0, 2.0], [1.0, 2.0, 3.0, 4.0]]}
    for name in names:
        table = table.append_column(name, pa.array(columns[name]))
    return table


@pytest.mark.parametrize("objective", [AFT(), BradleyTerryRanking(), PRO()])
def test_ranks_and_scores_stand_in_for_each_other(objective: Objective):
    """Absent candidates are in no pair, whichever of the two columns the rows have."""
    for name in ("rank", "scores"):
        examples = examples_of(candidates(name), objective)
        batch = columns_of(examples, micro_of(examples.views, np.array([0, 1])))
        assert batch["rank"].tolist() == [[1, 0, -1, -1], [3, 2, 1, 0]]
        shape = batch["ranked.mask"].shape
        reads = {"rewards": torch.arange(8.0).reshape(2, 4), "logprobs": -batch["ranked.mask"]}
        given = {f"ranked.{read}": reads[read] for read in objective.reads["ranked"]}
        together = objective({**batch, **given})
        assert shape[:2] == (2, 4)
        alone = objective({column: value[:1, :2] for column, value in {**batch, **given}.items()})
        first = next(iter(together.terms))
        assert float(together.terms[first].values[0]) == pytest.approx(float(alone.terms[first].values[0]))


def replaced(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


def test_bad_rows_are_named():
    table = response_rows(4)
    ids = table["response_ids"].to_pylist()
    with pytest.raises(ObjectiveError, match=r"'response_ids' is empty.* prompt_id 'p000', sample 2"):
        examples_of(replaced(table, "response_ids", pa.array([*ids[:2], [], ids[3]], IDS)), Likelihood())
    with pytest.raises(ObjectiveError, match=r"'response_ids' is null.* sample 1"):
        examples_of(replaced(table, "response_ids", pa.array([ids[0], None, *ids[2:]], IDS)), Likelihood())
    with pytest.raises(ObjectiveError, match="lack response_ids, prompt_ids"):
        examples_of(table.drop_columns(["response_ids", "prompt_ids"]), Likelihood())
    with pytest.raises(ObjectiveError, match="lack advantages"):
        examples_of(table.drop_columns(["advantages"]), GRPO())
    weights = pa.array([1.0, float("nan"), 1.0, 1.0])
    with pytest.raises(ObjectiveError, match=r"'weight' holds nan in prompt_id 'p000', sample 1"):
        examples_of(table.append_column("weight", weights), Likelihood())
    with pytest.raises(ObjectiveError, match=r"'weight' is string, not a number"):
        examples_of(table.append_column("weight", pa.array(["a"] * 4)), Likelihood())


def test_values_that_do_not_fit_their_view_are_named():
    class Reads(Likelihood):
        @property
        def reads(self) -> dict[str, tuple[str, ...]]:
            return {"response": ("logprobs", "reference_logprobs")}

    table = response_rows(4)
    good = [[-1.0] * len(ids) for ids in table["response_ids"].to_pylist()]
    name = "response_reference_logprobs"
    short = pa.array([good[0], good[1], [*good[2], 0.0], good[3]])
    with pytest.raises(ObjectiveError, match=rf"'{name}' has .* values in prompt_id 'p000', sample 2"):
        examples_of(table.append_column(name, short), Reads())
    good[3][-1] = float("-inf")
    with pytest.raises(ObjectiveError, match=rf"'{name}' holds -inf in prompt_id 'p000', sample 3"):
        examples_of(table.append_column(name, pa.array(good)), Reads())
