"""The pocket world's tokenizer: digits and other bytes one by one, the words of its prompts whole.

A byte-level BPE whose merges come from the world's own words, so any text can be encoded and comes back (in Unicode
normal form C), a digit is always one token, and `yes`, `no`, `A` and `B` are single tokens (labels of the judges).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer

__all__ = ["CHAT_TEMPLATE", "build_tokenizer"]

WORDS = [
    "sort",
    "reverse",
    "unique",
    "count",
    "max",
    "add",
    "in",
    "answer",
    "right",
    "better",
    "critique",
    "wrong",
    "at",
    "improve",
    "rule",
    "with",
    "spaces",
    "dashes",
    "brackets",
    "backwards",
    "new",
    "task",
    "yes",
    "no",
    "A",
    "B",
]
SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('unknown role ' ~ message['role'] ~ ': it must be system, user or assistant') -}}"
    "{%- endif -%}"
    "{{- '<|' ~ message['role'] ~ '|>' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{% generation %}{{- message['content'] ~ '<|end|>' -}}{% endgeneration %}"
    "{%- else -%}{{- message['content'] ~ '<|end|>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def build_tokenizer() -> Qwen2Tokenizer:
    """The tokenizer, the same every time.

    It is Qwen2's own class: for a Qwen2 model transformers loads that one, with its own splitting rules, whatever
    class a folder names.
    """
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator([text for word in WORDS for text in (word, " " + word)], trainer)
    learned = json.loads(words.to_str())["model"]
    merges: Any = [tuple(pair) for pair in learned["merges"]]
    return Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=merges,
        unk_token=SPECIAL[0],
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        additional_special_tokens=list(SPECIAL[2:]),
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
