"""Ten runs that differ only in the objective, with one generation pass: python -m tests.faults.ablation [FOLDER]

The pocket model, majority-vote pairs, real vLLM and DeepSpeed. The first run samples; the others have `reuse` set to it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from selfloop.workflows.config import Config
from selfloop.workflows.executor.run import run
from selfloop.workflows.flow.iteration import Iteration
from selfloop.workflows.flow.recipe import Recipe
from selfloop.workflows.flow.stream import Model
from selfloop.workflows.judges.votes import VoteShare
from selfloop.workflows.objectives import OBJECTIVES
from selfloop.workflows.recipes import RECIPES
from selfloop.workflows.report.console import Console, Terminal
from selfloop.workflows.report.why import why
from selfloop.workflows.rules.pairs import MostAgainstLeast
from selfloop.workflows.store.folder import RunFolder
from selfloop.workflows.store.parts import read_table
from tests.faults.harness import events

CHOICES: dict[str, tuple[str, dict[str, Any]]] = {
    "dpo": ("dpo", {}),
    "dpo-hinge": ("dpo", {"loss": "hinge"}),
    "dpo-ipo": ("dpo", {"loss": "ipo"}),
    "dpo-smoothed": ("dpo", {"label_smoothing": 0.1}),
    "ln-dpo": ("ln-dpo", {}),
    "irpo": ("irpo", {}),
    "simpo": ("simpo", {}),
    "cpo": ("cpo", {}),
    "orpo": ("orpo", {}),
    "asft": ("asft", {}),
}


class Ablation(Recipe):
    """Votes choose pairs; the objective is a setting."""

    objective: str = "dpo"

    def iteration(self, it: Iteration) -> Model:
        voted = it.prompts().sample(it.policy, n=8).judge(VoteShare())
        pairs = voted.pair(MostAgainstLeast(threshold=0.0))
        slug, options = CHOICES[self.objective]
        objective = OBJECTIVES[slug](**options)
        reference = it.policy if objective.needs_reference else None
        return it.policy.train(pairs, objective, reference=reference, optimizer="fresh")


def config_of(objective: str, reuse: Path | None) -> Config:
    return Config(
        recipe="ablation", settings={"objective": objective}, iterations=1, reuse=str(reuse) if reuse else None,
        prompts={"per_iteration": 512, "options": {"size": 4096}},  # type: ignore[arg-type]
        generator={"replicas": 2, "max_tokens": 16, "max_model_len": 512, "memory": 0.5},  # type: ignore[arg-type]
        trainer={"lr": 3e-5},  # type: ignore[arg-type]
    )  # fmt: skip


def main() -> None:
    RECIPES["ablation"] = Ablation
    place = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="selfloop-ablation-"))
    place.mkdir(parents=True, exist_ok=True)
    first: Path | None = None
    generated = 0
    print(f"{'objective':<14} {'batches sampled':>15} {'taken over':>10} {'held-out':>9} {'seconds':>8}")
    for name in CHOICES:
        folder, began = place / name, time.monotonic()
        with open(place / "console.txt", "a", encoding="utf-8") as out:
            history = run(config_of(name, first), folder, Console(1, False, Terminal(file=out)))
        sampled = sum(one["event"] == "batch" and one["node"] == "sample" for one in events(folder))
        taken = sum(
            "reused" in entry
            for index in (0, 1)
            for entry in RunFolder(folder).manifest(index)["nodes"].values()
        )
        generated += sampled
        print(f"{name:<14} {sampled:>15} {taken:>10} {history[-1]['heldout_accuracy']:>9.3f} "
              f"{time.monotonic() - began:>8.0f}", flush=True)  # fmt: skip
        first = first or folder
    row = read_table(RunFolder(place / "simpo").parts(1, "pair")[0].path).to_pylist()[0]
    print(f"{generated} batches sampled in all; where a row of the run `simpo` comes from:\n")
    print(why(place / "simpo", f"{row['prompt_id']}@1"))


if __name__ == "__main__":
    main()
