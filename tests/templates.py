"""Five small tokenizers with the chat templates of five families, and their quirks, made for a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from selfloop.workflows.pocket.make.tokenizer import build_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{% set ns = namespace(before='') %}{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.before = m.content ~ '\n\n' %}"
    "{% elif m.role == 'user' %}[INST] {{ ns.before }}{{ m.content }}[/INST]{% set ns.before = '' %}"
    "{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
WORDS = [
    "You are a helpful assistant.",
    "How many pens does he have?",
    "He has 3 pens. He has <b>three</b> of them.",
]


def fast(made: Any, template: str, plain: tuple[str, ...] = (), **tokens: str) -> Any:
    """plain: added tokens that are not special."""
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    made.add_tokens([AddedToken(word, special=False, normalized=False) for word in plain])
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=template, **tokens)


def byte_level(special: list[str], inside: bool, **options: Any) -> Any:
    """inside: special tokens are pieces of the vocabulary, and merges that were learned give them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE(**options))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not inside)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        show_progress=False,
        special_tokens=special if inside else [],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator(WORDS + (special * 9 if inside else []), trainer)
    made.add_special_tokens(special)
    return made


def chatml() -> Any:
    """Its end token is another than the one that ends turns; `<think>` is an added token, and not special."""
    made = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], inside=True)
    return fast(made, CHATML, ("<think>", "</think>", "<tool_call>"), eos_token="<|endoftext|>")


def llama3() -> Any:
    """The template writes the first token, and the tokenizer would add it again."""
    from tokenizers import processors

    special = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ]
    made = byte_level(special, inside=False, ignore_merges=True)
    begin = made.token_to_id(special[0])
    made.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)]
    )
    return fast(made, LLAMA3, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")


def pieces(special: list[str], normalizer: Any, splitter: Any) -> Any:
    """A BPE of sentencepiece's kind: spaces are part of pieces, unknown signs are bytes."""
    from tokenizers import Tokenizer, decoders, models, trainers

    signs = [f"<0x{byte:02X}>" for byte in range(256)]
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer, made.pre_tokenizer = normalizer, splitter
    trainer = trainers.BpeTrainer(
        vocab_size=420, show_progress=False, special_tokens=["<unk>", *special, *signs], limit_alphabet=80
    )
    made.train_from_iterator([*WORDS, "\n", "\n\n", *special * 9], trainer)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    told = json.loads(made.to_str())
    told["added_tokens"] = [one for one in told["added_tokens"] if one["content"] not in signs]
    return Tokenizer.from_str(json.dumps(told))


def gemma() -> Any:
    """No system message; content is trimmed; special tokens are pieces of the vocabulary."""
    from tokenizers import normalizers, pre_tokenizers

    special = ["<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
    made = pieces(special, normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"))
    return fast(made, GEMMA, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")


def mistral(legacy: bool = False) -> Any:
    """A space is put before a text's first word: by the splitter at its very beginning, or (legacy) by the normalizer behind
    every special token."""
    from tokenizers import decoders, normalizers, pre_tokenizers

    special = ["<s>", "</s>", "[INST]", "[/INST]"]
    before = (
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]) if legacy else None
    )
    splitter = None if legacy else pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made = pieces(special, before, splitter)
    made.decoder = decoders.Sequence([made.decoder, decoders.Strip(" ", 1, 0)])
    return fast(made, MISTRAL, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def legacy_mistral() -> Any:
    return mistral(legacy=True)


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "chatml": chatml, "llama3": llama3, "gemma": gemma, "mistral": mistral, "legacy-mistral": legacy_mistral,
    "pocket": build_tokenizer,
}  # fmt: skip
