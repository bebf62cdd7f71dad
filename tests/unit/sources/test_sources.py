"""Prompt sources: every format, messages, answers, the held-out split, and what is said of each broken file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfloop.workflows.config import Prompts
from selfloop.workflows.data.schema import prompt_id
from selfloop.workflows.errors import InputError
from selfloop.workflows.sources import (
    PROMPT_SCHEMA,
    heldout_spec,
    load_prompts,
    load_source,
    source_kind,
    split_heldout,
)

ROWS = [{"question": f"What is {n} + {n}?", "answer": str(2 * n), "level": n % 3} for n in range(20)]
MAPPED = {"prompt": "question", "answer": "answer"}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows in the format that the name says."""
    bare = path.name.removesuffix(".gz")
    if bare.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path.with_name(bare))
        data = path.with_name(bare).read_bytes()
    elif bare.endswith(".csv"):
        quoted = [",".join(f'"{value}"' for value in row.values()) for row in rows]
        data = "\n".join([",".join(rows[0]), *quoted]).encode()
    elif bare.endswith(".json"):
        data = json.dumps(rows).encode()
    else:
        data = "\n".join(map(json.dumps, rows)).encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


def load(path: Path, **spec: Any) -> pa.Table:
    return load_source(Prompts(source=str(path), **spec), seed=0)


def words(table: pa.Table) -> list[str]:
    return [messages[-1]["content"] for messages in table["prompt"].to_pylist()]


@pytest.mark.parametrize("zipped", ["", ".gz"])
@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".csv", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str, zipped: str) -> None:
    table = load(write_rows(tmp_path / f"data{suffix}{zipped}", ROWS), columns=MAPPED)
    assert table.schema == PROMPT_SCHEMA
    assert words(table) == [row["question"] for row in ROWS]
    assert table["answer"].to_pylist() == [row["answer"] for row in ROWS]
    assert [int(json.loads(meta)["level"]) for meta in table["meta"].to_pylist()] == [
        row["level"] for row in ROWS
    ]
    assert table["prompt_id"][0].as_py() == prompt_id([{"role": "user", "content": "What is 0 + 0?"}], "0")


def test_a_folder_of_files_is_one_source(tmp_path: Path) -> None:
    write_rows(tmp_path / "b.jsonl", ROWS[10:])
    write_rows(tmp_path / "a.csv", ROWS[:10])
    (tmp_path / "README.md").write_text("not data")
    assert words(load(tmp_path, columns=MAPPED)) == [row["question"] for row in ROWS]


def test_names_of_our_own_need_no_mapping(tmp_path: Path) -> None:
    table = load(
        write_rows(tmp_path / "a.jsonl", [{"prompt": "hi", "answer": 3}, {"prompt": "ho", "answer": None}])
    )
    assert table["answer"].to_pylist() == ["3", None]
    assert table["meta"].to_pylist() == [None, None]


def test_equal_prompts_stay_apart(tmp_path: Path) -> None:
    table = load(write_rows(tmp_path / "a.jsonl", [{"prompt": "hi"}] * 3))
    assert len(set(table["prompt_id"].to_pylist())) == 3


def test_byte_order_mark_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "caf\xc3\xa9"}\n\n{"prompt": "b"}\n')
    assert words(load(path)) == ["café", "b"]


def test_csv_fields_may_hold_lines_and_commas(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,answer\n"one,\ntwo",3\n', encoding="utf-8")
    assert words(load(path)) == ["one,\ntwo"]


def test_answer_after(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "answer": "2 + 2 = 4\n#### 4"}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    assert load(path)["answer"].to_pylist() == ["2 + 2 = 4\n#### 4"]
    assert load(path, options={"answer_after": "####"})["answer"].to_pylist() == ["4"]


# Messages


def test_messages_and_the_last_answer(tmp_path: Path) -> None:
    system, user = {"role": "system", "content": "s"}, {"role": "user", "content": "u"}
    rows = [{"messages": [system, user, {"role": "assistant", "content": "gold"}]}, {"messages": [user]}]
    table = load(write_rows(tmp_path / "a.jsonl", rows))
    assert table["prompt"].to_pylist() == [[system, user], [user]]
    assert table["answer"].to_pylist() == ["gold", None]


def test_a_mapped_answer_goes_before_the_last_turn(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "worked solution"}]
    path = write_rows(tmp_path / "a.jsonl", [{"chat": turns, "gold": "7"}])
    assert load(path, columns={"messages": "chat", "answer": "gold"})["answer"].to_pylist() == ["7"]


def test_system_message_is_put_before_prompts_without_one(tmp_path: Path) -> None:
    own = [{"role": "system", "content": "own"}, {"role": "user", "content": "u"}]
    table = load(write_rows(tmp_path / "a.jsonl", [{"prompt": "u"}, {"prompt": own}]), system="be brief")
    assert [messages[0]["content"] for messages in table["prompt"].to_pylist()] == ["be brief", "own"]


# Broken files: (name, bytes, settings, message), FILE stands for the path

USER = '{"role": "user", "content": "u"}'
BROKEN: list[tuple[str, bytes, dict[str, Any], str]] = [
    ("a.jsonl", b"", {}, "FILE holds no prompts. Give a source with rows"),
    ("a.jsonl", b'{"prompt": "a"}\n{"prompt": "b"\n', {}, "FILE, line 2 is not JSON: Expecting ',' delimiter at column 15, where it ends. "
     "Each line must hold one JSON object"),
    ("a.jsonl", b'{"prompt": "a"}\n[1]\n', {}, 'FILE, line 2 holds a list of numbers ([1]), and must hold an object such as '
     '{"question": …}'),
    ("a.jsonl", b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n', {}, "FILE, line 2 is not UTF-8 (byte 0xe9 at position 16). "
     "Convert the file, e.g. iconv -f LATIN1 -t UTF-8 a.jsonl"),
    ("a.jsonl", '{"prompt": "a"}'.encode("utf-16"), {}, "FILE is UTF-16, and must be UTF-8. Convert it: "
     "iconv -f UTF-16 -t UTF-8 a.jsonl"),
    ("a.json", b'[{"prompt": "a"},\n {"prompt" "b"}]', {}, "FILE, line 2 is not JSON: Expecting ':' delimiter at column 12, "
     "where '\"b\"}]' stands. Mend the line"),
    ("a.csv", b'prompt,answer\n"a",1\nb\n', {}, "FILE, line 3 has 1 fields, and the header has 2. Mend the line, or quote "
     "fields that hold a comma"),
    ("a.csv", b'prompt,answer\n"a" b,1\n', {}, "FILE, line 2 is not CSV: ',' expected after '\"'. Mend the quotes of that "
     "field"),
    ("a.csv", b"prompt,prompt\na,b\n", {}, "FILE, line 1 names the column 'prompt' twice. Rename one"),
    ("a.parquet", b"hello", {}, "FILE is not a whole Parquet file: Parquet file size is 5 bytes, smaller than the minimum "
     "file footer (8 bytes). Write it again"),
    ("a.jsonl.gz", gzip.compress(b'{"prompt": "a"}\n' * 99)[:-12], {}, "FILE is not a whole gzip file (Compressed file ended "
     "before the end-of-stream marker was reached). Fetch or compress it again"),
    ("a.jsonl.gz", b"hello", {}, "FILE is not a whole gzip file (Not a gzipped file (b'he')). Fetch or compress it again"),
    ("a.txt", b"hello", {}, "a.txt has no ending that says how to read it. Rename it to one of .jsonl, .ndjson, .json, .csv, "
     ".tsv, .parquet (or these with .gz)"),
    ("a.jsonl", b'{"question": "a"}', {"columns": {"prompt": "qestion"}}, "FILE has no column 'qestion' "
     "(prompts.columns.prompt). Did you mean 'question'?"),
    ("a.jsonl", b'{"question": "a"}', {"columns": {"prompt": "zzz"}}, "FILE has no column 'zzz' (prompts.columns.prompt). "
     "Its columns are 'question'"),
    ("a.jsonl", b'{"question": "a", "id": 1}', {}, "FILE has no column 'prompt' or 'messages'. Its columns are 'question', "
     "'id': say which one holds the prompt, e.g. prompts.columns.prompt=question"),
    ("a.jsonl", b'{"prompt": "a"}\n{"promt": "b"}', {}, "FILE, line 2 has no 'prompt'. Did you mean 'promt'?"),
    ("a.jsonl", b'{"prompt": "a"}', {"columns": {"prompts": "prompt"}}, "prompts.columns.prompts is not a column of "
     "prompts: ours are prompt, messages, answer (ours: theirs). Other columns are kept in meta by themselves"),
    ("a.jsonl", b'{"prompt": "a"}\n{"prompt": " "}', {}, "FILE, line 2: the prompt ('prompt') is empty (' '). Fill it or delete "
     "the row"),
    ("a.jsonl", b'{"prompt": null}', {}, "FILE, line 1: the prompt ('prompt') is null. Fill it or delete the row"),
    ("a.jsonl", b'{"prompt": ["a", "b"]}', {}, "FILE, line 1: 'prompt' must be text or a list of messages ({role, "
     "content}), and is a list of texts (['a', 'b']). Map another column (prompts.columns.prompt)"),
    ("a.jsonl", b'{"messages": [{"role": "usr", "content": "u"}]}', {}, "FILE, line 1: message 1 of 'messages' has the role "
     "'usr', and must be one of system, user, assistant, tool"),
    ("a.jsonl", b'{"messages": [{"role": "user", "content": ""}]}', {}, "FILE, line 1: message 1 of 'messages' is empty (''). "
     "Fill it or delete the row"),
    ("a.jsonl", b'{"messages": [{"role": "user", "content": 5}]}', {}, "FILE, line 1: the content of message 1 of "
     "'messages' is a number (5), and must be text"),
    ("a.jsonl", b'{"messages": [{"role": "assistant", "content": "a"}]}', {}, "FILE, line 1: the messages in 'messages' "
     "hold no user message to answer. End them with one of role user"),
    ("a.jsonl", b'{"prompt": "a", "answer": "4"}', {"options": {"answer_after": "####"}}, "FILE, line 1: the answer holds "
     "no '####' (prompts.options.answer_after): it is '4'. Mend the row or drop the option"),
    ("a.jsonl", b'{"prompt": "a"}', {"options": {"answer_aftr": "#"}}, "prompts.options.answer_aftr is not an option of a "
     "file. Did you mean answer_after?"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "data", "spec", "message"), BROKEN, ids=[str(n) for n in range(len(BROKEN))]
)
def test_what_is_said_of_a_broken_file(
    tmp_path: Path, name: str, data: bytes, spec: dict[str, Any], message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        load(path, **spec)
    assert str(caught.value) == message.replace("FILE", str(path))


def test_missing_files_name_the_nearest(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(InputError) as caught:
        load(tmp_path / "trian.jsonl")
    there = tmp_path / "train.jsonl"
    assert str(caught.value) == f"prompt file {tmp_path}/trian.jsonl does not exist. Did you mean {there}?"
    with pytest.raises(InputError) as caught:
        load(tmp_path / "no" / "a.jsonl")
    assert str(caught.value) == (
        f"prompt file {tmp_path}/no/a.jsonl does not exist: there is no folder {tmp_path}/no. Mend the path"
    )


def test_a_broken_line_is_found_without_reading_on(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{oops}\n" + b'{"prompt": "a"}\n' * 5 + b"\xff\xfe")
    with pytest.raises(InputError, match="line 1 is not JSON"):
        load(path)


# What kind of source a name is


def test_source_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    kinds = {
        name: source_kind(name)
        for name in ("pocket", "openai/gsm8k", "squad", "a.jsonl", "./x", "mine/x", "mine")
    }
    assert kinds == {"pocket": "pocket", "openai/gsm8k": "hub", "squad": "hub", "a.jsonl": "file", "./x": "file",
                     "mine/x": "file", "mine": "file"}  # fmt: skip


def test_a_data_set_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(name: str, **_: object) -> None:
        raise ConnectionError("Couldn't reach the hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(InputError) as caught:
        load_source(Prompts(source="nobody/nothing"), 0)
    assert str(caught.value) == (
        "prompts.source 'nobody/nothing' is no file here, and could not be loaded as a Hugging Face data set (split "
        "'train'): Couldn't reach the hub. Mend the name, or download the data and give its path"
    )


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def give(path: str, **options: Any) -> Any:
        asked.append((path, options))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", give)
    spec = Prompts(source="openai/gsm8k", split="test", columns=MAPPED, options={"name": "main"})
    assert words(load_source(spec, 0)) == [row["question"] for row in ROWS]
    assert asked == [("openai/gsm8k", {"split": "test", "name": "main"})]


# The pocket world


def test_pocket_prompts_never_overlap() -> None:
    train, heldout = load_prompts(Prompts(heldout=64, options={"size": 256}), seed=0)
    assert (train.num_rows, heldout.num_rows) == (256, 64)
    assert not set(words(train)) & set(words(heldout))
    assert train.schema.names == PROMPT_SCHEMA.names


def test_pocket_options_are_checked() -> None:
    with pytest.raises(
        InputError, match=r"prompts.options.sizes is not an option of the pocket source. Did you mean size\?"
    ):
        load_source(Prompts(options={"sizes": 5}), 0)
    with pytest.raises(InputError, match="the pocket source cannot make these prompts"):
        load_source(Prompts(options={"kinds": ["flying"]}), 0)


# The held-out split


def test_heldout_sources(tmp_path: Path) -> None:
    train, test = write_rows(tmp_path / "a.jsonl", ROWS), write_rows(tmp_path / "b.jsonl", ROWS[:7])
    spec = Prompts(source=str(train), heldout_source=str(test), heldout=5, columns=MAPPED)
    other = heldout_spec(spec)
    assert other is not None
    assert other.source == str(test)
    learned, held = load_prompts(spec, seed=0)
    assert (learned.num_rows, held.num_rows) == (20, 5)
    with pytest.raises(InputError, match=r"asks to keep 8 prompts apart, and .* has 7"):
        load_prompts(spec.model_copy(update={"heldout": 8}), seed=0)


def prompts_table(texts: list[str]) -> pa.Table:
    rows = [{"prompt_id": str(n), "prompt": [{"role": "user", "content": text}], "answer": None, "meta": None,
             "parent": None} for n, text in enumerate(texts)]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=PROMPT_SCHEMA)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=24), st.integers(1, 20), st.integers(0, 3))
def test_split_is_exact_disjoint_and_seeded(texts: list[str], n: int, seed: int) -> None:
    table = prompts_table([f" {text}  {text}" if k % 2 else f"{text} {text}" for k, text in enumerate(texts)])
    try:
        train, held = split_heldout(table, n, seed)
    except InputError:
        assert n >= len(texts) - max(map(texts.count, texts)) + 1 or n >= len(texts)
        return
    assert held.num_rows == n
    assert train.num_rows > 0
    assert not {text.split()[0] for text in words(train)} & {text.split()[0] for text in words(held)}
    assert split_heldout(table, n, seed)[1].equals(held)
    ids = set(train["prompt_id"].to_pylist()) | set(held["prompt_id"].to_pylist())
    dropped = set(table["prompt_id"].to_pylist()) - ids
    assert {words(table)[int(k)].split()[0] for k in dropped} <= {text.split()[0] for text in words(held)}


def test_split_depends_on_the_seed_and_not_on_the_order() -> None:
    texts = [f"question {n}" for n in range(100)]
    chosen = set(words(split_heldout(prompts_table(texts), 10, 0)[1]))
    assert chosen == set(words(split_heldout(prompts_table(texts[::-1]), 10, 0)[1]))
    assert chosen != set(words(split_heldout(prompts_table(texts), 10, 1)[1]))


def test_split_larger_than_the_data() -> None:
    with pytest.raises(InputError) as caught:
        split_heldout(prompts_table(["a", "b"]), 2, 0)
    assert str(caught.value) == (
        "prompts.heldout asks to keep 2 prompts apart, and the source has 2. Lower prompts.heldout so that prompts to "
        "learn from remain, or give more prompts"
    )


# Real files, where they are at hand


@pytest.mark.parametrize(
    ("name", "columns", "rows"),
    [("gsm8k_test.jsonl", MAPPED, 1319), ("humaneval.jsonl.gz", {}, 164),
     ("alpaca_eval_instructions.jsonl", {"prompt": "instruction"}, 805)],
)  # fmt: skip
def test_published_files(name: str, columns: dict[str, str], rows: int) -> None:
    path = Path(__file__).parents[3].parent / "shared" / "data" / name
    if not path.exists():
        pytest.skip("the public data sets are not here")
    train, held = load_prompts(Prompts(source=str(path), columns=columns, heldout=50), seed=0)
    assert train.num_rows + held.num_rows == rows


# Given responses: pairs and labelled completions, of named sources


def given(path: Path, rows: list[dict[str, Any]], **spec: Any) -> pa.Table:
    return load_source(Prompts(source=str(write_rows(path, rows)), **spec), seed=0, responses=True)


def say(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


ASK = [{"role": "user", "content": "2 + 2?"}]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".json"])
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
        {"prompt": ASK, "chosen": say("4"), "rejected": say("5")},
        {"prompt": "2 + 2?", "chosen": [*ASK, *say("4")], "rejected": [*ASK, *say("5")]},
        {"chosen": [*ASK, *say("4")], "rejected": [*ASK, *say("5")]},
        {"prompt": "2 + 2?", "good": "4", "rejected": "5", "columns": {"chosen": "good"}},
    ],
)  # fmt: skip
def test_pairs_in_every_shape_that_others_write(tmp_path: Path, suffix: str, row: dict[str, Any]) -> None:
    row = dict(row)
    columns = row.pop("columns", {})
    (read,) = given(tmp_path / f"a{suffix}", [row], columns=columns).to_pylist()
    assert {name: value for name, value in read.items() if name != "prompt_id"} == {
        "prompt": ASK, "answer": None, "meta": None, "parent": None, "chosen": say("4"), "rejected": say("5")
    }  # fmt: skip


def test_labelled_completions(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "completion": "b", "label": True},
        {"prompt": "a", "completion": "c", "label": False},
    ]
    table = given(tmp_path / "a.parquet", rows)
    assert table["completion"].to_pylist() == [say("b"), say("c")] and table["label"].to_pylist() == [
        1.0,
        0.0,
    ]
    quoted = [{**row, "label": str(row["label"])} for row in rows]
    assert given(tmp_path / "a.csv", quoted)["label"].to_pylist() == [1.0, 0.0]
    assert given(tmp_path / "b.jsonl", [{"prompt": "a", "completion": "b"}]).column_names[-1] == "completion"


def test_rows_of_one_prompt_stay_apart_and_are_named_by_what_they_say(tmp_path: Path) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    names = given(tmp_path / "a.jsonl", [row, row, {**row, "chosen": "d"}])["prompt_id"].to_pylist()
    assert len(set(names)) == 3
    assert given(tmp_path / "b.jsonl", [{**row, "chosen": "d"}])["prompt_id"][0].as_py() == names[2]


def test_prompts_leave_such_columns_to_meta(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "a.jsonl", [{"prompt": "a", "chosen": 3, "rejected": None, "label": "physics"}]
    )
    assert load(path).schema == PROMPT_SCHEMA
    assert load_source(Prompts(source=str(path), columns={"chosen": "label", "rejected": "label"}), 0, responses=True)[
        "chosen"].to_pylist() == [say("physics")]  # fmt: skip
    labelled = [{"prompt": "a", "label": "physics"}]  # a label of no completion is a column like any other
    assert given(tmp_path / "b.jsonl", labelled).schema == PROMPT_SCHEMA


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": ""}, "{}, line 2: chosen ('chosen') is empty (''), and must be text or messages that end with one of role assistant"),
        ({"rejected": None}, "{}, line 2: rejected ('rejected') is null"),
        ({"rejected": 3}, "{}, line 2: rejected ('rejected') is a number"),
        ({"chosen": ASK}, "{}, line 2: chosen ('chosen') ends with a message of role user, and must end with assistant"),
        ({"rejected": [{"role": "assistant"}]}, "{}, line 2: the content of message 1 of 'rejected' is null"),
    ],
)  # fmt: skip
def test_a_broken_pair_is_named_by_column_and_row(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = tmp_path / "a.jsonl"
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    with pytest.raises(InputError) as caught:
        given(path, [good, {**good, **row}])
    assert message.format(path) in str(caught.value)


def test_a_broken_label_and_a_missing_column(tmp_path: Path) -> None:
    row = {"prompt": "a", "completion": "b", "label": "maybe"}
    with pytest.raises(
        InputError, match=r"line 1: the label \('label'\) is 'maybe', and must be true or false, or 1 or 0"
    ):
        given(tmp_path / "a.jsonl", [row])
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    with pytest.raises(InputError, match=r"line 2 has no 'rejected'"):
        given(tmp_path / "b.jsonl", [pair, {"prompt": "a", "chosen": "b"}])
    with pytest.raises(
        InputError, match=r"has no column 'god' \(prompts\.columns\.chosen\)\. Did you mean 'good'\?"
    ):
        given(tmp_path / "c.jsonl", [{"prompt": "a", "good": "b"}], columns={"chosen": "god"})


def test_the_pocket_world_s_pairs_are_right_against_wrong(tmp_path: Path) -> None:
    from selfloop.workflows.pocket.preferences import write_preferences
    from selfloop.workflows.pocket.roles import task_of
    from selfloop.workflows.pocket.tasks import verify

    spec = Prompts(options={"size": 200, "preferences": True})
    table = load_source(spec, 3, responses=True)
    for row in table.to_pylist():
        assert verify(task_of(row["prompt"]), row["chosen"][0]["content"])
        assert not verify(task_of(row["prompt"]), row["rejected"][0]["content"])
    assert table["answer"].null_count == 200 and load_source(spec, 3, responses=True).equals(table)
    train, test = write_preferences(tmp_path / "files", seed=3, size=200, test=20)
    read = load_source(Prompts(source=str(train)), 0, responses=True)
    wanted = ["prompt", "chosen", "rejected"]
    assert read.select(wanted).equals(table.select(wanted)) and len(test.read_text().splitlines()) == 20
    with pytest.raises(InputError, match=r"move it to data\.NAME\.options"):
        load_source(spec, 3)
