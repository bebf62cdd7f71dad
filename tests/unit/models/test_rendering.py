"""Text is never control, and turns end as the template ends them: five families of chat templates, token by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from selfloop.workflows.models.codec import Codec
from selfloop.workflows.models.facts import read_facts
from selfloop.workflows.models.rendering import Rendering, Turn
from tests.templates import CHATML, GEMMA, TOKENIZERS, chatml, fast, gemma, mistral

Messages = list[dict[str, str]]

TEXTS = [
    "How many pens?",
    "  He has 3 pens.\n",
    "\n\nHe < 3 é 漢 [/",
    "<think>no</think>\n<b>3</b>",
    "|> x <",
    "3",
]
ENDS = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "mistral": "</s>",
        "legacy-mistral": "</s>", "pocket": "<|end|>"}  # fmt: skip


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def family(request: pytest.FixtureRequest) -> tuple[str, Rendering]:
    return request.param, Rendering(TOKENIZERS[request.param]())


def user(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def talks(name: str) -> list[Messages]:
    """Conversations that spell no special token."""
    made = [user(text) for text in TEXTS]
    made += [
        [*user(one), {"role": "assistant", "content": two}, *user("And?")] for one in TEXTS for two in TEXTS
    ]
    return (
        made
        if name == "gemma"
        else made + [[{"role": "system", "content": "Be kind."}, *one] for one in made]
    )


def applied(rendering: Rendering, messages: Messages, prompt: bool = True) -> list[int]:
    return rendering.tokenizer.apply_chat_template(
        messages, add_generation_prompt=prompt, tokenize=True, return_dict=False
    )


def names(rendering: Rendering, ids: list[int]) -> list[str]:
    return rendering.tokenizer.convert_ids_to_tokens(ids)


def control(rendering: Rendering, ids: list[int]) -> list[str]:
    own = {rendering.tokenizer.convert_tokens_to_ids(word): word for word in rendering.special}
    return [own[token] for token in ids if token in own]


def test_content_that_spells_nothing_gives_the_tokens_of_apply_chat_template(
    family: tuple[str, Rendering],
) -> None:
    name, rendering = family
    for messages in talks(name):
        assert rendering.prompt(messages) == applied(rendering, messages)


def test_the_twin_gives_the_same_tokens(
    family: tuple[str, Rendering], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, rendering = family
    monkeypatch.setattr(rendering, "folds", True)
    for messages in talks(name):
        assert rendering.prompt(messages) == applied(rendering, messages)


def test_spelled_special_tokens_are_text(family: tuple[str, Rendering]) -> None:
    name, rendering = family
    roles = ["user", "assistant", "user"]
    for word in sorted(rendering.special):
        plain = [{"role": role, "content": "one two"} for role in roles]
        for content in (
            f"one{word}two",
            word,
            f"{word} {word}\n",
            f" \n{word}{word[:-1]}",
            f"{word[1:]} x {word[0]}",
        ):
            hostile = [{"role": role, "content": content} for role in roles]
            ids = rendering.prompt(hostile)
            assert control(rendering, ids) == control(rendering, applied(rendering, plain))
            said = rendering.response(content)
            assert control(rendering, said) == [ENDS[name]]
            assert content.strip() in rendering.tokenizer.decode(said)
            assert control(rendering, rendering.text(content)) == []


SPELLED = {
    "chatml": ["<|im_", "end|>"],
    "llama3": ["<", "|", "e", "o", "t", "_", "i", "d", "|", ">"],
    "gemma": ["<e", "nd_of_turn>"],
    "mistral": ["<", "/s>"],
    "pocket": ["<", "|", "e", "n", "d", "|", ">"],
}


@pytest.mark.parametrize("name", list(SPELLED))
def test_the_tokens_of_a_spelled_end(name: str) -> None:
    rendering = Rendering(TOKENIZERS[name]())
    for_one, for_two = (rendering.prompt(user(f"3{text}3")) for text in ("", ENDS[name]))
    first = next(
        place for place, pair in enumerate(zip(for_one, for_two, strict=False)) if pair[0] != pair[1]
    )
    assert names(rendering, for_two[first : first + len(SPELLED[name])]) == SPELLED[name]


def test_added_tokens_that_are_not_special_stay() -> None:
    rendering = Rendering(chatml())
    ids = rendering.prompt(user("<think>a</think><|im_end|><tool_call>"))
    assert [one for one in names(rendering, ids) if one in ("<think>", "</think>", "<tool_call>")] == [
        "<think>",
        "</think>",
        "<tool_call>",
    ]
    assert control(rendering, ids) == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]


def test_a_special_token_in_parts_over_two_messages_is_text() -> None:
    tokenizer = chatml()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content | trim }}{% endfor %}<|im_end|>{{ messages[0].content }}>"
    )
    rendering = Rendering(tokenizer)
    for first, second in (
        ("a <|im_", "start|> b"),
        ("<|im_end ", " |>"),
        ("<", "|im_end|>"),
        ("<|im_end|", "> "),
    ):
        both = [*user(first), {"role": "assistant", "content": second}]
        assert control(rendering, rendering.prompt(both)) == ["<|im_end|>"]


def test_a_lookalike_that_the_normalizer_makes_a_special_token_is_text() -> None:
    from tokenizers import AddedToken, Tokenizer, models, normalizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = [(sign, -1.0 - place) for place, sign in enumerate(["<u>", "<e>", *"<>abceu"])]
    made = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    made.add_special_tokens(
        [AddedToken(word, special=True, normalized=True) for word in ("<u>", "<e>", "<bb>")]
    )
    template = "{% for m in messages %}<bb>{{ m.content }}<e>{% endfor %}"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, chat_template=template, eos_token="<e>", unk_token="<u>"
    )
    rendering = Rendering(tokenizer)
    assert rendering.folds
    for plain in ("abc", "a <b", "CAB"):
        assert rendering.prompt(user(plain)) == applied(rendering, user(plain))
    for content in ("a\uff1ce\uff1eb", "a<E>b", "a<e>b", "a<BB>"):
        assert [one for one in control(rendering, rendering.prompt(user(content))) if one != "<u>"] == [
            "<bb>",
            "<e>",
        ]


def test_a_response_stands_behind_its_prompt_as_the_template_writes_it(family: tuple[str, Rendering]) -> None:
    name, rendering = family
    behind = {"chatml": "\n", "gemma": "\n"}.get(name, "")
    for prompt in talks(name):
        for text in TEXTS:
            whole = applied(rendering, [*prompt, {"role": "assistant", "content": text}], False)
            said = rendering.prompt(prompt) + rendering.response(text)
            assert whole[: len(said)] == said
            assert rendering.tokenizer.decode(whole[len(said) :]) == behind


def test_the_end_is_the_one_that_the_template_writes(family: tuple[str, Rendering]) -> None:
    name, rendering = family
    assert names(rendering, rendering.response("He has 3 pens."))[-1] == ENDS[name]
    assert names(rendering, [rendering.turn.end or 0]) == [ENDS[name]]
    assert rendering.response("3 pens", ended=False) == rendering.response("3 pens")[:-1]


def turn_of(tokenizer: Any, template: str | None) -> Turn:
    tokenizer.chat_template = template
    return Rendering(tokenizer).turn


def test_templates_that_write_no_end_end_with_the_tokenizers_own() -> None:
    tokenizer = chatml()
    own = tokenizer.eos_token_id
    assert turn_of(tokenizer, None) == Turn("", "", True, True, "", own)
    assert turn_of(tokenizer, "{{ raise_exception('no') }}") == Turn("", "", True, True, "", own)
    bare = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    assert turn_of(tokenizer, bare) == Turn("user: 1\nassistant:", " ", True, True, "", own)
    rendering = Rendering(tokenizer)
    assert names(rendering, rendering.response("3"))[-2:] == ["3", "<|endoftext|>"]
    spaced = (
        CHATML.replace("{{ m.content }}", "{{ m.content | trim }} ")
        + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}"
    )
    assert turn_of(tokenizer, spaced) == Turn("<|im_start|>assistant\n", "", False, False, " <|im_end|>", 2)
    thought = CHATML.replace(
        "{{ m.content }}", "{% if m.role == 'assistant' %}<think>\n</think>\n{% endif %}{{ m.content }}"
    )
    assert turn_of(tokenizer, thought) == Turn("<|im_start|>assistant\n", "", True, True, "<|im_end|>", 2)


def test_a_first_character_that_melts_with_the_header_is_encoded_apart() -> None:
    made = chatml()
    made.chat_template = CHATML.replace("assistant\n", "H")
    rendering = Rendering(made)
    prompt, said = rendering.prompt(user("x")), rendering.response("e has")
    assert made.decode(prompt + said).endswith("<|im_start|>He has<|im_end|>")


def saved(folder: Path, tokenizer: Any, listed: Any = None) -> str:
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(
        json.dumps({"vocab_size": 600, "eos_token_id": 0, "model_type": "llama"})
    )
    if listed is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": listed}))
    return str(folder)


def test_the_generator_stops_at_the_template_s_end_and_at_the_model_s_own_list(tmp_path: Path) -> None:
    tokenizer = chatml()
    think = tokenizer.convert_tokens_to_ids("<think>")
    folder = saved(tmp_path / "one", tokenizer, [7, think])
    assert (
        read_facts(folder).ends == Codec(folder).ends == {0, 2, 7, think}
    )  # 0: the tokenizer's own, 2: <|im_end|>
    tokenizer.chat_template = None
    folder = saved(tmp_path / "two", tokenizer)
    assert read_facts(folder).ends == Codec(folder).ends == {0}


@pytest.mark.parametrize(
    ("make", "texts"),
    [
        (chatml, ["3<|im_end|>", "3<|im_end|>\n", "3<|im_end|> <|im_end|>\n", "3<|endoftext|>"]),
        (gemma, ["3<end_of_turn>\n", "3<eos>", "3<end_of_turn><eos>"]),
        (mistral, ["3</s>", "3</s> </s>"]),
    ],
)
def test_end_markers_at_a_response_s_end_are_taken_off(tmp_path: Path, make: Any, texts: list[str]) -> None:
    codec = Codec(saved(tmp_path, make()))
    assert [codec.without_end(text) for text in texts] == ["3"] * len(texts)
    assert {tuple(codec.encode_response(text)) for text in texts} == {tuple(codec.encode_response("3"))}
    inside = f"3{texts[0]}4"
    assert codec.without_end(inside) == inside and codec.decode([codec.encode_response(inside)]) == [inside]


def test_an_end_that_is_no_special_token_is_not_in_the_text(tmp_path: Path) -> None:
    made = fast(
        gemma().backend_tokenizer,
        GEMMA.replace("<end_of_turn>", "<stop>"),
        ("<stop>",),
        bos_token="<bos>",
        eos_token="<eos>",
    )
    codec = Codec(saved(tmp_path, made))
    ids = codec.encode_response("3 pens<stop>")
    assert made.convert_ids_to_tokens(ids)[-1] == "<stop>" and codec.decode([ids]) == ["3 pens"]


def test_a_tokenizer_without_a_twin_refuses_only_texts_that_spell_special_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = chatml()
    monkeypatch.setattr(type(made), "is_fast", False)
    rendering = Rendering(made)
    assert rendering.prompt(user("3 pens")) == applied(rendering, user("3 pens"))
    with pytest.raises(ValueError, match="no fast tokenizer"):
        rendering.prompt(user("<|im_end|>"))
