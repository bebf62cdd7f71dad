"""Fine-tuning on given responses: what each kind of objective is given, its own figures, and what is said of wrong data."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from selfloop.workflows.checks import problems
from selfloop.workflows.config import Config
from selfloop.workflows.data.schema import MESSAGES
from selfloop.workflows.errors import InputError, RecipeError
from selfloop.workflows.models.codec import codec_of
from selfloop.workflows.objectives import KTO, OBJECTIVES, SFT, SimPO
from selfloop.workflows.objectives.heldout import OwnMetrics
from selfloop.workflows.recipes.imitation.finetune import SERVED, Finetune
from selfloop.workflows.recipes.imitation.given import differing, first_against_second, mismatched
from selfloop.workflows.run.setup import Setup
from selfloop.workflows.store.keys import identity
from tests.recipes.runs import fake_trainer, graph_of, pocket_config, real_trainer, run_recipe, trained_rows

FIVE = ("dpo", "simpo", "kto", "orpo", "sft")
PAIRS = [{"prompt": f"add {n} {n}", "chosen": str(2 * n), "rejected": str(3 * n)} for n in range(11, 35)]


def config(objective: str, **more: Any) -> Config:
    settings = {"objective": objective, **more.pop("settings", {})}
    return pocket_config("finetune", settings, **more)


def source(path: Path, rows: list[dict[str, Any]], **spec: Any) -> dict[str, Any]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"source": str(path), **spec}


def trained(path: Path, given: Config) -> list[list[dict[str, Any]]]:
    """What the trainer was given, iteration by iteration."""
    trainer = fake_trainer(given)
    run_recipe(given, path, trainer=trainer)
    return [trained_rows(work) for work in trainer.works]


def from_file(path: Path, rows: list[dict[str, Any]], objective: str, **settings: Any) -> Config:
    data = {"train": source(path / "train.jsonl", rows)}
    return config(objective, settings={"test": None, **settings}, data=data, iterations=1)


@pytest.mark.parametrize(
    "objective", [slug for slug in SERVED if OBJECTIVES[slug].views == ("chosen", "rejected")]
)
def test_pair_objectives_learn_from_chosen_and_rejected(objective: str, tmp_path: Path) -> None:
    given = from_file(tmp_path, PAIRS, objective)
    codec = codec_of(str(Setup(given).folder))
    (rows,) = trained(tmp_path / "run", given)
    assert len(rows) == len(PAIRS)
    wanted = {row["prompt"]: row for row in PAIRS}
    for row in rows:
        pair = wanted[row["prompt"][0]["content"]]
        assert row["prompt_ids"] == codec.encode(row["prompt"])
        for side in ("chosen", "rejected"):
            assert row[f"{side}_ids"] == codec.encode_response(pair[side])
            assert row[f"{side}_version"] is None and row["model"] == "train"


def test_end_markers_of_given_responses_are_taken_off_and_counted(tmp_path: Path) -> None:
    marked = [{**row, "chosen": row["chosen"] + "<|end|>\n"} if n % 2 else row for n, row in enumerate(PAIRS)]
    given = from_file(tmp_path, marked, "dpo")
    codec, trainer = codec_of(str(Setup(given).folder)), fake_trainer(given)
    metrics = run_recipe(given, tmp_path / "run", trainer=trainer)
    assert metrics[-1]["train_chosen_stripped_ends"] == len(PAIRS) // 2
    assert "train_rejected_stripped_ends" not in metrics[-1]
    wanted = {row["prompt"]: codec.encode_response(row["chosen"]) for row in PAIRS}
    for row in trained_rows(trainer.works[0]):
        assert row["chosen_ids"] == wanted[row["prompt"][0]["content"]]
        assert (
            row["chosen_ids"][-1] == row["rejected_ids"][-1]
            and row["chosen_ids"].count(row["chosen_ids"][-1]) == 1
        )


def test_kto_learns_from_both_sides_and_compares_with_other_prompts(tmp_path: Path) -> None:
    given = from_file(tmp_path, PAIRS, "kto")
    codec = codec_of(str(Setup(given).folder))
    (rows,) = trained(tmp_path / "run", given)
    assert len(rows) == 2 * len(PAIRS)
    good = {row["prompt"]: row["chosen"] for row in PAIRS}
    prompts = [codec.encode([{"role": "user", "content": row["prompt"]}]) for row in PAIRS]
    for row in rows:
        assert row["label"] == float(row["response"] == good[row["prompt"][0]["content"]])
        assert row["kl_ids"] == row["response_ids"]
        assert row["kl_prompt_ids"] in prompts and row["kl_prompt_ids"] != row["prompt_ids"]
    assert sum(row["label"] for row in rows) == len(PAIRS)


def test_labelled_completions_keep_their_labels(tmp_path: Path) -> None:
    labelled = [
        {"prompt": row["prompt"], "completion": row["chosen"], "label": n % 3 == 0}
        for n, row in enumerate(PAIRS)
    ]
    (rows,) = trained(tmp_path / "run", from_file(tmp_path, labelled, "bco"))
    labels = {row["prompt"][0]["content"]: row["label"] for row in rows}
    assert labels == {row["prompt"]: float(row["label"]) for row in labelled}


@pytest.mark.parametrize(
    ("rows", "column"),
    [
        ([{"prompt": row["prompt"], "completion": row["rejected"], "answer": "0"} for row in PAIRS], "rejected"),
        (PAIRS, "chosen"),
        ([{"prompt": row["prompt"], "answer": row["rejected"]} for row in PAIRS], "rejected"),
    ],
    ids=["completion", "chosen", "answer"],
)  # fmt: skip
def test_sft_learns_from_completions_else_chosen_else_answers(tmp_path: Path, rows: Any, column: str) -> None:
    (learned,) = trained(tmp_path / "run", from_file(tmp_path, rows, "sft"))
    wanted = {row["prompt"]: row[column] for row in PAIRS}
    assert {row["prompt"][0]["content"]: row["response"] for row in learned} == wanted


def test_iterations_take_slices_and_say_where_they_start(tmp_path: Path) -> None:
    given = config("dpo", settings={"take": 8, "optimizer": "fresh", "reference": "policy"}, iterations=3)
    slices = trained(tmp_path / "run", given)
    assert [len(rows) for rows in slices] == [8, 8, 8]
    assert len({row["prompt_id"] for rows in slices for row in rows}) == 24
    trainings = [graph_of(given, index).nodes["train"].training for index in (1, 2, 3)]
    assert [
        (one.start.name, one.reference.name, one.optimizer) for one in trainings if one and one.reference
    ] == [(f"policy@{k}", f"policy@{k}", "fresh") for k in range(3)]
    training = graph_of(config("dpo"), 2).nodes["train"].training
    assert (
        training
        and training.reference
        and (training.reference.name, training.optimizer) == ("policy@0", "continued")
    )
    training = graph_of(config("simpo"), 2).nodes["train"].training
    assert training and training.reference is None


@pytest.mark.real
@pytest.mark.parametrize("objective", FIVE)
def test_each_objective_improves_its_own_held_out_figures(objective: str, tmp_path: Path) -> None:
    data = {
        "train": {"options": {"preferences": True, "size": 256}},
        "test": {"split": "heldout", "options": {"preferences": True, "size": 64}},
    }
    given = config(objective, data=data, iterations=1)
    metrics = run_recipe(given, tmp_path / "run", trainer=real_trainer(given, lr=5e-5, batch_size=32))[1]
    assert metrics["test_loss"] < metrics["test_initial_loss"]
    if objective == "kto":
        assert metrics["test_initial_separation"] == 0 and metrics["test_initial_auc"] == 0.5
        assert metrics["test_separation"] > 0 and metrics["test_auc"] > 0.75
    elif objective == "sft":
        assert metrics["test_logprob"] > metrics["test_initial_logprob"]
    else:
        assert metrics["test_accuracy"] >= metrics["test_initial_accuracy"]
        assert metrics["test_reward_margin"] > metrics["test_initial_reward_margin"]
        assert (metrics["test_initial_accuracy"] == 0.5) == (
            objective == "dpo"
        )  # no reward of its own without a reference


def test_own_figures_are_the_objective_s() -> None:
    rows = pa.table({
        "chosen_policy": [[-1.0, -1.0], [-3.0]], "rejected_policy": [[-2.0], [-1.0, -2.0, -3.0]],
        "chosen_initial": [[-2.0, -2.0], [-2.0]], "rejected_initial": [[-2.0], [-1.0, -1.0, -1.0]],
    })  # fmt: skip
    simpo = OwnMetrics(objective=SimPO(beta=2.0, gamma=1.0))(rows)
    losses = [
        math.log1p(math.exp(-(2 * (chosen - rejected) - 1))) for chosen, rejected in ((-1, -2), (-3, -2))
    ]
    assert simpo["test_loss"] == pytest.approx(sum(losses) / 2) and simpo["test_accuracy"] == 0.5
    dpo = OwnMetrics(objective=OBJECTIVES["dpo"]())(rows)
    assert dpo["test_initial_loss"] == pytest.approx(math.log(2)) and dpo["test_initial_accuracy"] == 0.5
    assert dpo["test_chosen_reward"] == pytest.approx(0.1 * (2 - 1) / 2) and dpo["test_accuracy"] == 1.0


def test_own_figures_of_labels_and_of_failed_rows() -> None:
    rows = pa.table({
        "label": [1.0, 0.0, 1.0], "status": ["ok", "ok", "failed"],
        **{f"{view}_{who}": [[-1.0 - (who == "initial") * place], [-1.0 - place], None]
           for place, view in enumerate(("response", "kl"), 1) for who in ("policy", "initial")},
    })  # fmt: skip
    kto = OwnMetrics(objective=KTO())(rows)
    assert kto["test_separation"] == pytest.approx(0.1) and kto["test_auc"] == 1.0
    assert OwnMetrics(objective=SFT())(rows.slice(2)) == {}


def test_rows_that_were_not_measured_are_left_out_of_own_figures() -> None:
    rows = pa.table({f"response_{who}": [[-1.0], None, [-3.0]] for who in ("policy", "initial")})
    sft = OwnMetrics(objective=SFT())(rows)
    assert sft["test_loss"] == pytest.approx(2.0) and sft["test_left_out"] == 1
    assert OwnMetrics(objective=SFT())(rows.slice(1, 1)) == {"test_left_out": 1}


def test_identical_pairs_give_neither_pairs_nor_labels() -> None:
    def side(*ids: int) -> list[dict[str, Any]]:
        return [{"response_ids": [one]} for one in ids]

    rng = random.Random(0)
    assert differing(side(1, 1), rng) == first_against_second(side(1, 1), rng) == []
    assert differing(side(1, 2), rng) == side(1, 2) and len(first_against_second(side(1, 2), rng)) == 1
    assert differing(side(1), rng) == side(1) and first_against_second(side(1), rng) == []


def test_other_options_are_other_work() -> None:
    one, two = (identity(OwnMetrics(objective=SimPO(beta=beta))) for beta in (1.0, 2.0))
    assert one != two


def test_mismatched_prompts_are_others() -> None:
    prompts = [[{"role": "user", "content": text}] for text in "aabbbbbc"]
    table = pa.table({"prompt": pa.array(prompts, MESSAGES)})
    for seed in range(20):
        others = mismatched(table, random.Random(seed))["other"].to_pylist()
        assert all(one != prompt for one, prompt in zip(others, prompts, strict=True))
    with pytest.raises(RecipeError, match="all rows have one prompt"):
        mismatched(table.slice(0, 2), random.Random(0))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"objective": "grpo"}, "objective 'grpo' learns from more than given responses. Choose one of sft, dpo, "),
        ({"objective": "bradley-terry"}, "objective 'bradley-terry' learns from more than given responses"),
        ({"objective": "smpo"}, "objective 'smpo' is not known. Did you mean simpo?"),
        ({"objective": "dpo", "options": {"beta": -1}}, "options.beta: Input should be greater than 0. The options of dpo are beta"),
        ({"objective": "simpo", "options": {"gama": 1}}, "options.gama: Extra inputs are not permitted"),
        ({"objective": "dno", "options": {"form": "exact"}}, "objective 'dno' learns from more than given responses"),
    ],
)  # fmt: skip
def test_objectives_that_cannot_learn_from_given_responses(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Finetune(**settings)
    assert said in str(caught.value)


def test_wrong_columns_are_named_with_the_node_before_anything_starts(tmp_path: Path) -> None:
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]
    found = problems(from_file(tmp_path, rows, "dpo"))
    assert found == [
        f"node 'train-{side}' reads {side}, and 'train-rows' before it has only completion, meta, parent, prompt, prompt_id. "
        f"Map a column of the data to it: data.train.columns.{side}=<column>" for side in ("chosen", "rejected")
    ]  # fmt: skip
    found = problems(from_file(tmp_path, rows, "kto"))
    assert len(found) == 1 and "KTO needs the columns label, which 'train-kl' does not have" in found[0]
    with pytest.raises(InputError, match=r"train\.jsonl, line 2: rejected \('rejected'\) is empty"):
        _ = Setup(from_file(tmp_path, [PAIRS[0], {**PAIRS[1], "rejected": ""}], "dpo")).sources
