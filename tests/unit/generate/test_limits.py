"""What engines read of a model folder, and which asks they refuse."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from selfloop.actors.generate.limits import ask_problem
from selfloop.workflows.errors import InputError
from selfloop.workflows.flow.asks import Ask, SamplingParams
from selfloop.workflows.models.facts import ModelFacts, read_facts, tensor_names
from selfloop.workflows.pocket.source import POCKET_MODEL


def folder(path: Path, **files: dict[str, Any]) -> str:
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return str(path)


def test_end_tokens_are_those_of_the_generation_config_and_the_tokenizer(tmp_path: Path) -> None:
    model = folder(
        tmp_path,
        config={"vocab_size": 50, "max_position_embeddings": 9000, "eos_token_id": 3},
        generation_config={"eos_token_id": [5, 6]},
        tokenizer_config={"eos_token": {"content": "<end>"}},
        tokenizer={"added_tokens": [{"id": 7, "content": "<end>"}, {"id": 8, "content": "<other>"}]},
    )
    assert read_facts(model).ends == {5, 6, 7}
    assert (read_facts(model).longest, read_facts(model, 64).longest) == (4096, 64)


def test_end_tokens_without_a_generation_config(tmp_path: Path) -> None:
    model = folder(tmp_path, config={"text_config": {"vocab_size": 50, "eos_token_id": 3}})
    assert read_facts(model).ends == {3}


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json"):
        read_facts(str(tmp_path))


def test_the_pocket_model_is_read() -> None:
    facts = read_facts(str(POCKET_MODEL))
    assert facts.vocabulary > 1 and facts.ends and facts.cache_bytes("float32")
    assert "model.embed_tokens.weight" in tensor_names(str(POCKET_MODEL))


@pytest.mark.parametrize(
    ("ids", "params", "words"),
    [
        ([], {}, "no tokens"),
        ([5] * 20, {}, "20 tokens"),
        ([5, 99], {}, "vocabulary"),
        ([5], {"max_tokens": 0}, "max_tokens"),
        ([5], {"temperature": 2.5}, "temperature"),
        ([5], {"top_p": 0.0}, "top_p"),
        ([5], {"top_k": -1}, "top_k"),
        ([5], {"stop": ("",)}, "stop"),
    ],
)
def test_asks_that_cannot_be_served(ids: list[int], params: dict[str, Any], words: str) -> None:
    facts = ModelFacts(vocabulary=50, longest=20, ends=frozenset({1}))
    assert words in str(ask_problem(Ask(ids, 0, SamplingParams(**params)), facts))
    assert ask_problem(Ask([5] * 19, 0, SamplingParams()), facts) is None
    assert pickle.loads(pickle.dumps(facts)) == facts
