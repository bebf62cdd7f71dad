"""Log-probs in tiles against whole logits: peak memory and time, forward and backward, over the same inputs.

    python -m tests.benchmarks.bench_logprobs [--shapes 8x64 1x896 8x896] [--tokens 1024] [--vocabulary 150000] [--repeats 3]

A shape is rows x width. Each measurement is a process of its own, so that the peak of its memory is its own; the two
sides take turns. Memory is what is used above the inputs; the gradient of the head, which both sides must make, is told
apart. Time is processor seconds of one thread, so that other work on the machine counts less.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.machine import describe

__all__ = ["measure"]

SIDES = ("whole", "tiles")
COPIES = 3  # of the logits that the whole side holds at once


def one_side(side: str, tokens: int, vocabulary: int, width: int, report: Any) -> None:
    """Processor seconds, and MiB above the inputs, of one forward and backward pass after a small one."""
    import torch

    from selfloop.actors.train.model.logprobs import head_logprobs

    torch.manual_seed(0)
    torch.set_num_threads(1)
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = (torch.randn(vocabulary, width) / width**0.5).requires_grad_()
    targets = torch.randint(0, vocabulary, (tokens,))
    weight.grad, hidden.grad = torch.zeros_like(weight), torch.zeros_like(hidden)

    def logprobs(count: int) -> Any:
        if side == "tiles":
            return head_logprobs(hidden[:count], weight, None, targets[:count])
        logits = torch.nn.functional.linear(hidden[:count], weight)
        return logits.log_softmax(-1).gather(-1, targets[:count, None]).squeeze(-1)

    logprobs(2).sum()
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    logprobs(tokens).mean().backward()
    seconds = time.process_time() - began
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    report.put({"seconds": seconds, "MiB": peak, "checksum": float(weight.grad.abs().sum())})


def measure(rows: int, width: int, tokens: int, vocabulary: int, repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds, and the largest peak, of each side."""
    context = multiprocessing.get_context("spawn")
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side in SIDES:
            report = context.Queue()
            process = context.Process(target=one_side, args=(side, rows * tokens, vocabulary, width, report))
            process.start()
            found[side].append(report.get())
            process.join()
    for one, other in zip(found["whole"], found["tiles"], strict=True):
        assert abs(one["checksum"] - other["checksum"]) < 1e-3 * abs(one["checksum"]), "the gradients differ"
    return {
        side: {
            "seconds": statistics.median(one["seconds"] for one in runs),
            "MiB": max(one["MiB"] for one in runs),
        }
        for side, runs in found.items()
    }


def room() -> float:
    """MiB of memory that is free now."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--shapes", nargs="+", default=["8x64", "1x896"])
    for name, value in (("tokens", 1024), ("vocabulary", 150_000), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    print(describe())
    for shape in given.shapes:
        rows, width = map(int, shape.split("x"))
        logits = rows * given.tokens * given.vocabulary * 4 / 2**20
        head = given.vocabulary * width * 4 / 2**20
        print(f"({rows}, {given.tokens}) tokens, vocabulary {given.vocabulary:,}, width {width}: one tensor of logits is "
              f"{logits:,.0f} MiB, the head's gradient {head:,.0f} MiB")  # fmt: skip
        if room() < COPIES * logits + 4 * head:
            print(
                f"  left out: {room():,.0f} MiB are free, and whole logits need about {COPIES * logits + 4 * head:,.0f}"
            )
            continue
        found = measure(rows, width, given.tokens, given.vocabulary, given.repeats)
        for side, values in found.items():
            extra = values["MiB"] - head
            print(f"  {side:<6} peak {values['MiB']:8,.0f} MiB, without the head's gradient {extra:8,.0f} MiB "
                  f"({100 * extra / logits:5.1f} % of one tensor of logits)   {values['seconds']:6.2f} s")  # fmt: skip
        whole, tiles = found["whole"], found["tiles"]
        print(f"  ratio  {(tiles['MiB'] - head) / (whole['MiB'] - head):.3f} of the memory, "
              f"{tiles['seconds'] / whole['seconds']:.2f} of the time", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
