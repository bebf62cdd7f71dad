"""`prompts.template`: one rendering everywhere, the same run as with the template in the model's folder, and its errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfloop.actors.train.spec import TrainerSpec
from selfloop.actors.train.trainer import Trainer
from selfloop.workflows.cli.chat import checkpoint_of
from selfloop.workflows.config import Config, read_config
from selfloop.workflows.errors import InputError
from selfloop.workflows.models.codec import Codec
from selfloop.workflows.models.facts import read_facts
from selfloop.workflows.models.templates import written
from selfloop.workflows.pocket.source import POCKET_MODEL
from selfloop.workflows.report.console import Console
from selfloop.workflows.run.loop import loop
from selfloop.workflows.run.setup import Setup
from selfloop.workflows.run.template_check import template_findings
from selfloop.workflows.store.export import export_policy
from selfloop.workflows.store.folder import RunFolder
from tests.models import byte_tokenizer
from tests.recipes.runs import Watched, by_seed, fake_trainer, local, pocket_config
from tests.templates import chatml, gemma, llama3, mistral
from tests.unit.flows import rows_of

POCKET = (POCKET_MODEL / "chat_template.jinja").read_text(encoding="utf-8")
TALK = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "sort 3 1"}]
SAYS = "{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The pocket model without its chat template."""
    return shutil.copytree(POCKET_MODEL, tmp_path / "base", ignore=shutil.ignore_patterns("*.jinja"))


def setup_of(model: Path, home: Path | None, template: str | None, recipe: str = "self-rewarding") -> Setup:
    prompts = {"heldout": 8, "options": {"size": 24}, "template": template}
    return Setup(pocket_config(recipe, model=str(model), prompts=prompts), home)


def run(setup: Setup, make: Callable[[Config], Watched] = fake_trainer) -> Path:
    """Two iterations in this process; returns the run's folder."""
    assert setup.home is not None
    folder = RunFolder(setup.home)
    folder.open(setup.config.model_dump(mode="json"))
    try:
        with local(setup, folder, make(setup.config), by_seed) as (runtime, job):
            loop(setup, folder, runtime, job, Console(live=False))
    finally:
        folder.close()
    return setup.home


def contents(run: Path) -> dict[str, Any]:
    """Rows, keys and weights of a run: its parts as bytes, its manifests without folders."""
    found: dict[str, Any] = {}
    for path in sorted(run.glob("iteration=*/**/*")):
        if path.suffix in (".parquet", ".safetensors", ".jinja"):
            found[str(path.relative_to(run))] = path.read_bytes()
        elif path.name == "manifest.json":
            found[str(path.relative_to(run))] = path.read_text().replace("../base", "model")
    return found


# The same everywhere


def test_a_given_template_makes_the_run_that_the_models_own_makes(base: Path, tmp_path: Path) -> None:
    (given := tmp_path / "chat.jinja").write_text(POCKET)
    first = run(setup_of(base, tmp_path / "given", str(given)))
    (base / "chat_template.jinja").write_text(POCKET)
    second = run(setup_of(base, tmp_path / "own", None))
    assert rows_of(first, 2, "sample") == rows_of(second, 2, "sample") != []
    assert contents(first).keys() == contents(second).keys()
    assert all(contents(second)[name] == value for name, value in contents(first).items())
    assert (first / "iteration=0002" / "policy" / "chat_template.jinja").read_text() == POCKET


def test_engine_trainer_codec_and_chat_see_one_folder(base: Path, tmp_path: Path) -> None:
    setup = setup_of(base, tmp_path / "run", "chatml")
    engine, trainer, _ = setup.specs(0)
    assert engine.model == trainer.model == str(setup.folder) == str(tmp_path / "run" / "model")
    (tmp_path / "run" / "config.json").write_text(
        json.dumps({"config": setup.config.model_dump(mode="json")})
    )
    assert checkpoint_of(tmp_path / "run") == (setup.folder, 0)
    direct, laid = Codec(base, template="chatml"), Codec(setup.folder)
    assert direct.encode(TALK) == laid.encode(TALK)  # what `check` measures, and what is sampled
    assert direct.encode_response("1 3") == laid.encode_response("1 3")
    assert (direct.hash, direct.ends) == (laid.hash, laid.ends) and read_facts(engine.model).ends == laid.ends
    assert laid.tokenizer.decode(laid.encode(TALK)) == (
        "<|im_start|>system\nBe kind.<|end|>\n<|im_start|>user\nsort 3 1<|end|>\n<|im_start|>assistant\n"
    )


def test_policies_and_exports_load_with_the_template(base: Path, tmp_path: Path) -> None:
    """Trained by the real trainer, on links."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    setup = setup_of(base, tmp_path / "run", "plain", "expert-iteration")

    def trainer(config: Config) -> Watched:
        return Watched(Trainer(TrainerSpec(str(setup.folder))))

    policy, _ = checkpoint_of(run(setup, trainer))
    export_policy(policy, base, tmp_path / "out")
    for folder in (policy, tmp_path / "out"):
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        shown = tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
        assert shown == "System:\nBe kind.\n\nUser:\nsort 3 1\n\nAssistant:\n"
        assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() > 100_000
        assert not any(path.is_symlink() for path in folder.iterdir())


def test_other_tools_stop_where_the_template_ends_a_turn(tmp_path: Path) -> None:
    from transformers import GenerationConfig

    tokenizer = chatml()
    end, own = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text(json.dumps({"eos_token_id": own, "bos_token_id": own}))
    setup = setup_of(tmp_path / "base", tmp_path / "run", "chatml")
    assert Codec(setup.folder).encode_response("3")[-1] == end
    made = GenerationConfig.from_pretrained(str(setup.folder))
    assert (sorted([end, own]), own) == (made.eos_token_id, made.bos_token_id)
    plain = setup_of(tmp_path / "base", tmp_path / "other", "plain").folder
    assert not (plain / "generation_config.json").exists()  # its end is the tokenizer's own


def test_a_template_in_tokenizer_config_and_named_ones_give_way(base: Path, tmp_path: Path) -> None:
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": SAYS}))
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool_use.jinja").write_text(SAYS)
    folder = setup_of(base, tmp_path / "run", POCKET).folder
    assert Codec(folder).tokenizer.chat_template == POCKET
    assert json.loads((folder / "tokenizer_config.json").read_text()) == settings
    assert (base / "tokenizer_config.json").read_text() == json.dumps({**settings, "chat_template": SAYS})


def test_keys_know_the_template(base: Path, tmp_path: Path) -> None:
    given = setup_of(base, tmp_path / "a", POCKET).model_hash
    assert (
        given == setup_of(base, tmp_path / "b", POCKET).model_hash != setup_of(base, None, "plain").model_hash
    )
    (base / "chat_template.jinja").write_text(POCKET)
    assert setup_of(base, tmp_path / "c", None).model_hash == given


def test_a_changed_file_is_another_config(base: Path, tmp_path: Path) -> None:
    (file := tmp_path / "chat.jinja").write_text(POCKET)
    setup = setup_of(base, tmp_path / "run", str(file))
    folder = RunFolder(tmp_path / "run")
    folder.open(setup.config.model_dump(mode="json"))
    folder.commit_iteration(0, {})
    folder.close()
    assert folder.open(setup_of(base, None, str(file)).config.model_dump(mode="json"))
    folder.close()
    file.write_text(POCKET + " ")
    with pytest.raises(InputError, match=r"prompts\.template was .{100}… \(.*hash .* is now .{100}… \("):
        folder.open(setup_of(base, None, str(file)).config.model_dump(mode="json"))
    folder.close()


# Built-in ones


@pytest.mark.parametrize("make", [chatml, llama3, gemma, mistral, byte_tokenizer])
@pytest.mark.parametrize("name", ["chatml", "plain"])
def test_built_in_templates_fit_any_vocabulary(make: Callable[[], Any], name: str, tmp_path: Path) -> None:
    """They begin as the tokenizer begins a text, and end an answer with one token that it has."""
    tokenizer = make()
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    codec = Codec(tmp_path, template=name)
    begins = tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    assert (codec.encode(TALK)[0] == tokenizer.bos_token_id) == (
        tokenizer.bos_token_id is not None and begins
    )
    known = "<|im_end|>" in tokenizer.get_vocab() and name == "chatml"
    end = tokenizer.convert_tokens_to_ids("<|im_end|>") if known else tokenizer.eos_token_id
    said = codec.encode_response("3 pens")
    assert (said[-1], said.count(end)) == (end, 1) and codec.decode([said]) == ["3 pens"]


def test_a_text_is_written_as_it_is() -> None:
    assert written(SAYS, None) == SAYS


# Errors and notes


def findings(model: Path, template: str | None, system: str | None = None) -> tuple[list[str], list[str]]:
    prompts = {"template": template, "system": system}
    return template_findings(Config(recipe="self-rewarding", model=str(model), prompts=prompts), model)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("template", "system", "words"),
    [
        ("{% for m in messages %}{{ m.content }", None, "cannot be parsed: TemplateSyntaxError, line 1: unexpected '}'"),
        ("{{ 'hello' }}", None, "does not take a user's message: it leaves out the message of role user"),
        ("{{ messages[1].content }}", None, "does not take a user's message: UndefinedError: "),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + SAYS, "Be kind.",
         "does not take the system message that prompts.system sets: TemplateError: no system. Leave prompts.system out"),
        ("{{ messages[-1].content }}", "Be kind.", "prompts.system sets: it leaves out the message of role system."),
    ],
)  # fmt: skip
def test_a_template_that_does_not_fit_is_refused(
    base: Path, template: str, system: str | None, words: str
) -> None:
    problems, notes = findings(base, template, system)
    assert len(problems) == 1 and not notes
    assert problems[0].startswith("the chat template of prompts.template ") and words in problems[0]
    assert problems[0].endswith("chatml or plain")


def test_no_template_at_all_names_the_key(base: Path) -> None:
    problems, _ = findings(base, None)
    assert len(problems) == 1 and "Set prompts.template to chatml, plain or a Jinja file" in problems[0]


def test_answers_that_could_never_end_are_refused(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    problems, _ = findings(tmp_path, SAYS)
    assert len(problems) == 1 and "every answer would be cut at generator.max_tokens" in problems[0]
    assert findings(tmp_path, "chatml")[0] == []  # its vocabulary has <|im_end|>


def test_notes_say_how_a_prompt_looks_and_what_ends_an_answer(base: Path) -> None:
    assert findings(base, POCKET, "Be kind.") == ([], [
        f"the chat template of prompts.template writes a prompt for model {base} as "
        "'<|system|>…<|end|><|user|>…<|end|><|assistant|>'; <|end|> ends an answer",
    ])  # fmt: skip
    assert findings(base, "chatml")[1] == [
        f"prompts.template (chatml) writes a prompt for model {base} as "
        "'<|im_start|>user\\n…<|end|>\\n<|im_start|>assistant\\n'; <|end|> ends an answer",
        f"prompts.template (chatml) writes <|im_start|>, which model {base} has no token for: it reads them as text, several "
        "tokens each (prompts.template=plain does without)",
    ]
    (base / "chat_template.jinja").write_text(POCKET)
    headless = "{% for m in messages %}{{ m.role + '\\n' + m.content + '\\n' }}{% endfor %}"
    assert findings(base, headless)[1] == [
        f"the chat template of prompts.template takes the place of the one that model {base} has",
        f"the chat template of prompts.template writes a prompt for model {base} as 'user\\n…\\n'; it writes no token of the "
        "vocabulary behind an answer, which the model's own <|end|> ends",
        "the chat template of prompts.template writes 'assistant' before an answer in a conversation, and not behind a prompt "
        "that is to be answered: write it there if add_generation_prompt",
    ]
    assert findings(base, POCKET)[1][0].startswith("the chat template of prompts.template writes a prompt")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("prompts.template=chatlm", "prompts.template is 'chatlm', and there is no such file ("),
        ("prompts.template=.", "prompts.template is '.', and it cannot be read ("),
        (
            "prompts.template=empty.jinja",
            "prompts.template empty.jinja has no {{ … }}, so it would write nothing",
        ),
        (
            "data.more.template=chatml",
            "data.more.template is set, and a run writes all messages with one template.",
        ),
    ],
)
def test_what_is_no_template_is_a_config_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.jinja").write_text("hello")
    draft = read_config("quickstart", [given])
    assert len(draft.problems) == 1 and draft.problems[0].startswith(f"command line: {words}")


def test_the_config_keeps_the_text(tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text(POCKET)
    config = Config(recipe="spin", prompts={"template": str(tmp_path / "chat.jinja")})  # pyright: ignore[reportArgumentType]
    assert config.prompts.template == POCKET
    (tmp_path / "chat.jinja").unlink()
    assert Config.model_validate(config.model_dump(mode="json")) == config
