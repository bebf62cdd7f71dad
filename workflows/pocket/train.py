"""Makes the pocket world's base model from a seed: `python -m selfloop.workflows.pocket.train [--out DIR]`.

One pass over freshly drawn demonstrations (`demonstrations.py`), AdamW with cosine decay, loss on the replies only.
The result is a normal Hugging Face folder: Qwen2 architecture, own tokenizer, chat template, bf16 safetensors.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfloop.workflows.pocket.demonstrations import Noise, demonstration
from selfloop.workflows.pocket.source import POCKET_MODEL
from selfloop.workflows.pocket.tokenizer import build_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

__all__ = ["batches", "build_model", "main", "save", "train"]

BUCKET = 32  # batches whose rows are sorted by length together


def build_model(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int, seed: int) -> Qwen2ForCausalLM:
    """A randomly initialised Qwen2 with heads of 32, which vLLM serves on CPUs and GPUs."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    ends = {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    config = Qwen2Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        use_sliding_window=False,
        dtype="float32",
        **ends,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config.update(do_sample=True, temperature=1.0, top_p=1.0, top_k=0, **ends)
    return model


def batches(
    tokenizer: PreTrainedTokenizerFast, noise: Noise, steps: int, rows: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """`steps` batches (ids, targets), each (rows, tokens) padded right; targets are -100 outside the replies."""
    rng = random.Random(f"pocket base {seed}")
    made = 0
    while made < steps:
        chunk = [demonstration(rng, noise) for _ in range(rows * min(BUCKET, steps - made))]
        prompts = [f"<|user|>{messages[0]['content']}<|end|><|assistant|>" for messages, _ in chunk]
        asked = tokenizer(prompts, add_special_tokens=False)["input_ids"]
        said = tokenizer([reply + "<|end|>" for _, reply in chunk], add_special_tokens=False)["input_ids"]
        examples = sorted(zip(asked, said, strict=True), key=lambda pair: len(pair[0]) + len(pair[1]))
        groups = [examples[i : i + rows] for i in range(0, len(examples), rows)]
        rng.shuffle(groups)
        for group in groups:
            made += 1
            yield _padded(group, int(tokenizer.pad_token_id))


def _padded(group: list[tuple[list[int], list[int]]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    width = max(len(asked) + len(said) for asked, said in group)
    ids = torch.full((len(group), width), pad)
    targets = torch.full((len(group), width), -100)
    for row, (asked, said) in enumerate(group):
        ids[row, : len(asked) + len(said)] = torch.tensor(asked + said)
        targets[row, len(asked) : len(asked) + len(said)] = torch.tensor(said)
    return ids, targets


def _loss(model: Any, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    import torch

    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    shown = targets[:, 1:] != -100
    logits = model.lm_head(hidden[shown])
    return torch.nn.functional.cross_entropy(logits.float(), targets[:, 1:][shown])


def train(args: argparse.Namespace, noise: Noise) -> Qwen2ForCausalLM:
    """The trained model; saved every `args.save_every` steps on the way."""
    import torch

    torch.set_num_threads(args.threads)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, args.hidden, args.layers, args.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.05)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.02, total_iters=args.warmup)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, args.steps - args.warmup, eta_min=args.lr / 50
    )
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, decay], [args.warmup])
    started, mean = time.monotonic(), 0.0
    for step, (ids, targets) in enumerate(batches(tokenizer, noise, args.steps, args.rows, args.seed), 1):
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            loss = _loss(model, ids, targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean += (float(loss.detach()) - mean) / min(step, 50)
        if step % 50 == 0 or step == args.steps:
            print(
                f"step {step} of {args.steps}  loss {mean:.4f}  {time.monotonic() - started:.0f} s",
                flush=True,
            )
        if step % args.save_every == 0:
            save(model, tokenizer, args.out)
    save(model, tokenizer, args.out)
    return model


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Writes the Hugging Face folder, weights in bf16."""
    import torch
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()
    }
    weights.pop("lm_head.weight", None)  # tied to the embedding
    temporary = out / "model.safetensors.part"
    save_file(weights, temporary, metadata={"format": "pt"})
    temporary.rename(out / "model.safetensors")
    config = model.config.to_dict() | {"architectures": ["Qwen2ForCausalLM"], "dtype": "bfloat16"}
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    model.generation_config.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Make the base model of the pocket world.")
    parser.add_argument("--out", type=Path, default=POCKET_MODEL, help="folder to write (the shipped base)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rows", type=int, default=256, help="demonstrations a step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=False, help="bf16 autocast")
    parser.add_argument("--save-every", type=int, default=500)
    train(parser.parse_args(argv), Noise())


if __name__ == "__main__":
    main()
