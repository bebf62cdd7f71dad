"""Makes the pocket world's base model from a seed: `python -m selfloop.workflows.pocket.make.train [--out DIR]`.

Two stages over freshly drawn demonstrations (`demonstrations.py`), loss on the replies only. In the first all
demonstrations are right, short tasks and plain answers come first, and the model learns the skills. In the second a
known share is wrong, and it learns the slips and habits that make it weak. The result is a normal Hugging Face
folder: Qwen2 architecture, own tokenizer, chat template, bf16 safetensors.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfloop.workflows.data.schema import Message
from selfloop.workflows.pocket.make.demonstrations import Noise, demonstration
from selfloop.workflows.pocket.make.tokenizer import build_tokenizer
from selfloop.workflows.pocket.roles import task_of
from selfloop.workflows.pocket.source import POCKET_MODEL
from selfloop.workflows.pocket.tasks import CORE_LEVELS, parse_task

if TYPE_CHECKING:
    import torch
    from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

__all__ = ["Stage", "batches", "build_model", "main", "make", "save", "train"]

BUCKET = 32  # batches whose rows are sorted by length together
WARMUP = 50  # steps
RIGHT = Noise(slip=0, habit=(0,) * len(CORE_LEVELS), leaning=0, judgement=0, refinement=0, principle=0)


@dataclass(frozen=True)
class Stage:
    """One stage of training."""

    name: str
    steps: int
    lr: float
    noise: Noise

    def lesson(self, done: float) -> tuple[float, int]:
        """Share of rows that are plain answers whatever the role mix, and how many levels are in use."""
        if self.noise != RIGHT:
            return 0.0, len(CORE_LEVELS)
        return max(0.0, 0.6 - 2.4 * done), min(len(CORE_LEVELS), 2 + int(16 * done))


def build_model(tokenizer: Qwen2Tokenizer, hidden: int, layers: int, seed: int) -> Qwen2ForCausalLM:
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
    tokenizer: Qwen2Tokenizer, stage: Stage, rows: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The stage's batches (ids, targets), each (rows, tokens) padded right; targets are -100 outside the replies."""
    rng = random.Random(f"pocket base {stage.name} {seed}")
    made = 0
    while made < stage.steps:
        plain, longest = stage.lesson(made / stage.steps)
        chunk = [
            demonstration(rng, stage.noise, "answer" if rng.random() < plain else None, CORE_LEVELS[:longest])
            for _ in range(rows * min(BUCKET, stage.steps - made))
        ]
        examples = sorted(_encode(tokenizer, [_segments(*row) for row in chunk]), key=len)
        groups = [examples[i : i + rows] for i in range(0, len(examples), rows)]
        rng.shuffle(groups)
        pad: Any = tokenizer.pad_token_id
        for group in groups:
            made += 1
            yield _padded(group, pad)


Example = list[tuple[int, bool]]  # tokens, and whether each is trained on


def _segments(messages: list[Message], reply: str) -> list[tuple[str, bool]]:
    """The row as text, cut into what is trained on and what is not: the reply, and right answers quoted in the prompt.

    Predicting the right answer where a response will stand is what makes a wrong one stand out.
    """
    content = messages[0]["content"]
    task = parse_task(task_of(messages))
    head, segments = "<|user|>", []
    for line in content.split("\n"):
        mark, colon, said = line.partition(": ")
        if task is not None and mark in ("answer", "A", "B") and said == task.answer:
            segments += [(head + mark + colon, False), (said + "\n", True)]
            head = ""
        else:
            head += line + "\n"
    return [*segments, (head.removesuffix("\n") + "<|end|><|assistant|>", False), (reply + "<|end|>", True)]


def _encode(tokenizer: Qwen2Tokenizer, rows: list[list[tuple[str, bool]]]) -> list[Example]:
    texts = iter(tokenizer([text for row in rows for text, _ in row], add_special_tokens=False)["input_ids"])
    return [[(token, trained) for _, trained in row for token in next(texts)] for row in rows]


def _padded(group: list[Example], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    width = max(map(len, group))
    ids = [[token for token, _ in row] + [pad] * (width - len(row)) for row in group]
    targets = [
        [token if trained else -100 for token, trained in row] + [-100] * (width - len(row)) for row in group
    ]
    return torch.tensor(ids), torch.tensor(targets)


def _loss(model: Any, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    import torch

    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    shown = targets[:, 1:] != -100
    logits = model.lm_head(hidden[shown])
    return torch.nn.functional.cross_entropy(logits.float(), targets[:, 1:][shown])


def _steppers(model: Qwen2ForCausalLM, stage: Stage) -> list[Any]:
    """Muon for the matrices, AdamW for the rest, and their schedules: warm-up, linear decay over the second half."""
    import torch

    named = list(model.named_parameters())
    matrices = [tensor for name, tensor in named if tensor.dim() == 2 and "embed" not in name]
    others = [tensor for name, tensor in named if tensor.dim() != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(
            matrices, lr=stage.lr, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=stage.lr / 3, betas=(0.9, 0.98), weight_decay=0.0),
    ]

    def share(step: int) -> float:
        return min(1.0, (step + 1) / WARMUP, max(0.02, 2 * (1 - step / stage.steps)))

    return [*optimizers, *(torch.optim.lr_scheduler.LambdaLR(optimizer, share) for optimizer in optimizers)]


def train(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, stage: Stage, args: argparse.Namespace) -> None:
    """Trains the model through one stage."""
    import torch

    steppers = _steppers(model, stage)
    started, mean = time.monotonic(), 0.0
    for step, (ids, targets) in enumerate(batches(tokenizer, stage, args.rows, args.seed), 1):
        loss = _loss(model, ids, targets)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
        mean += (float(loss.detach()) - mean) / min(step, 50)
        if step % 100 == 0 or step == stage.steps:
            taken = time.monotonic() - started
            print(f"{stage.name}: step {step} of {stage.steps}  loss {mean:.4f}  {taken:.0f} s", flush=True)
        if args.save_every and step % args.save_every == 0:
            save(model, tokenizer, args.out)


def save(
    model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, out: Path, dtype: torch.dtype | None = None
) -> None:
    """Writes the Hugging Face folder, weights in bf16 unless another type is given."""
    import torch
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().to(dtype or torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
    }
    weights.pop("lm_head.weight", None)  # tied to the embedding
    temporary = out / "model.safetensors.part"
    save_file(weights, temporary, metadata={"format": "pt"})
    temporary.rename(out / "model.safetensors")
    kept = str(dtype or torch.bfloat16).removeprefix("torch.")
    config = model.config.to_dict() | {
        "architectures": ["Qwen2ForCausalLM"],
        "dtype": kept,
    }
    config.pop("_name_or_path", None)  # where it happened to lie
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    model.generation_config.save_pretrained(out)
    tokenizer.save_pretrained(out)


def make(args: argparse.Namespace) -> None:
    """Both stages, then the folder; with `args.skilled` the first stage is taken from there."""
    import torch
    from transformers import Qwen2ForCausalLM

    torch.set_num_threads(args.threads)
    tokenizer = build_tokenizer()
    if args.skilled and (args.skilled / "config.json").exists():
        model = Qwen2ForCausalLM.from_pretrained(str(args.skilled), dtype="float32").train()
    else:
        model = build_model(tokenizer, args.hidden, args.layers, args.seed)
        train(model, tokenizer, Stage("skills", args.steps, args.lr, RIGHT), args)
        if args.skilled:
            save(model, tokenizer, args.skilled, torch.float32)
    train(model, tokenizer, Stage("habits", args.weak_steps, args.weak_lr, Noise()), args)
    save(model, tokenizer, args.out)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Make the base model of the pocket world.")
    parser.add_argument("--out", type=Path, default=POCKET_MODEL, help="folder to write (the shipped base)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=128, help="demonstrations a step")
    parser.add_argument("--steps", type=int, default=3500, help="of the first stage")
    parser.add_argument("--lr", type=float, default=6e-3)
    parser.add_argument("--weak-steps", type=int, default=400, help="of the second stage")
    parser.add_argument("--weak-lr", type=float, default=3e-3)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--skilled", type=Path, help="folder that keeps the model of the first stage, or has it"
    )
    parser.add_argument("--save-every", type=int, default=0, help="steps; 0: only at the end")
    make(parser.parse_args(argv))


if __name__ == "__main__":
    main()
