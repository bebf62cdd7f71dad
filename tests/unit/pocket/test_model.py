"""The pocket world's tokenizer and shipped base checkpoint."""

from __future__ import annotations

import json
import random
import unicodedata
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfloop.workflows.pocket import roles
from selfloop.workflows.pocket.make.demonstrations import Noise, demonstration
from selfloop.workflows.pocket.make.measure import auc, calibration_error, measure
from selfloop.workflows.pocket.make.player import Player, load
from selfloop.workflows.pocket.make.tokenizer import build_tokenizer
from selfloop.workflows.pocket.make.worth import Settings, learn, pairs_of
from selfloop.workflows.pocket.source import POCKET_MODEL

TOKENIZER = build_tokenizer()


@pytest.fixture(scope="module")
def player() -> Player:
    import torch

    torch.set_num_threads(1)
    return load(POCKET_MODEL)


@given(st.text())
@settings(deadline=None)
def test_any_text_comes_back_unchanged(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert TOKENIZER.decode(ids) == unicodedata.normalize("NFC", text)


def test_digits_and_labels_are_single_tokens() -> None:
    assert TOKENIZER.tokenize("52913") == list("52913")
    for word in ("yes", "no", "A", "B", *"0123456789"):
        assert len(TOKENIZER.encode(word, add_special_tokens=False)) == 1


def test_chat_template() -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "sort 21"}]
    text: Any = TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|system|>s<|end|><|user|>sort 21<|end|><|assistant|>"
    full = TOKENIZER.apply_chat_template([*messages, {"role": "assistant", "content": "12"}], tokenize=False)
    assert full == text + "12<|end|>"
    masked: Any = TOKENIZER.apply_chat_template(
        [*messages, {"role": "assistant", "content": "12"}],
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    assert masked["assistant_masks"][-4:] == [0, 1, 1, 1]
    with pytest.raises(Exception, match="unknown role tool"):
        TOKENIZER.apply_chat_template([{"role": "tool", "content": ""}], tokenize=False)


def test_the_shipped_folder() -> None:
    files = {path.name: path.stat().st_size for path in POCKET_MODEL.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert {"tokenizer_config.json", "chat_template.jinja"} <= set(files)
    assert sum(files.values()) <= 8 * 2**20
    config = json.loads((POCKET_MODEL / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForCausalLM"] and config["max_position_embeddings"] >= 512
    assert config["hidden_size"] // config["num_attention_heads"] in (32, 64, 128)


def test_the_shipped_tokenizer_is_the_built_one(player: Player) -> None:
    assert json.loads(player.tokenizer.backend_tokenizer.to_str()) == json.loads(
        TOKENIZER.backend_tokenizer.to_str()
    )
    assert player.tokenizer.chat_template == TOKENIZER.chat_template
    assert (player.tokenizer.eos_token, player.tokenizer.pad_token) == ("<|end|>", "<|pad|>")


def test_every_demonstration_fits_and_long_prompts_run(player: Player) -> None:
    rng = random.Random(0)
    rows = [demonstration(rng, Noise()) for _ in range(300)]
    assert max(len(ids) for ids in player.encode([messages for messages, _ in rows])) < 64
    long = [{"role": "user", "content": "1" * 300}]
    assert len(player.sample([long], most=4)[0]) == 1


def test_auc_and_calibration() -> None:
    assert auc([0.1, 0.9, 0.5, 0.5], [False, True, True, False]) == pytest.approx(0.875)
    assert calibration_error([0.95, 0.95, 0.05, 0.05], [True, True, False, True]) == pytest.approx(0.25)


def test_what_is_measured_is_still_so(player: Player) -> None:
    """docs/pocket.md on a smaller sample, with margins for its size."""
    figures: dict[str, Any] = measure(player, size=180, seed=11)
    assert 0.36 <= figures["sampled"] <= 0.69
    assert figures["majority of 8"] >= figures["sampled"] + 0.06
    assert figures["greedy"] <= 0.95
    assert figures["judge AUC"] > 0.7
    assert figures["comparison, right one first"] > 0.55 and figures["comparison, right one second"] > 0.55
    assert figures["refinement gain"] > 0
    assert figures["hard band, greedy"] < 0.5


def test_greedy_does_not_depend_on_company(player: Player) -> None:
    asked = [roles.answer_messages(text) for text in ("sort 321", "max 12345", "add 12 34", "reverse 987")]
    together = [group[0].text for group in player.sample(asked, temperature=0.0)]
    assert together == [player.sample([one], temperature=0.0)[0][0].text for one in asked]


def test_pairs_by_signal(player: Player) -> None:
    """Majority prefers the most voted answer, reversed is its opposite, and no signal reads an answer."""
    from selfloop.workflows.pocket.tasks import generate

    tasks = generate("train", 32, 0)
    said = player.sample([roles.answer_messages(task.text) for task in tasks], n=8, seed=0)
    made = {
        signal: pairs_of(signal, player, tasks, said, Settings(), random.Random(0))
        for signal in ("majority", "reversed", "judge", "shuffled")
    }
    assert [(p.chosen, p.rejected) for p in made["reversed"]] == [
        (p.rejected, p.chosen) for p in made["majority"]
    ]
    assert all(pairs for pairs in made.values())
    assert fmean(pair.weight for pair in made["majority"]) > 0


def test_learning_moves_towards_the_chosen(player: Player) -> None:
    from selfloop.workflows.pocket.make.worth import Pair, reply_logprobs

    learner = load(POCKET_MODEL).model
    prompt = player.encode([roles.answer_messages("sort 321")])[0]
    chosen, rejected = (player.tokenizer(text + "<|end|>")["input_ids"] for text in ("123", "132"))
    before = reply_logprobs(learner, [(prompt, chosen), (prompt, rejected)])
    learn(learner, [Pair(prompt, chosen, rejected)] * 8, 1e-4, Settings(pairs=4), random.Random(0))
    after = reply_logprobs(learner, [(prompt, chosen), (prompt, rejected)])
    gap = (after[0] - after[1]) - (before[0] - before[1])
    assert float(gap.detach()) > 0
