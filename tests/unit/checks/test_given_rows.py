"""Rows that a run is given: histories, lengths, templates, pairs without a difference, and prompts on both sides."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from selfloop.actors.generate.fake import FakeEngine
from selfloop.actors.generate.spec import EngineSpec
from selfloop.actors.train.rows.examples import examples_of
from selfloop.workflows.config import Config, Prompts
from selfloop.workflows.errors import InputError, TrainerError
from selfloop.workflows.flow.asks import Ask, SamplingParams
from selfloop.workflows.models.facts import read_facts
from selfloop.workflows.models.lengths import positions_in, sampled_limit, trained_limit
from selfloop.workflows.objectives.dpo import DPO
from selfloop.workflows.objectives.reward_model import BradleyTerry
from selfloop.workflows.objectives.sft import SFT
from selfloop.workflows.pocket.source import POCKET_MODEL
from selfloop.workflows.run.findings import row_findings
from selfloop.workflows.run.fitting import fitting
from selfloop.workflows.run.setup import Setup
from selfloop.workflows.sources import load_source, split_heldout
from selfloop.workflows.sources.overlap import overlap_notes
from tests.unit.train.trainer_rows import IDS, pair_rows, response_rows


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ASK, SAID, MORE = turn("user", "Name two."), turn("assistant", "Red, blue."), turn("user", "Another?")
OTHER = turn("assistant", "I refuse.")
GOOD, BAD = turn("assistant", "Green."), turn("assistant", "Because.")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(path: Path, responses: bool = True, **spec: Any) -> pa.Table:
    return load_source(Prompts(source=str(path), **spec), 0, responses)


# Histories


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"chosen": [ASK, SAID, MORE, GOOD], "rejected": [ASK, SAID, MORE, BAD]}, [ASK, SAID, MORE]),
        ({"chosen": [ASK, SAID, MORE, GOOD], "rejected": [BAD]}, [ASK, SAID, MORE]),
        ({"prompt": [ASK, SAID, MORE], "chosen": [GOOD], "rejected": [BAD]}, [ASK, SAID, MORE]),
        ({"prompt": [ASK], "chosen": [SAID, MORE, GOOD], "rejected": [SAID, MORE, BAD]}, [ASK, SAID, MORE]),
        ({"prompt": "Name two.", "chosen": [ASK, SAID, MORE, GOOD], "rejected": [ASK, SAID, MORE, BAD]}, [ASK, SAID, MORE]),
        ({"prompt": " Name  two.\n", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, [turn("user", " Name  two.\n")]),
        ({"prompt": "Name two.", "chosen": [turn("system", "s"), ASK, GOOD], "rejected": [turn("system", "s"), ASK, BAD]},
         [turn("system", "s"), ASK]),
        ({"prompt": [turn("system", "s"), ASK], "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, [turn("system", "s"), ASK]),
        ({"prompt": "Name two.", "completion": [ASK, SAID, MORE, GOOD], "label": True}, [ASK, SAID, MORE]),
    ],
)  # fmt: skip
def test_responses_are_put_after_their_own_history(
    tmp_path: Path, suffix: str, row: dict[str, Any], prompt: list[Any]
) -> None:
    (read,) = load(write(tmp_path / f"a{suffix}", [row])).to_pylist()
    assert read["prompt"] == prompt
    assert read.get("chosen", read.get("completion")) == [GOOD] and read.get("rejected") in ([BAD], None)


@pytest.mark.parametrize(("suffix", "where"), [(".jsonl", "line 2"), (".parquet", "row 2")])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": [ASK, SAID, MORE, GOOD], "rejected": [ASK, OTHER, MORE, BAD]}, "rejected ('rejected') and chosen ('chosen') "
         "hold different messages before the response: message 2 is assistant 'I refuse.' in the one and assistant "
         "'Red, blue.' in the other. Mend or delete the row"),
        ({"chosen": [ASK, GOOD], "rejected": [ASK, SAID, MORE, BAD]}, "chosen ('chosen') and rejected ('rejected') answer "
         "different messages, and must be two answers to the same: message 2 is missing in the one and assistant"),
        ({"prompt": [MORE], "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, "chosen ('chosen') and the prompt ('prompt') hold "
         "different messages before the response: message 1 is user 'Name two.' in the one and user 'Another?' in the other"),
        ({"prompt": [ASK], "chosen": [ASK, GOOD], "rejected": [MORE, BAD]}, "rejected ('rejected') and the prompt ('prompt') hold"),
        ({"prompt": [ASK], "chosen": [SAID, MORE, GOOD], "rejected": [OTHER, MORE, BAD]}, "chosen ('chosen') and rejected "
         "('rejected') answer different messages"),
        ({"prompt": [ASK], "chosen": [SAID, MORE, GOOD], "rejected": [BAD]}, "chosen ('chosen') and rejected ('rejected') answer"),
    ],
)  # fmt: skip
def test_pairs_of_two_histories_are_refused_by_file_and_row(
    tmp_path: Path, suffix: str, where: str, row: dict[str, Any], message: str
) -> None:
    fine = {**row, "rejected": [*row["chosen"][:-1], BAD]}
    if "prompt" in row and row["chosen"][0] == ASK:
        fine["prompt"] = [ASK]
    path = write(tmp_path / f"a{suffix}", [fine, row])
    with pytest.raises(InputError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}, {where}: {message}")


# What cannot be read is named, what can be read is


def test_every_kind_of_parquet_value_is_read(tmp_path: Path) -> None:
    import datetime as dt
    from decimal import Decimal

    day = dt.date(2024, 2, 29)
    columns: dict[str, tuple[pa.Array, str]] = {
        "decimal": (pa.array([Decimal("1.50")], pa.decimal128(4, 2)), "1.50"),
        "large": (pa.array([Decimal("1E+3")], pa.decimal256(40, 0)), "1000"),
        "date": (pa.array([day], pa.date32()), "2024-02-29"),
        "time": (
            pa.array([dt.datetime.combine(day, dt.time(1, 2))], pa.timestamp("s")),
            "2024-02-29T01:02:00",
        ),
        "binary": (pa.array(["é".encode()], pa.binary()), "é"),
        "float": (pa.array([0.5]), "0.5"),
        "list": (pa.array([[Decimal("0.1")]], pa.list_(pa.decimal128(3, 1))), '["0.1"]'),
        "dictionary": (pa.array(["x"]).dictionary_encode(), "x"),
        "nan": (pa.array([float("nan")]), ""),
    }
    for name, (answer, wanted) in columns.items():
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"prompt": ["a"], "answer": answer, "seen": answer}), path)
        assert load(path, False)["answer"].to_pylist() == [wanted or None], name
    fine = pa.array([1], pa.int64()).cast(pa.timestamp("ns"))
    pq.write_table(pa.table({"prompt": ["a"], "answer": fine}), tmp_path / "ns.parquet")
    assert load(tmp_path / "ns.parquet", False)["answer"][0].as_py().endswith("00:00:00.000000001")


UNREAD: list[tuple[str, bytes, str]] = [
    ("a.jsonl", b'{"prompt": 7}', ", line 1: 'prompt' must be text or a list of messages ({role, content}), and is a number (7)"),
    ("a.jsonl", b'{"prompt": {"a": 1}}', ", line 1: 'prompt' must be text or a list of messages ({role, content}), and is an "
     "object ({'a': 1})"),
    ("a.jsonl", b'{"prompt": [null]}', ", line 1: 'prompt' must be text or a list of messages ({role, content}), and is a list "
     "of nulls ([None])"),
    ("a.jsonl", b'{"prompt": [{"role": "user", "content": null}]}', ", line 1: the content of message 1 of 'prompt' is null"),
    ("a.jsonl", b'{"prompt": "a\\ud83d"}', ", line 1: 'prompt' holds '\\ud83d', half of a character"),
    ("a.jsonl", b'{"prompt": ' + b"[" * 200_000, ", line 1 cannot be read as JSON"),
    ("a.jsonl", b'{"prompt": "a", "n": ' + b"1" * 5000 + b"}", ", line 1 cannot be read as JSON"),
    ("a.jsonl", b'{"prompt": "a", "tools": [{"name": "f"}]}', ", line 1: the column 'tools' lists tools ([{'name': 'f'}])"),
    ("a.jsonl", b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": [1]}]}',
     ", line 1: message 2 of 'messages' has tool_calls ([1])"),
    ("a.jsonl", b'{"prompt": "a"}\n{"prompt": "b", "answer": "3"}', ", line 1 has no 'answer', and FILE, line 2 has. Give every "
     "row the column, null where there is nothing"),
    ("a.jsonl", b'{"prompt": "a", "answer": "3"}\n{"prompt": "b"}', ", line 2 has no 'answer'"),
    ("a.csv", b"messages\nhello\n", ", line 2: 'messages' must be text or a list of messages ({role, content}), and is text "
     "('hello')"),
    ("a.jsonl", b'{"chosen": "a", "rejected": "b"}', ", line 1: no column holds the prompt, and 'chosen', from whose messages it "
     "would be taken, is text ('a')"),
    ("a.jsonl", b'{"prompt": "a", "completion": "b", "label": "often"}', ", line 1: the label ('label') is 'often'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "message"), UNREAD, ids=[str(n) for n in range(len(UNREAD))])
def test_what_cannot_be_read_is_named_by_row_column_and_value(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        load(path)
    assert str(caught.value).startswith(str(path) + message.replace("FILE", str(path)))


def test_bytes_that_are_no_text_are_named_only_where_they_are_read(tmp_path: Path) -> None:
    odd = pa.array([b"a", b"\xff\xfe"], pa.binary())
    pq.write_table(pa.table({"prompt": ["a", "b"], "image": odd}), tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet").num_rows == 2
    pq.write_table(pa.table({"prompt": odd}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet, row 2: 'prompt' must be text .* is no UTF-8 \(b'"):
        load(tmp_path / "b.parquet")


def test_columns_that_need_no_reading_are_no_matter(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "tools": [], "x": "\ud83d"},
        {"prompt": "b", "tools": None, "y": 1},
        {"prompt": "c", "tools": "[]"},
    ]
    table = load(write(tmp_path / "a.jsonl", rows))
    assert json.loads(table["meta"][0].as_py())["x"] == "\ud83d"
    quoted = tmp_path / "a.csv"
    quoted.write_text('messages\n"[{""role"": ""user"", ""content"": ""hi""}]"\n')
    assert load(quoted)["prompt"].to_pylist() == [[turn("user", "hi")]]


# Prompts on both sides


def table_of(*texts: str) -> pa.Table:
    return load_table([[turn("user", text)] for text in texts])


def load_table(prompts: list[list[dict[str, str]]]) -> pa.Table:
    from selfloop.workflows.sources import PROMPT_SCHEMA

    rows = [
        {"prompt_id": str(n), "prompt": one, "answer": None, "meta": None, "parent": None}
        for n, one in enumerate(prompts)
    ]
    return pa.Table.from_pylist(rows, schema=PROMPT_SCHEMA)


def test_shared_and_repeated_prompts_are_counted_and_named() -> None:
    held = load_table(
        [
            [turn("user", "What is IT?")],
            [turn("system", "s"), turn("user", "what  is it? ")],
            [turn("user", "new")],
        ]
    )
    told = list(
        overlap_notes(
            {"held.jsonl": held}, {"train.jsonl": table_of("other", "what is it?"), "b": table_of("no")}
        )
    )
    assert told == [
        "1 of the 3 rows of held.jsonl repeat the prompt of another, and count once more in figures: 'What is IT?' (2 times)",
        "2 of the 3 rows of held.jsonl are also in train.jsonl, which is learned from, and memory is measured there: 'What is "
        "IT?' (2 times). Take them out of one of the two",
    ]
    assert not list(overlap_notes({"h": table_of("a", "b")}, {"t": table_of("c")}))


def test_a_split_keeps_prompts_that_differ_in_case_on_one_side() -> None:
    table = table_of(*[text for n in range(30) for text in (f"Question {n}", f"question {n} ")])
    train, held = split_heldout(table, 20, 0)
    assert held.num_rows == 20
    assert not [note for note in overlap_notes({"h": held}, {"t": train}) if "also in" in note]


# What `check` and the run find of the rows together


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shutil.copytree(POCKET_MODEL, tmp_path / "model")


def setup_of(tmp_path: Path, rows: list[dict[str, Any]], **more: Any) -> Setup:
    prompts = {
        "source": str(write(tmp_path / "p.jsonl", [{"prompt": f"p {n}"} for n in range(12)])),
        "heldout": 4,
    }
    data = {"train": {"source": str(write(tmp_path / "d.jsonl", rows))}}
    fields: dict[str, Any] = {"recipe": "finetune", "model": str(tmp_path / "model"), "prompts": prompts, "data": data,
                              "settings": {"test": None}, "generator": {"max_model_len": 300, "max_tokens": 8}}  # fmt: skip
    return Setup(Config(**{**fields, **more}))


def pairs(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"ask {n}", "chosen": f"yes {n}", "rejected": "no", **more} for n in range(count)]


def test_rows_that_are_too_long_are_found_with_place_and_length(tmp_path: Path, model: Path) -> None:
    rows = [*pairs(9), {"prompt": "ask", "chosen": "yes", "rejected": "word " * 400}]
    problems, notes = fitting(setup_of(tmp_path, rows), model)
    assert len(problems) == 1 and not notes
    assert problems[0].startswith(
        f"1 of 10 rows of data.train ({tmp_path}/d.jsonl) are longer than the 300 tokens of prompt and response "
        f"(generator.max_model_len), the first at {tmp_path}/d.jsonl, line 10 with "
    )
    problems, notes = fitting(setup_of(tmp_path, rows, max_failed_rows=0.1), model)
    assert not problems and notes[0].endswith("Until then they are left out and counted")
    assert fitting(setup_of(tmp_path, pairs(9)), model) == ([], [])


def test_prompts_that_leave_no_room_are_found(tmp_path: Path, model: Path) -> None:
    setup = setup_of(tmp_path, pairs(2))
    write(tmp_path / "p.jsonl", [{"prompt": "word " * (400 if n == 3 else 1) + str(n)} for n in range(12)])
    problems, _ = fitting(setup, model)
    assert len(problems) == 1 and f"{tmp_path}/p.jsonl, line 4 with " in problems[0]


def test_what_there_was_no_time_to_measure_is_said(tmp_path: Path, model: Path) -> None:
    rows = [*pairs(3), {"prompt": "ask", "chosen": "word " * 300, "rejected": "word " * 900}]
    problems, notes = fitting(setup_of(tmp_path, rows), model, budget=3000)
    assert not problems
    assert notes[0].startswith(
        f"the 0 longest of the 4 rows of data.train ({tmp_path}/d.jsonl) were measured"
    )


REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
SAYS = "{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}"
DROPS = "{% for m in messages if m.role != 'system' %}{{ m.role }}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (REFUSES + SAYS, "TemplateError: no system"),
        (DROPS, "it leaves out the message of role system"),
        (SAYS, ""),
    ],
)
def test_a_template_that_refuses_or_drops_a_role_is_found(
    tmp_path: Path, model: Path, template: str, words: str
) -> None:
    for path in model.glob("chat_template*"):
        path.unlink()
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    (model / "chat_template.jinja").write_text(template)
    rows = [{"prompt": [turn("system", "be brief"), ASK], "chosen": "a", "rejected": "b"}, *pairs(1)]
    problems, notes = fitting(setup_of(tmp_path, rows), model)
    if not words:
        assert (problems, notes) == ([], [])
        return
    assert (
        len(problems) == 1
        and f"1 of 2 rows of data.train ({tmp_path}/d.jsonl) are not taken by the chat template of"
        in problems[0]
    )
    assert f"({words}), the first at {tmp_path}/d.jsonl, line 1." in problems[0]


def test_identical_pairs_are_said_and_refused_where_no_other_is_left(tmp_path: Path) -> None:
    same = pairs(3, chosen="no")
    problems, _ = row_findings(setup_of(tmp_path, same), None)
    assert problems == [
        f"3 of 3 pairs of data.train ({tmp_path}/d.jsonl) are identical, the first at {tmp_path}/d.jsonl, line 1: chosen and "
        "rejected are the same text, so that there is nothing to learn from. Name other columns (data.train.columns.chosen, "
        "….rejected), or other data"
    ]
    problems, notes = row_findings(setup_of(tmp_path, [*pairs(1), *same]), None)
    assert not problems
    assert notes[0].startswith(
        f"3 of 4 pairs of data.train ({tmp_path}/d.jsonl) are identical, the first at {tmp_path}/d.jsonl, line 2"
    )


def test_a_heldout_prompt_that_is_learned_from_by_name_is_told(tmp_path: Path) -> None:
    rows = [{**row, "prompt": f"P {n}"} for n, row in enumerate(pairs(12))]
    _, notes = row_findings(setup_of(tmp_path, rows), None)
    assert notes[0].startswith(
        f"4 of the 4 rows of the held-out prompts ({tmp_path}/p.jsonl) are also in data.train ({tmp_path}/d.jsonl), which is"
    )


# Engines and trainer


def test_positions_by_every_name() -> None:
    assert (
        positions_in({"max_position_embeddings": 512})
        == positions_in({"n_positions": 512, "n_ctx": 512})
        == 512
    )
    assert positions_in({"text_config": {"max_position_embeddings": 64}}) == 64
    assert positions_in({}) is None and positions_in({"n_positions": -1}) is None
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    assert positions_in({"max_position_embeddings": 128, "rope_scaling": yarn}) == 512
    assert [sampled_limit(*one) for one in ((None, None), (512, None), (512, 256), (512, 1024), (9999, None))] == [
        4096, 512, 256, 512, 4096]  # fmt: skip
    assert [trained_limit(*one) for one in ((None, None), (512, None), (512, 256), (None, 256))] == [
        None,
        512,
        256,
        256,
    ]


def test_engines_know_the_positions_of_gpt2(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"n_positions": 256, "vocab_size": 9, "eos_token_id": 0}')
    assert read_facts(str(tmp_path)).longest == read_facts(str(tmp_path), 1024).longest == 256


def test_the_fake_engine_never_goes_over_the_longest() -> None:
    engine = FakeEngine(EngineSpec("fake", "", max_model_len=20))
    asks = [
        Ask([5] * length, seed, SamplingParams(max_tokens=16))
        for length in (1, 16, 19, 20, 40)
        for seed in range(20)
    ]
    for ask, reply in zip(asks, asyncio.run(engine.sample(asks)), strict=True):
        assert len(ask.prompt_ids) + len(reply.ids) <= 20 or reply.finish == "error"
        assert (reply.finish == "error") == (len(ask.prompt_ids) >= 20)


def test_rows_without_a_lesson_are_left_out_and_counted() -> None:
    table = pair_rows(6)
    ids = table["chosen_ids"].to_pylist()
    rejected = [ids[0], [1] * 90, *table["rejected_ids"].to_pylist()[2:]]
    table = table.set_column(
        table.column_names.index("rejected_ids"), "rejected_ids", pa.array(rejected, IDS)
    )
    examples = examples_of(table, DPO(), 80)
    assert (len(examples), examples.left_out) == (4, {"failed": 0, "too_long": 1, "identical": 1})
    assert examples.table["chosen_ids"].to_pylist() == ids[2:]
    assert examples_of(response_rows(8), SFT(), 80).left_out == {"failed": 0, "too_long": 0, "identical": 0}


def test_nothing_left_says_why() -> None:
    table = pair_rows(2)
    same = table.set_column(table.column_names.index("rejected_ids"), "rejected_ids", table["chosen_ids"])
    with pytest.raises(TrainerError, match=r"2 rows were given, 2 of them pairs whose sides are the same\. "):
        examples_of(same, DPO())
    with pytest.raises(
        TrainerError, match=r"2 rows were given, 2 of them longer than the 2 tokens that the model takes"
    ):
        examples_of(table, DPO(), 2)


def test_pairs_under_two_contexts_are_not_identical() -> None:
    table = pair_rows(2)
    same = table.set_column(table.column_names.index("rejected_ids"), "rejected_ids", table["chosen_ids"])
    apart = same.append_column("rejected_prompt_ids", pa.array([[1, 2], [3, 4]], IDS))
    assert examples_of(apart, DPO()).left_out["identical"] == 0


@pytest.mark.parametrize("objective", [DPO(), BradleyTerry()])
def test_a_tie_is_half_in_the_accuracy(objective: Any) -> None:
    values = {"chosen": [-1.0, -1.0, -2.0], "rejected": [-1.0, -2.0, -1.0]}
    name = "rewards" if isinstance(objective, BradleyTerry) else "logprobs"
    batch: dict[str, torch.Tensor] = {}
    for side, numbers in values.items():
        one = torch.tensor(numbers, dtype=torch.float64)
        batch[f"{side}.{name}"] = one if name == "rewards" else one[:, None]
        batch[f"{side}.mask"] = torch.ones(3, 1, dtype=torch.float64)
        batch[f"{side}.reference_logprobs"] = torch.zeros(3, 1, dtype=torch.float64)
    np.testing.assert_array_equal(objective(batch).logs["accuracy"].numpy(), [0.5, 1, 0])
