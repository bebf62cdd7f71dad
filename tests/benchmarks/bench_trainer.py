"""What one train call costs beside its optimizer steps, and the steps against a bare loop over the same rows; and how much
of what micro-batches compute is padding.

    python -m tests.benchmarks.bench_trainer [--model pocket|small|FOLDER] [--rows 128] [--group 8] [--calls 5] [--zero 0]

Times are processor seconds of one thread, so that other work on the machine counts less. `small` is the Qwen2 of
tests.benchmarks.peers. With GLIBC_TUNABLES=glibc.malloc.hugetlb=1 before it, actors' memory: huge pages.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tests.benchmarks.peers.models import small_qwen2

__all__ = ["bare_loop", "calls"]

POCKET = str(Path(__file__).parents[2] / "workflows" / "pocket" / "base")


def rows_for(count: int, group: int, vocabulary: int = 300) -> pa.Table:
    """Responses of 8 to 40 tokens, `group` of them after each prompt of 20 to 60."""
    rng = np.random.default_rng(0)
    ids = pa.list_(pa.int32())
    prompts = [rng.integers(5, vocabulary, rng.integers(20, 60)) for _ in range(0, count, group)]
    return pa.table({
        "prompt_id": [f"p{row // group:05d}" for row in range(count)], "sample": [row % group for row in range(count)],
        "prompt_ids": pa.array([prompts[row // group] for row in range(count)], ids),
        "response_ids": pa.array([rng.integers(5, vocabulary, rng.integers(8, 40)) for _ in range(count)], ids),
        "advantages": rng.normal(size=count),
    })  # fmt: skip


def calls(model: str, rows: int, group: int, count: int, zero: int) -> dict[str, float]:
    """Mean seconds a call over `count` GRPO-like train calls that continue one another, the first left out."""
    from selfloop.actors.train.spec import TrainerSpec, TrainWork
    from selfloop.actors.train.trainer import Trainer
    from selfloop.workflows.objectives.policy_gradient import GRPO

    began = time.process_time()
    trainer = Trainer(TrainerSpec(model=model, zero=zero, lr=1e-5, batch_size=rows // 2))
    found: dict[str, Any] = {"start": time.process_time() - began}
    spent: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        start, state = model, None
        for version in range(1, count + 2):
            place = Path(folder) / str(version)
            work = TrainWork("policy", version, start, state, model, GRPO(), "continued", str(place / "policy"),
                             rows_for(rows, group), str(place / "state"), str(place / ".steps"))  # fmt: skip
            before = time.process_time()
            result = trainer.train(work)
            trainer.weights()
            spent.append({"call": time.process_time() - before, **result.metrics})
            start, state = work.out, work.state_out
    for name in ("call", "prepare_s", "train_s", "save_s", "tokens_per_s", "padding", "shared"):
        found[name] = float(np.mean([line[name] for line in spent[1:]]))
    return found


def bare_loop(model: str, rows: int, group: int, micro: int = 32, repeats: int = 3) -> float:
    """Seconds for the same rows with transformers and AdamW alone: padded batches sorted by length, two steps."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    net: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=True)
    table = rows_for(rows, group).to_pylist()
    best = float("inf")
    for _ in range(repeats):
        began = time.process_time()
        for half in (table[: rows // 2], table[rows // 2 :]):
            half = sorted(half, key=lambda row: len(row["prompt_ids"]) + len(row["response_ids"]))
            for low in range(0, len(half), micro):
                part = half[low : low + micro]
                whole = [row["prompt_ids"] + row["response_ids"] for row in part]
                longest = max(map(len, whole))
                ids = torch.tensor([line + [0] * (longest - len(line)) for line in whole])
                mask = torch.zeros(ids.shape)
                for line, row in enumerate(part):
                    mask[line, len(row["prompt_ids"]) : len(whole[line])] = row["advantages"]
                logprobs = net(input_ids=ids).logits[:, :-1].log_softmax(-1)
                picked = logprobs.gather(-1, ids[:, 1:, None]).squeeze(-1)
                (-(picked * mask[:, 1:]).sum() / 1000).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        best = min(best, time.process_time() - began)
    return best


def padding(pairs: int = 256, budget: int = 8192) -> dict[str, float]:
    """Share of padding in the micro-batches of pairs whose sides' lengths are skewed (log-normal, 2 to 1,500 tokens): end to
    end, where architectures allow it, and in padded lines."""
    from selfloop.actors.train.rows.plan import Shapes, cut
    from selfloop.actors.train.rows.views import sequences_view

    rng = np.random.default_rng(0)
    lengths = rng.lognormal(4.0, 1.0, (2, pairs)).astype(int).clip(2, 1500)
    found: dict[str, float] = {}
    for name, flat in (("end_to_end", True), ("padded_lines", False)):
        views = {
            side: sequences_view(
                [[side, row] for row in range(pairs)], [[1] * size for size in lengths[side]]
            )
            for side in (0, 1)
        }
        shapes = Shapes({str(side): view for side, view in views.items()}, flat=flat)
        cells = sum(shapes.cost(part) for part in cut(shapes, np.arange(pairs), budget))
        found[name] = 1 - float(lengths.sum() + 4 * pairs) / cells
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--model", default="pocket")
    for name, value in (("rows", 128), ("group", 8), ("calls", 5), ("zero", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = str(small_qwen2(Path(folder))) if chosen.model == "small" else chosen.model
        model = POCKET if model == "pocket" else model
        found = calls(model, chosen.rows, chosen.group, chosen.calls, chosen.zero)
        found["bare"] = bare_loop(model, chosen.rows, chosen.group)
    found["call_over_bare"] = found["call"] / found["bare"]
    print(json.dumps(found | {"padding_of_skewed_pairs": padding()}, indent=1))


if __name__ == "__main__":
    main()
