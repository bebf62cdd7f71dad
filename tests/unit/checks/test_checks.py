"""What is wrong before a run starts, found without torch: each problem with the sentence that is printed."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from selfloop.workflows.checks import inspect, problems
from selfloop.workflows.checks import machine as checks_machine
from selfloop.workflows.checks.model import count_parameters, look_at_model
from selfloop.workflows.checks.prompts import scan
from selfloop.workflows.cli.runs import taken
from selfloop.workflows.config import Config, Draft, Prompts, read_config
from selfloop.workflows.pocket.source import POCKET_MODEL
from selfloop.workflows.store.folder import RunFolder


@pytest.fixture(autouse=True)
def two_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of two CPU cores without a GPU, and an empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checks_machine, "count_cpus", lambda: 2)
    monkeypatch.setattr(checks_machine, "count_gpus", lambda: 0)
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


def config(**settings: Any) -> Config:
    settings.setdefault("prompts", Prompts(heldout=8, options={"size": 16}))
    return Config(recipe=settings.pop("recipe", "self-rewarding"), **settings)


def found(**settings: Any) -> list[str]:
    return problems(config(**settings))


def test_a_right_config_has_no_problem(tmp_path: Path) -> None:
    result = inspect(Draft(config=config(), problems=[]), tmp_path / "runs" / "a")
    assert (result.problems, result.notes) == ([], [])
    assert result.graph_checked
    assert result.parameters > 100_000
    assert not (tmp_path / "runs").exists()


# Models


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the pocket model to break."""
    return shutil.copytree(POCKET_MODEL, tmp_path / "model")


def test_model_folder_missing(tmp_path: Path) -> None:
    assert found(model="./nowhere") == [
        f"model ./nowhere: there is no such folder ({tmp_path}/nowhere). Mend the path, or give a hub name or pocket"
    ]
    Path("models").mkdir()
    assert found(model="models/seven-b") == [
        f"model models/seven-b: there is no such folder ({tmp_path}/models/seven-b). Mend the path, or give a hub name or "
        "pocket"
    ]


def test_model_is_a_file() -> None:
    Path("weights.bin").write_text("")
    assert found(model="weights.bin") == [
        "model weights.bin is a file, and must be a folder with config.json, weights and tokenizer"
    ]


def test_model_without_config(model: Path) -> None:
    (model / "config.json").unlink()
    assert found(model="model") == [
        "model model has no config.json, so its architecture is unknown. Give a Hugging Face model folder "
        "(save_pretrained makes one)"
    ]


def test_model_folder_empty() -> None:
    Path("model").mkdir()
    assert found(model="model")[0] == (
        "model model is empty, so its architecture is unknown. Give a Hugging Face model folder (save_pretrained makes one)"
    )


def test_model_with_broken_config(model: Path) -> None:
    (model / "config.json").write_text('{\n"model_type" "qwen2"}')
    assert found(model="model") == [
        "model model has a config.json that is not JSON (line 2: Expecting ':' delimiter). Fetch it again"
    ]


def test_model_without_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert found(model="model") == [
        "model model has no weights (*.safetensors). Fetch them, or give another folder"
    ]


def test_model_with_weights_of_another_format(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert found(model="model") == [
        "model model has its weights in pytorch_model.bin, and only safetensors are read (other formats can run code). "
        "Convert it: AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)"
    ]


def test_model_with_a_shard_missing(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert found(model="model") == [
        "model model lacks the weights file model-00002-of-00002.safetensors that its index names. Fetch it again"
    ]


def test_model_with_half_a_download(model: Path) -> None:
    weights = model / "model.safetensors"
    size = weights.stat().st_size
    os.truncate(weights, size - 1000)
    assert found(model="model") == [
        f"model model has a broken weights file model.safetensors: {size:,} bytes were announced, and it has "
        f"{size - 1000:,}. Fetch it again"
    ]


def test_model_that_is_a_git_lfs_pointer(model: Path) -> None:
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert found(model="model") == [
        "model model has a broken weights file model.safetensors: it is no safetensors file (it looks like a Git LFS "
        "pointer: git lfs pull). Fetch it again"
    ]


def test_model_without_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    assert found(model="model") == [
        "model model has no tokenizer (tokenizer.json). Copy the files of the model it was made from"
    ]


def test_model_without_chat_template(model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    assert found(model="model") == [
        "model model has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json), so messages "
        "cannot be written for it. Set prompts.template to chatml, plain or a Jinja file, or take the instruct version of "
        "the model"
    ]
    draft = read_config("quickstart", ["model=model", "prompts.template=chatlm"])
    assert len(inspect(draft).problems) == 1  # the wrong value alone
    prompts = Prompts(heldout=8, options={"size": 16}, template="plain")
    assert found(model="model", prompts=prompts) == []
    broken = prompts.model_copy(update={"template": "{{ messages"})
    told = found(model="model", prompts=broken)  # once, by the model's check and by that of the rows
    assert len(told) == 1 and told[0].startswith("the chat template of prompts.template cannot be parsed: ")
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "{{ messages }}"}))
    assert found(model="model") == []


def test_model_with_code_of_its_own(model: Path) -> None:
    held = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(
        json.dumps({**held, "auto_map": {"AutoModelForCausalLM": "mine.Model"}})
    )
    assert found(model="model") == [
        "model model needs code of its own (auto_map in config.json), which is not run unasked. If you trust it, set "
        "trust_remote_code=true"
    ]
    assert found(model="model", trust_remote_code=True) == []


def test_model_too_short_for_the_responses(model: Path) -> None:
    positions = json.loads((model / "config.json").read_text())["max_position_embeddings"]
    assert found(model="model", generator={"max_tokens": positions + 1}) == [
        f"generator.max_tokens is {positions + 1}, and model model has {positions} positions (max_position_embeddings). "
        "Lower generator.max_tokens"
    ]


def test_judge_model_is_looked_at_too() -> None:
    (problem,) = found(judge_model="./nowhere")
    assert problem.startswith("judge_model ./nowhere: there is no such folder")


def test_hub_names_are_noted_and_not_refused() -> None:
    result = inspect(Draft(config=config(model="Qwen/Qwen3-8B"), problems=[]))
    assert result.problems == []
    assert result.notes == [
        "model Qwen/Qwen3-8B is taken as a hub name: its files can be checked only when the run downloads them"
    ]


def test_hub_names_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert found(model="Qwen/Qwen3-8B") == [
        f"model Qwen/Qwen3-8B is no folder here and not in the cache ({tmp_path}/hub), and HF_HUB_OFFLINE forbids to "
        "download it. Download it first, or give a folder"
    ]


def test_hub_models_in_the_cache_are_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    home = tmp_path / "models--org--name"
    shutil.copytree(POCKET_MODEL, home / "snapshots" / "abc")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc")
    assert look_at_model("org/name").parameters == look_at_model("pocket").parameters > 0


def test_parameters_are_counted_from_the_header(tmp_path: Path) -> None:
    header = json.dumps(
        {"__metadata__": {}, "w": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}
    ).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(12))
    assert count_parameters(path) == 6


# Prompts (broken files are in test_sources.py)


def jsonl(name: str, rows: list[dict[str, Any]]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def test_prompt_file_missing() -> None:
    assert found(prompts="data.jsonl") == [
        f"prompt file data.jsonl does not exist in {Path.cwd()}. Mend the path"
    ]


def test_heldout_larger_than_the_data() -> None:
    jsonl("a.jsonl", [{"prompt": f"p{n}"} for n in range(100)])
    assert found(prompts="a.jsonl") == [
        "prompts.heldout asks to keep 256 prompts apart, and a.jsonl has 100. Lower prompts.heldout so that prompts to "
        "learn from remain, or give more prompts"
    ]
    assert found(prompts={"source": "a.jsonl", "heldout": 99}) == []


def test_heldout_larger_than_its_own_source() -> None:
    jsonl("a.jsonl", [{"prompt": f"p{n}"} for n in range(100)])
    jsonl("b.jsonl", [{"prompt": f"p{n}"} for n in range(10)])
    assert found(prompts={"source": "a.jsonl", "heldout_source": "b.jsonl", "heldout": 11}) == [
        "prompts.heldout asks to keep 11 prompts apart, and b.jsonl has 10. Lower prompts.heldout so that prompts to "
        "learn from remain, or give more prompts"
    ]


def test_more_prompts_an_iteration_than_there_are() -> None:
    jsonl("a.jsonl", [{"prompt": f"p{n}"} for n in range(100)])
    prompts = {"source": "a.jsonl", "heldout": 10, "per_iteration": 91, "options": {"size": 4096}}
    result = inspect(Draft(config=config(prompts=prompts), problems=[]))
    assert (result.problems, result.notes) == (
        [],
        ["prompts.options.size does nothing for a.jsonl",
         "prompts.per_iteration is 91, and 90 prompts of a.jsonl remain to learn from: every iteration takes them all"],
    )  # fmt: skip
    assert result.prompts == 90
    assert [taken(asked, result.prompts) for asked in (91, 90, 89, None)] == [
        "all 90",
        "all 90",
        "89",
        "all 90",
    ]
    assert taken(1000, None) == "1,000" and taken(None, None) == "all"


def test_prompts_that_are_all_the_same() -> None:
    jsonl("a.jsonl", [{"prompt": "p"} for _ in range(10)])
    assert found(prompts={"source": "a.jsonl", "heldout": 2}) == [
        "all 10 prompts of a.jsonl are the same, so none can be kept apart. Give other prompts"
    ]


def test_answers_needed_and_absent() -> None:
    jsonl("a.jsonl", [{"prompt": f"p{n}"} for n in range(10)])
    prompts = {"source": "a.jsonl", "heldout": 2}
    assert found(prompts=prompts, judge="number") == [
        "judge number compares with answers, and a.jsonl has none. Map a column to it (prompts.columns.answer=COLUMN), or "
        "leave judge out"
    ]
    assert found(prompts=prompts, recipe="expert-iteration") != []
    assert found(prompts=prompts) == []


def test_answers_that_the_judge_cannot_read() -> None:
    jsonl("a.jsonl", [{"prompt": f"p{n}", "answer": "a city" if n % 2 else "7"} for n in range(40)])
    prompts = {"source": "a.jsonl", "heldout": 4}
    first = found(prompts=prompts, recipe="expert-iteration")
    assert len(first) == 2  # of the prompts and of the held-out ones
    for problem in first:
        assert "answers of '" in problem and "cannot be read as number, the first of them 'a city'" in problem
        assert "without judge, answers are compared by number. Set judge to exact, math, choice or" in problem
    assert found(prompts=prompts, recipe="expert-iteration", judge="exact") == []
    (heldout,) = found(prompts=prompts, judge="choice", max_failed_rows=0.9)
    assert (
        "of the 4 answers of 'heldout' cannot be read as choice" in heldout and "judge is choice" in heldout
    )


def test_verifiers_are_tried_on_gold_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    golds = ["18", "1,234", r"18 \text{ cm}^2", "1 1/2", "#### 7"]
    jsonl("a.jsonl", [{"prompt": f"p{n}", "answer": golds[n % 5]} for n in range(40)])
    settings: dict[str, Any] = {"recipe": "expert-iteration", "judge": "number"}
    result = inspect(
        Draft(config=config(prompts={"source": "a.jsonl", "heldout": 4}, **settings), problems=[])
    )
    assert (result.problems, result.notes) == ([], [])
    assert result.tried == [
        "number was tried on 36 answers of 'prompts', each in 4 forms: it scores them all as right",
        "number was tried on 4 answers of 'heldout', each in 4 forms: it scores them all as right",
    ]
    jsonl("b.jsonl", [{"prompt": f"p{n}", "answer": "a}b" if n == 7 else str(n)} for n in range(40)])
    more = {"judge": "exact", "recipe": "expert-iteration"}
    rows = {"source": "b.jsonl", "heldout": 4}
    (problem,) = inspect(Draft(config=config(prompts=rows, **more), problems=[])).problems
    assert "does not score 1 of them as right: b.jsonl, line 8 ('a}b' in a box scores 0)" in problem
    allowed = inspect(Draft(config=config(prompts=rows, max_failed_rows=0.9, **more), problems=[]))
    assert allowed.problems == [] and "b.jsonl, line 8" in allowed.notes[0]
    monkeypatch.setattr(
        "selfloop.workflows.run.problems.SECONDS", 0.0
    )  # one is tried, and it is said of how many
    limited = inspect(
        Draft(config=config(prompts={"source": "a.jsonl", "heldout": 4}, **settings), problems=[])
    )
    assert ", drawn by the seed (of 36)" in limited.tried[0]


def test_large_files_are_read_for_a_limited_time() -> None:
    jsonl("a.jsonl", [{"prompt": f"p{n}"} for n in range(3000)])
    seen = scan(Prompts(source="a.jsonl"), 0, seconds=0)
    assert (seen.rows, seen.whole) == (1000, False)


def test_a_file_is_read_once_and_checked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from selfloop.workflows import sources
    from selfloop.workflows.executor import run as over_ray
    from selfloop.workflows.run.setup import Setup

    given = config(
        prompts=Prompts(
            source=jsonl("a.jsonl", [{"prompt": f"p{n}", "answer": "1"} for n in range(9)]), heldout=4
        )
    )
    wanted, read, ran = Setup(given).sources, sources.read_rows, list[Setup]()
    reads = list[Path]()
    monkeypatch.setattr(sources, "read_rows", lambda path: reads.append(path) or read(path))
    result = inspect(Draft(config=given, problems=[]), tmp_path / "run")
    assert result.problems == [] and result.whole
    monkeypatch.setattr(over_ray, "row_findings", None)
    monkeypatch.setattr(over_ray, "graph_problems", None)
    monkeypatch.setattr(over_ray, "run_over_ray", lambda setup, folder, console: ran.append(setup))
    over_ray.run(given, tmp_path / "run", None, False, result.setup, result.whole)
    assert ran == [result.setup] and ran[0].home == tmp_path / "run" and len(reads) == 1
    assert all(ran[0].sources[name].equals(table) for name, table in wanted.items())


def test_named_sources_are_looked_at() -> None:
    (problem,) = found(data={"seeds": Prompts(source="seeds.csv")})
    assert problem == f"prompt file seeds.csv does not exist in {Path.cwd()}. Mend the path"


# The machine


def test_more_gpus_than_there_are() -> None:
    assert found(generator={"gpus": 2}) == [
        "the config asks for 2 GPUs, and this machine has 0. Lower generator.replicas, generator.gpus, trainer.ranks or "
        "trainer.gpus"
    ]


def test_more_than_a_whole_gpu_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(generator={"memory": 4}) == []
    monkeypatch.setattr(checks_machine, "count_gpus", lambda: 1)
    problems = found(generator={"memory": 4})
    assert any("generator.memory is 4: on a GPU it is the share of the device" in one for one in problems)


def test_more_cpus_than_there_are() -> None:
    assert found(generator={"replicas": 3}) == [
        "the config asks for 3 CPUs, and this machine has 2. Lower generator.replicas, generator.threads, trainer.ranks "
        "or trainer.threads"
    ]
    assert found(generator={"replicas": 2}, placement="separate") == [
        "the config asks for 3 CPUs, and this machine has 2. Lower generator.replicas, generator.threads, trainer.ranks "
        "or trainer.threads, or set placement=colocated"
    ]


def test_a_cluster_is_counted_when_it_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert found(generator={"replicas": 99, "gpus": 8}) == []


@pytest.mark.parametrize(
    ("visible", "there", "counted"), [(None, 4, 4), ("0,2", 4, 2), ("", 4, 0), ("-1", 4, 0), ("0", 0, 0)]
)
def test_gpus_that_this_process_may_use(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, there: int, counted: int
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(checks_machine, "gpus_in_machine", lambda: there)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert checks_machine.count_gpus() == counted


def test_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = checks_machine.importlib.util.find_spec
    monkeypatch.setattr(checks_machine.importlib.util, "find_spec",
                        lambda name: None if name in ("vllm", "deepspeed", "wandb") else real(name))  # fmt: skip
    assert found(trackers=("wandb",)) == [
        "deepspeed, vllm are not installed, and this config needs them. Install: pip install 'selfloop[cpu]'",
        "wandb is not installed, and this config needs it. Install: pip install 'selfloop[wandb]'",
    ]


def test_too_little_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        checks_machine.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**40, 2**40, 2**20)
    )
    (problem,) = problems(config(), tmp_path / "run")
    assert problem == (
        f"the checkpoints still to be written need about 11 MiB (iterations 1 to 3), and {tmp_path} has 1 MiB free. Free about "
        "10 MiB there, set checkpoints.keep, or choose another --run-dir; nothing that was committed is lost"
    )


def test_disk_is_asked_only_for_what_is_still_to_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        checks_machine.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**40, 2**40, 2**20)
    )
    folder = RunFolder(tmp_path / "run")
    folder.open(config().model_dump(mode="json"))
    for index in range(3):
        folder.commit_iteration(index, {})
    (problem,) = problems(config(), tmp_path / "run")
    assert problem.startswith("the checkpoints still to be written need about 4 MiB (iterations 3 to 3)")
    (folder.iteration(3) / "policy").mkdir(parents=True)  # written, and not yet noted
    assert problems(config(), tmp_path / "run") == []
    folder.commit_iteration(3, {})
    assert problems(config(), tmp_path / "run") == []
    folder.close()


# The run folder


def test_run_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert problems(config(), tmp_path / "file" / "run") == [
        f"run folder {tmp_path}/file/run cannot be made: {tmp_path}/file is a file. Choose another --run-dir"
    ]


def test_run_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checks_machine.tempfile, "mkdtemp", refuse)
    assert problems(config(), tmp_path / "run") == [
        f"run folder {tmp_path}/run cannot be written ({tmp_path}: Permission denied). Choose another --run-dir"
    ]


def test_run_folder_of_another_config(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open(config().model_dump(mode="json"))
    folder.close()
    assert problems(config(), tmp_path / "run") == []
    assert (
        problems(config(seed=3, iterations=2), tmp_path / "run") == []
    )  # nothing is committed: it is taken over
    folder.commit_node(0, "evaluation", {})
    (problem,) = problems(config(seed=3, iterations=2, batch_size=9), tmp_path / "run")
    assert problem.startswith(
        f"{tmp_path}/run holds a run of another config: iterations was 3 and is now 2; seed was 0 and is now 3. Choose "
        "another --run-dir, set these back, or give `selfloop run … --again`"
    )
    assert "generator.replicas" in problem and "differ from there on, generator.threads" in problem


def test_a_run_that_goes_on_tells_its_other_settings(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open(config().model_dump(mode="json"))
    folder.commit_node(0, "evaluation", {})
    folder.close()
    changed = config(batch_size=9, trainer={"zero": 1}, trackers=())
    found = inspect(Draft(config=changed, problems=[]), tmp_path / "run")
    assert found.problems == []
    free, noted = found.notes
    assert free == (
        "the run goes on with other settings that do not change what it makes: batch_size was 64 and is now 9; trackers was "
        '["tensorboard", "ray"] and is now []'
    )
    assert noted.startswith(
        "trainer.zero was 0 and is now 1: what is made from here on may differ in its last bits"
    )


def test_a_run_stays_on_its_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open(config().model_dump(mode="json"))
    folder.commit_node(0, "evaluation", {})
    folder.note(resolved={"device": "cpu"})
    monkeypatch.setattr(checks_machine, "count_gpus", lambda: 2)
    found = inspect(Draft(config=config(), problems=[]), tmp_path / "run")
    assert (found.problems, found.notes) == (
        [], ["there are GPUs here, and the run stays on CPU, on which it began"],
    )  # fmt: skip
    folder.note(resolved={"device": "cuda"})
    monkeypatch.setattr(checks_machine, "count_gpus", lambda: 0)
    (problem,) = problems(config(), tmp_path / "run")
    assert problem.startswith("the run began on GPU (config.json, resolved), and no GPU is here now")


def test_run_folder_that_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    assert problems(config(), tmp_path) == [
        f"{tmp_path} is not empty and is no run (thesis.tex is in it). Choose another --run-dir"
    ]


def test_run_folder_with_broken_config(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{")
    assert problems(config(), tmp_path / "run") == [
        f"{tmp_path}/run/config.json is broken (Expecting property name enclosed in double quotes: line 1 column 2 "
        "(char 1)). Restore it, or name another folder"
    ]


def test_reuse_of_no_run() -> None:
    assert found(reuse="runs/none") == [
        "reuse runs/none is no run folder (it has no config.json). Name a run folder, or leave it out"
    ]


# Together


def test_mistakes_of_all_kinds_are_reported_together(tmp_path: Path) -> None:
    Path("c.yaml").write_text(
        "recipe: self-rewarding\niterations: 0\nmodel: ./nowhere\nprompts: data.jsonl\nlrr: 1\n"
    )
    result = inspect(read_config("c.yaml", ["generator.replicas=9"]), tmp_path / "run")
    assert result.problems == [
        "c.yaml, line 2: iterations is 0, and must be at least 1",
        "c.yaml, line 5: lrr is not a setting. Did you mean trainer.lr?",
        f"model ./nowhere: there is no such folder ({tmp_path}/nowhere). Mend the path, or give a hub name or pocket",
        f"prompt file data.jsonl does not exist in {tmp_path}. Mend the path",
        "the config asks for 9 CPUs, and this machine has 2. Lower generator.replicas, generator.threads, trainer.ranks "
        "or trainer.threads",
    ]


def test_a_wrong_value_is_not_reported_twice() -> None:
    jsonl("a.jsonl", [{"prompt": f"p{n}"} for n in range(100)])
    Path("c.yaml").write_text("recipe: self-rewarding\nprompts: {source: a.jsonl, heldout: 0}\n")
    assert inspect(read_config("c.yaml")).problems == [
        "c.yaml, line 2: prompts.heldout is 0, and must be at least 1"
    ]
