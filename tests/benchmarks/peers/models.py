"""The model and the prompts that peers are compared on: random weights, so that answers use all their tokens."""

from __future__ import annotations

import json
from pathlib import Path

from tests.models import byte_tokenizer

__all__ = ["pocket_prompts", "questions", "small_qwen2"]

VOCABULARY = 4096


def small_qwen2(folder: Path) -> Path:
    """A Qwen2 of 2.77 M parameters: vocabulary 4,096, hidden 192, 5 layers. Bytes are its tokens; the rest is filler."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    fast = byte_tokenizer(VOCABULARY)
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=192, intermediate_size=432, num_hidden_layers=5, num_attention_heads=6,
        num_key_value_heads=6, max_position_embeddings=1024, tie_word_embeddings=True,
        eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def questions(path: Path, count: int) -> Path:
    """Prompts of about forty tokens."""
    lines = [f"How much is {7 * number + 13} and {number % 97}?" for number in range(count)]
    return _write(path, [([{"role": "user", "content": line}], "0") for line in lines])


def pocket_prompts(path: Path, count: int) -> Path:
    """Prompts of the pocket world with their answers."""
    from selfloop.workflows.config import Prompts
    from selfloop.workflows.sources import load_prompts

    table, _ = load_prompts(Prompts(source="pocket", heldout=1, options={"size": count + 1}), 0)
    return _write(
        path, list(zip(table["prompt"].to_pylist(), table["answer"].to_pylist(), strict=True))[:count]
    )


def _write(path: Path, rows: list[tuple[list[dict[str, str]], str]]) -> Path:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in rows)
    return path
