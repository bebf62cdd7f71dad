"""Config files, overrides, and every mistake in them with the message that is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from selfloop.workflows.config import Config, Draft, load_config, read_config
from selfloop.workflows.config.file import config_names, read_again
from selfloop.workflows.errors import InputError
from selfloop.workflows.judges.verifiers import VERIFIERS
from selfloop.workflows.report.pages.reference import reference


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write c.yaml and read it with overrides."""
    monkeypatch.chdir(tmp_path)

    def writes(text: str, *overrides: str) -> Draft:
        Path("c.yaml").write_text(text, encoding="utf-8")
        return read_config("c.yaml", list(overrides))

    return writes


def config_of(draft: Draft) -> Config:
    assert draft.problems == []
    assert draft.config is not None
    return draft.config


# What is right


def test_sparse_file_gets_defaults(write) -> None:
    config = config_of(write("recipe: self-rewarding\n"))
    assert (config.model, config.prompts.source, config.iterations) == ("pocket", "pocket", 3)


def test_numbers_keep_their_kind(write) -> None:
    config = config_of(
        write("recipe: self-rewarding\ntrainer: {lr: 1e-6}\n", "trainer.lr=3e-5", "generator.max_tokens=8")
    )
    assert config.trainer.lr == 3e-5
    assert config.generator.max_tokens == 8


def test_overrides_win_and_the_last_one_counts(write) -> None:
    assert config_of(write("recipe: self-rewarding\nseed: 1\n", "seed=2", "seed=3")).seed == 3


def test_lists_and_texts_in_overrides(write) -> None:
    config = config_of(
        write(
            "recipe: self-rewarding\n",
            "prompts.options.kinds=[sort, count]",
            "prompts.system='Be brief: two words'",
        )
    )
    assert config.prompts.options == {"kinds": ["sort", "count"]}
    assert config.prompts.system == "Be brief: two words"


def test_a_name_of_prompts_is_their_source_and_can_be_extended(write) -> None:
    config = config_of(write("recipe: self-rewarding\nprompts: a.jsonl\n", "prompts.heldout=5"))
    assert (config.prompts.source, config.prompts.heldout) == ("a.jsonl", 5)


def test_overriding_prompts_replaces_all_of_them(write) -> None:
    text = "recipe: self-rewarding\nprompts: {source: a.jsonl, columns: {prompt: q}}\n"
    assert config_of(write(text, "prompts=b.jsonl")).prompts.columns == {}


def test_named_sources(write) -> None:
    config = config_of(write("recipe: self-rewarding\ndata: {seeds: s.jsonl}\n", "data.more.source=m.csv"))
    assert {name: spec.source for name, spec in config.data.items()} == {"seeds": "s.jsonl", "more": "m.csv"}


def test_empty_groups_are_groups(write) -> None:
    assert config_of(write("recipe: self-rewarding\ntrainer:\n  # lr: 1\nsettings:\n")).trainer.ranks == 1


def test_interpolation(write) -> None:
    assert (
        config_of(write("recipe: self-rewarding\nseed: 7\niterations: ${seed}\n", "seed=4")).iterations == 4
    )


def test_settings_hold_what_was_given_in_the_types_of_the_recipe(write) -> None:
    assert config_of(write("recipe: self-rewarding\n", "settings.beta=1")).settings == {"beta": 1.0}


@pytest.mark.parametrize("name", config_names())
def test_every_shipped_config_loads_by_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["model=pocket", "prompts.source=pocket"]
    assert load_config(name, given) == load_config(f"configs/{name}.yaml", given)


def test_config_survives_json(write) -> None:
    config = config_of(write("recipe: self-rewarding\nsettings: {samples: 8}\ntrackers: [tensorboard]\n"))
    assert Config.model_validate(yaml.safe_load(config.model_dump_json())) == config


def test_judges_of_the_config_are_the_verifiers_there_are() -> None:
    for name in VERIFIERS:
        assert Config(recipe="self-rewarding", judge=name).judge == name


# What is wrong: (file, overrides, message)

SINGLE = [
    ("recipe: self-rewrding", [], "c.yaml, line 1: recipe is 'self-rewrding', and there is no such method. "
     "Did you mean self-rewarding?"),
    ("recipe: zzz", [], "c.yaml, line 1: recipe is 'zzz', and there is no such method. `selfloop methods` lists them"),
    ("model: pocket", [], "c.yaml: recipe is missing. Name a method, e.g. recipe: self-rewarding "
     "(`selfloop methods` lists them)"),
    ("recipe: self-rewarding\n\nitrations: 3", [], "c.yaml, line 3: itrations is not a setting. "
     "Did you mean iterations?"),
    ("recipe: self-rewarding\ntrainer:\n  learning_rate: 3", [], "c.yaml, line 3: trainer.learning_rate is not a "
     "setting. Did you mean trainer.lr?"),
    ("recipe: self-rewarding", ["lr=3"], "command line: lr is not a setting. Did you mean trainer.lr?"),
    ("recipe: self-rewarding", ["heldout=3"], "command line: heldout is not a setting. Did you mean prompts.heldout?"),
    ("recipe: self-rewarding", ["checkpoints.zzz=3"], "command line: checkpoints.zzz is not a setting. "
     "Known here: checkpoints.keep"),
    ("recipe: self-rewarding\nsettings: {sampels: 2}", [], "c.yaml, line 2: settings.sampels is not a setting of "
     "self-rewarding. Did you mean settings.samples?"),
    ("recipe: self-rewarding\ndata: {seeds: {sorce: a}}", [], "c.yaml, line 2: data.seeds.sorce is not a setting. "
     "Did you mean data.seeds.source?"),
    ("recipe: self-rewarding\ntrainer.lr: 1", [], "c.yaml, line 2: trainer.lr is one key with a dot in it, and a file "
     "nests groups. Write trainer: {lr: …}"),
    ("recipe: self-rewarding", ["iterations=0"], "command line: iterations is 0, and must be at least 1"),
    ("recipe: self-rewarding", ["trainer.lr=0"], "command line: trainer.lr is 0, and must be greater than 0.0"),
    ("recipe: self-rewarding", ["trainer.zero=4"], "command line: trainer.zero is 4, and must be at most 3"),
    ("recipe: self-rewarding", ["trainer.betas=[0.9, 1]"], "command line: trainer.betas.1 is 1, and must be less than "
     "1.0"),
    ("recipe: self-rewarding", ["iterations=2.5"], "command line: iterations is 2.5, and must be a whole number"),
    ("recipe: self-rewarding", ["trainer.lr=fast"], "command line: trainer.lr is 'fast', and must be a number"),
    ("recipe: self-rewarding", ["trust_remote_code=maybe"], "command line: trust_remote_code is 'maybe', and must be "
     "true or false"),
    ("recipe: self-rewarding", ["generator=3"], "command line: generator is 3, and must be a group of settings"),
    ("recipe: self-rewarding", ["prompts=3"], "command line: prompts is 3, and must be the name of a source or a group "
     "of settings"),
    ("recipe: self-rewarding", ["model="], "command line: model is empty, and must be text"),
    ("recipe: self-rewarding", ["model=''"], "command line: model is '', and must be text of at least 1 character"),
    ("recipe: self-rewarding", ["model=a: b: c"], "command line: the value of model is not YAML (mapping values are "
     "not allowed in this context). Quote it: 'model=\"…\"'"),
    ("recipe: self-rewarding", ["generator.engine=vlm"], "command line: generator.engine is 'vlm', and must be one of "
     "vllm, transformers, fake. Did you mean vllm?"),
    ("recipe: self-rewarding", ["settings.samples=1"], "command line: settings.samples is 1, and must be at least 2"),
    ("recipe: self-rewarding", ["judge=exakt"], "command line: judge is 'exakt', and must be exact, number, math, "
     "choice, or module:function for a checker of your own. Leave it out for the source's own"),
    ("recipe: self-rewarding", ["generator.max_model_len=64"], "command line: generator.max_tokens is 256 and "
     "generator.max_model_len is 64: no token is left for the prompt. Lower max_tokens or raise max_model_len"),
    ("recipe: self-rewarding", ["trainer.batch_size=2", "trainer.ranks=4"], "command line: trainer.batch_size is 2 and "
     "trainer.ranks is 4: every rank needs an example of each step. Raise batch_size or lower ranks"),
    ("recipe: self-rewarding", ["recipe.beta=0.2"], "command line: recipe.beta cannot be set, because recipe is the "
     "value 'self-rewarding', not a group. Did you mean settings.beta?"),
    ("recipe: self-rewarding", ["faster"], "command line: 'faster' is not a setting. Write key.sub=value, e.g. "
     "trainer.lr=1e-5"),
    ("recipe: self-rewarding\nmodel: ???", [], "c.yaml, line 2: model is left open (???). Give it, e.g. model=VALUE"),
    ("recipe: a\nrecipe: b", [], "c.yaml, line 2: the key recipe is written twice. Keep one"),
    ("recipe: [", [], "c.yaml, line 1: this is not YAML: expected the node content, but found '<stream end>'. "
     "Mend the line"),
    ("", [], "c.yaml is empty. A config needs at least: recipe: self-rewarding"),
    ("- recipe", [], "c.yaml must hold settings (key: value lines), and holds something else"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "overrides", "message"), SINGLE)
def test_one_mistake_one_message(write, text: str, overrides: list[str], message: str) -> None:
    assert write(text, *overrides).problems == [message]


def test_all_mistakes_are_reported_together(write) -> None:
    text = "recipe: qqq\niterations: 0\ntrainer:\n  lr: -1\n  rank: 2\n"
    write(text)
    with pytest.raises(InputError) as caught:
        load_config("c.yaml", ["batch_size=0"])
    assert str(caught.value) == (
        "5 problems were found:\n"
        "  1. c.yaml, line 1: recipe is 'qqq', and there is no such method. `selfloop methods` lists them\n"
        "  2. c.yaml, line 2: iterations is 0, and must be at least 1\n"
        "  3. c.yaml, line 4: trainer.lr is -1, and must be greater than 0.0\n"
        "  4. c.yaml, line 5: trainer.rank is not a setting. Did you mean trainer.ranks?\n"
        "  5. command line: batch_size is 0, and must be at least 1"
    )


def test_what_is_left_of_a_wrong_config_can_be_checked_further(write) -> None:
    draft = write("recipe: self-rewarding\niterations: 0\nmodel: nowhere/at/all\n")
    assert draft.config is not None
    assert (draft.config.model, draft.config.iterations) == ("nowhere/at/all", 3)
    assert draft.broken == {"iterations"}


def test_unknown_config_names_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"there is no config quickstat: no such file, .* Did you mean quickstart\?"
    ):
        load_config("quickstat")


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder, and a config is a YAML file"):
        load_config(str(tmp_path))


def test_a_missing_environment_variable_is_named(write) -> None:
    (problem,) = write("recipe: self-rewarding\nmodel: ${oc.env:SELFLOOP_NO_SUCH_THING}\n").problems
    assert "SELFLOOP_NO_SUCH_THING" in problem


def test_the_reference_page_is_up_to_date() -> None:
    page = Path(__file__).parents[3] / "docs" / "reference.md"
    assert page.read_text() == reference(), (
        "run python -m selfloop.workflows.report.pages.reference > docs/reference.md"
    )


def test_every_key_of_the_reference_is_explained() -> None:
    keys = [line for line in reference().splitlines() if line.startswith(("| `", "| key"))]
    assert [line for line in keys if line.endswith("|  |") and not line.startswith("| `settings.")] == []


def test_a_held_config_refers_to_nothing(tmp_path: Path) -> None:
    """`${` in a text of config.json (a chat template, a system message) is text, behind any number of backslashes."""
    texts = ["{{ x }} ${", "${y}", "\\${y}", "\\\\${y}\\", "$${", "a ${b} c ${", 'q" ${"}']
    for text in texts:
        config = load_config("quickstart", ["prompts.heldout=8"])
        held = {**config.model_dump(mode="json"), "prompts": {**config.prompts.model_dump(), "system": text}}
        (tmp_path / "config.json").write_text(json.dumps({"format": 5, "config": held}))
        again = load_config(str(tmp_path / "config.json"))
        assert again.prompts.system == text
        draft = read_again(again, ["iterations=9"], "config.json")
        assert draft.problems == [] and draft.config is not None and draft.config.prompts.system == text


def test_a_reference_that_is_none_is_told_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "recipe: self-rewarding\nprompts: {source: pocket, system: 'End with ${}$.'}\n"
    )
    with pytest.raises(InputError, match=r"c\.yaml: .*write its \$\{ as"):
        load_config(str(tmp_path / "c.yaml"))
