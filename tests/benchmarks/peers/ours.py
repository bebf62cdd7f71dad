"""Selfloop on the work that run.py names: the same prompts, completions, reward and objective."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfloop.workflows.config import load_config
from selfloop.workflows.executor.run import run
from selfloop.workflows.flow.iteration import Iteration
from selfloop.workflows.flow.recipe import Recipe
from selfloop.workflows.flow.stream import Model
from selfloop.workflows.objectives.dpo import DPO
from selfloop.workflows.recipes import RECIPES
from selfloop.workflows.report.console import Console
from selfloop.workflows.rules.pairs import best_against_worst
from tests.benchmarks.machine import equal_priority

__all__ = ["OnlineDPO", "by_sum"]


def by_sum(row: Mapping[str, Any]) -> float:
    """A number that any tokens give, hardly ever twice the same."""
    return sum(row["response_ids"]) % 9973 / 9973


class OnlineDPO(Recipe):
    """Two fresh answers a prompt, the better one by the reward against the other, DPO against the initial policy."""

    def iteration(self, it: Iteration) -> Model:
        judged = it.prompts().sample(it.policy, n=2).judge(it.verifier())
        pairs = judged.pair(best_against_worst)
        return it.policy.train(pairs, DPO(beta=0.1), reference=it.initial, optimizer="continued")


class Clock(Console):
    """Prints when each iteration has ended: its one optimizer step is done, saved and proven."""

    def line(self, text: str) -> None:
        """Nothing but the clock is printed."""

    def iteration(self, index: int, metrics: Mapping[str, Any], cut: str = "") -> None:
        if index:
            about = {
                name: metrics[name] for name in ("wall_s", "train_train_s", "train_tokens") if name in metrics
            }
            print(json.dumps({"step": index, "time": time.time(), **about}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("method", "model", "prompts", "reward", "folder"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("prompts-per-step", "samples", "tokens", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    equal_priority()
    RECIPES["bench-online-dpo"] = OnlineDPO
    grpo = f"settings={{variant: dr-grpo, samples: {given.samples}, truncated: judged}}"
    examples = given.prompts_per_step * (given.samples if given.method == "grpo" else 1)
    longest = 512
    lines = [
        f"recipe: {'grpo' if given.method == 'grpo' else 'bench-online-dpo'}", f"model: {given.model}",
        f"iterations: {given.steps}",
        f"prompts: {{source: {given.prompts}, per_iteration: {given.prompts_per_step}, heldout: 1}}",
        f"batch_size: {max(given.prompts_per_step // 4, 1)}",
        f"generator: {{max_tokens: {given.tokens}, max_model_len: {longest}, memory: 1, replicas: 2}}",
        f"trainer: {{lr: 1.0e-5, batch_size: {examples}, ranks: 2, tokens_per_micro_batch: 2048}}", "evaluation: {every: 1000000, samples: 1}",
        "checkpoints: {keep: 2}",
    ]  # fmt: skip
    if given.reward == "sum":
        lines.append("judge: tests.benchmarks.peers.ours:by_sum")
    path = Path(given.folder) / "config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = load_config(str(path), [*([grpo] if given.method == "grpo" else []), *given.overrides])
    run(config, Path(given.folder) / "run", Clock(live=False))


if __name__ == "__main__":
    main()
