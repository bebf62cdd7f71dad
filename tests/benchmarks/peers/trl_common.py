"""What both of TRL's trainers need here. Runs in the peer's own environment: nothing of Selfloop is imported."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

__all__ = ["Clock", "arguments", "load", "reward_of"]


def arguments() -> argparse.Namespace:
    """What run.py says about the work."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", required=True, help="JSON lines with prompt (messages) and answer")
    parser.add_argument("--reward", choices=("sum", "exact"), required=True)
    for name in ("prompts-per-step", "samples", "tokens", "steps", "micro"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--lr", type=float, default=1e-5)
    return parser.parse_args()


def load(given: argparse.Namespace) -> tuple[Any, Any, Any]:
    """The model in float32, its tokenizer, and the prompts as a data set."""
    import torch
    from datasets import Dataset

    with open(given.prompts, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    tokenizer = AutoTokenizer.from_pretrained(given.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
    return model, tokenizer, Dataset.from_list(rows)


def reward_of(kind: str) -> Any:
    """sum: a number that any tokens give, hardly ever twice the same. exact: the answer itself."""

    def by_sum(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [sum(ids) % 9973 / 9973 for ids in completion_ids]

    def by_answer(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
        texts = [one[0]["content"] if isinstance(one, list) else one for one in completions]
        return [float(text.strip() == right) for text, right in zip(texts, answer, strict=True)]

    return by_sum if kind == "sum" else by_answer


class Clock(TrainerCallback):
    """Prints when each optimizer step has ended, and how many tokens the completions had."""

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        print(json.dumps({"step": state.global_step, "time": time.time()}), flush=True, file=sys.stdout)
