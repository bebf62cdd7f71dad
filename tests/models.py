"""Randomly initialised checkpoints of real architectures, with a real tokenizer and chat template, made for a test."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def even_length(row: Mapping[str, Any]) -> float:
    """A checker that even a random model satisfies half of the time."""
    return float(len(row["response_ids"]) % 2 == 0 or sum(row["response_ids"]) % 2 == 0)


def slow_even_length(row: Mapping[str, Any]) -> float:
    """The same, taking its time, so that rows wait for it."""
    time.sleep(0.001)
    return even_length(row)


def byte_tokenizer(size: int = 0) -> Any:
    """Bytes are its tokens, the template is ChatML. size: of the vocabulary, with fillers; 0: no fillers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    signs += [f"filler{number}" for number in range(size - len(signs) - 3)]
    tokenizer = Tokenizer(models.BPE(vocab={sign: index for index, sign in enumerate(signs)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT
    )


def random_qwen2(folder: Path, seed: int = 0) -> Path:
    """A Qwen2 of 0.2 M parameters over bytes with a ChatML template: its answers are noise, as they should be."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    fast = byte_tokenizer()
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True,
        eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder
