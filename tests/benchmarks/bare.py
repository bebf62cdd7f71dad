"""The bare engines, each in a process of its own: vLLM's `LLM`, and a plain DeepSpeed loop. No Selfloop around them.

A worker starts once, then does the work it is sent and reports the seconds that took. Requests and rows are plain
lists, prepared before the clock starts; sampling parameters, tensors and micro-batches are made while it runs.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from selfloop.actors.generate.spec import EngineSpec
    from selfloop.actors.train.spec import TrainerSpec

__all__ = ["Worker", "together", "trainer", "vllm"]

Work = Callable[[Any], Any]


class Worker:
    """A process that `make(*args)` turns into a function; `send` gives it work, `receive` waits for the seconds."""

    def __init__(self, make: Callable[..., Work], *args: Any):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, args), daemon=True)
        began = time.perf_counter()
        self.process.start()
        theirs.close()
        self.receive()
        self.start_seconds = time.perf_counter() - began

    def send(self, work: Any) -> None:
        self.pipe.send(work)

    def receive(self) -> tuple[float, Any]:
        return self.pipe.recv()

    def close(self) -> None:
        self.pipe.send(None)
        self.process.join(60)


def _serve(pipe: Any, make: Callable[..., Work], args: tuple[Any, ...]) -> None:
    function = make(*args)
    pipe.send((0.0, None))
    while (work := pipe.recv()) is not None:
        began = time.perf_counter()
        found = function(work)
        pipe.send((time.perf_counter() - began, found))


def together(workers: Sequence[Worker], parts: Sequence[Any]) -> float:
    """Seconds until the last of several workers has done its part."""
    for worker, part in zip(workers, parts, strict=True):
        worker.send(part)
    return max(worker.receive()[0] for worker in workers)


# ---- vLLM


def vllm(spec: EngineSpec) -> Work:
    """vLLM's own class with our engine arguments. Work: (what, [(prompt ids, length, seed)], labels, sampling).

    `sample` draws exactly as many tokens a prompt as the run did; `label` asks for the log-probs of label tokens.
    """
    from selfloop.actors.generate.vllm_start import engine_arguments, prepare_environment
    from selfloop.workflows.models.facts import read_facts

    prepare_environment(spec)
    import torch
    from vllm import LLM, SamplingParams

    keep = torch.set_num_threads  # vLLM's CPU worker replaces it
    keep(spec.threads)
    llm = LLM(**engine_arguments(spec, read_facts(spec.model, spec.max_model_len)))
    fixed: dict[str, Any] = {"detokenize": False, "flat_logprobs": True}

    def work(given: tuple[str, list[tuple[list[int], int, int]], list[int], dict[str, Any]]) -> int:
        what, requests, labels, sampling = given
        if what == "label":
            one = SamplingParams(logprob_token_ids=labels, max_tokens=1, temperature=0.0, **fixed)
            params = [one] * len(requests)
        else:
            params = [
                SamplingParams(
                    seed=seed & (2**63 - 1),
                    max_tokens=length,
                    ignore_eos=True,
                    logprobs=0,
                    **sampling,
                    **fixed,
                )
                for _, length, seed in requests
            ]
        prompts: Any = [{"prompt_token_ids": ids} for ids, _, _ in requests]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    work(("sample", [([5, 6, 7], 4, 0)], [], {"temperature": 1.0}))
    return work


# ---- DeepSpeed


def trainer(spec: TrainerSpec) -> Work:
    """A plain loop: transformers' forward, log-softmax, the objective written out, DeepSpeed's backward and step.

    Work: (objective's name, its settings, rows, the rows of each optimizer step). A row of `grpo` is (prompt ids,
    response ids, advantage), of `dpo` (prompt ids, chosen ids, rejected ids).
    """
    import os

    os.environ["DS_ACCELERATOR"] = spec.device
    import torch

    torch.set_num_threads(spec.threads)
    from selfloop.actors.train.model.zero import join_group

    join_group(spec.device, 0, 1, ("127.0.0.1", 0))
    import deepspeed
    from transformers import AutoModelForCausalLM

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    net: Any = AutoModelForCausalLM.from_pretrained(spec.model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=spec.lr, betas=spec.betas, weight_decay=0.0, fused=True
    )
    config = json.loads(
        files("selfloop.configs").joinpath(f"deepspeed/zero{spec.zero}.json").read_text("utf-8")
    )
    config |= {"train_batch_size": 1, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1,
               "steps_per_print": 2**62, "gradient_clipping": spec.clip or 0.0}  # fmt: skip
    engine: Any = deepspeed.initialize(
        model=net, optimizer=optimizer, config=config, dist_init_required=False
    )[0]

    def work(given: tuple[str, dict[str, Any], list[Any], list[list[int]]]) -> float:
        name, settings, rows, steps = given
        loop = {"grpo": grpo, "dpo": dpo}[name]
        return loop(engine, settings, rows, steps, spec.tokens_per_micro_batch)

    return work


def micro_batches(rows: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Rows sorted by length, cut at `budget` padded tokens."""
    parts: list[list[int]] = []
    for row in sorted(rows, key=lambda row: -lengths[row]):
        if not parts or (len(parts[-1]) + 1) * lengths[parts[-1][0]] > budget:
            parts.append([])
        parts[-1].append(row)
    return parts


def forward(
    engine: Any, prompts: Sequence[list[int]], responses: Sequence[list[int]]
) -> tuple[Tensor, Tensor]:
    """(rows, tokens - 1) log-probs of every next token, and the mask of the responses."""
    import torch

    lines = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    longest = max(map(len, lines))
    ids = torch.zeros((len(lines), longest), dtype=torch.long)
    mask = torch.zeros((len(lines), longest))
    for row, (line, prompt) in enumerate(zip(lines, prompts, strict=True)):
        ids[row, : len(line)] = torch.tensor(line)
        mask[row, len(prompt) : len(line)] = 1
    logits = engine(input_ids=ids, use_cache=False).logits[:, :-1]
    logprobs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return logprobs, mask[:, 1:]


def grpo(
    engine: Any, settings: dict[str, Any], rows: list[Any], steps: list[list[int]], budget: int
) -> float:
    """Dr. GRPO's loss, one update on fresh samples: the old log-probs are this forward's own."""
    import torch

    lengths = [len(prompt) + len(response) for prompt, response, _ in rows]
    total = 0.0
    for step in steps:
        for part in micro_batches(step, lengths, budget):
            logprobs, mask = forward(engine, [rows[row][0] for row in part], [rows[row][1] for row in part])
            advantages = torch.tensor([rows[row][2] for row in part], dtype=torch.float32)[:, None]
            ratio = (logprobs - logprobs.detach()).exp()
            clipped = ratio.clamp(1 - settings["epsilon"], 1 + settings["epsilon"])
            values = -torch.minimum(ratio * advantages, clipped * advantages) * mask
            loss = values.sum() / settings["max_length"] / len(step)
            total += float(loss.detach())
            engine.backward(loss)
        engine.step()
    return total


def dpo(engine: Any, settings: dict[str, Any], rows: list[Any], steps: list[list[int]], budget: int) -> float:
    """DPO's loss, after one pass for the reference's log-probs under the weights it starts from."""
    import torch

    lengths = [2 * (len(prompt) + max(len(chosen), len(rejected))) for prompt, chosen, rejected in rows]

    def ratios(part: list[int]) -> Tensor:
        """(2, rows) log-probs of whole responses."""
        prompts = [rows[row][0] for row in part]
        logprobs, mask = forward(engine, prompts * 2, [rows[row][side] for side in (1, 2) for row in part])
        return (logprobs * mask).sum(-1).view(2, -1)

    reference: dict[int, Tensor] = {}
    with torch.no_grad():
        for part in micro_batches(sorted(row for step in steps for row in step), lengths, budget):
            reference |= dict(zip(part, ratios(part).T, strict=True))
    total = 0.0
    for step in steps:
        for part in micro_batches(step, lengths, budget):
            gains = ratios(part) - torch.stack([reference[row] for row in part], 1)
            loss = -torch.nn.functional.logsigmoid(settings["beta"] * (gains[0] - gains[1])).sum() / len(step)
            total += float(loss.detach())
            engine.backward(loss)
        engine.step()
    return total
