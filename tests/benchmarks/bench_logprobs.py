"""Log-probs in chunks against whole logits: peak memory and time, forward and backward.

    python -m tests.benchmarks.bench_logprobs [--rows 8] [--tokens 1024] [--vocabulary 150000] [--width 64]

Each side runs in a process of its own, so that the peak of its memory is its own. Prints both and their ratios.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from typing import Any

__all__ = ["measure"]


def one_side(chunked: bool, tokens: int, vocabulary: int, width: int, repeats: int, report: Any) -> None:
    """Processor seconds (other work on the machine counts less) and MiB above the inputs, forward and backward."""
    import torch

    from selfloop.actors.logprobs import head_logprobs

    torch.manual_seed(0)
    torch.set_num_threads(1)
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = (torch.randn(vocabulary, width) / width**0.5).requires_grad_()
    targets = torch.randint(0, vocabulary, (tokens,))
    weight.grad = torch.zeros_like(weight)
    hidden.grad = torch.zeros_like(hidden)
    before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(repeats):
        began = time.process_time()
        if chunked:
            logprobs = head_logprobs(hidden, weight, None, targets)
        else:
            logits = torch.nn.functional.linear(hidden, weight)
            logprobs = logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
            del logits
        logprobs.mean().backward()
        seconds.append(time.process_time() - began)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    report.put({"seconds": min(seconds), "MiB": peak})


def measure(
    rows: int = 8, tokens: int = 1024, vocabulary: int = 150_000, width: int = 64, repeats: int = 2
) -> dict[str, float]:
    """Both sides, and the ratios chunked / whole."""
    context = multiprocessing.get_context("spawn")
    found: dict[str, dict[str, float]] = {}
    for name, chunked in (("chunked", True), ("whole", False)):
        report = context.Queue()
        arguments = (chunked, rows * tokens, vocabulary, width, repeats, report)
        process = context.Process(target=one_side, args=arguments)
        process.start()
        found[name] = report.get()
        process.join()
    result = {f"{side}_{what}": value for side, pair in found.items() for what, value in pair.items()}
    for what in ("seconds", "MiB"):
        result[f"{what}_ratio"] = found["chunked"][what] / found["whole"][what]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    for name, value in (
        ("rows", 8),
        ("tokens", 1024),
        ("vocabulary", 150_000),
        ("width", 64),
        ("repeats", 2),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    print(json.dumps(measure(**vars(parser.parse_args())), indent=1))


if __name__ == "__main__":
    main()
