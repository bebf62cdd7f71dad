"""Whether the pocket world can be improved in without labels, and whether broken loops fail to.

`python -m selfloop.workflows.pocket.make.worth` runs a plain loop (sample, pair, DPO with a small NLL term, renewed
reference) from the base with several sources of preference and prints held-out accuracy by iteration:

- majority: a sample of the most voted answer against one of a less voted answer
- judge: the sample its own point score puts highest against the one it puts lowest
- shuffled: verdicts dealt out at random inside each prompt's samples (must not improve)
- reversed: majority pairs the wrong way round (must get worse)
- unpublished: the trained weights never reach the sampler (accuracy cannot move)

Answers are read by the held-out evaluation alone.
"""

from __future__ import annotations

import argparse
import copy
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from selfloop.workflows.pocket import roles
from selfloop.workflows.pocket.make.measure import judge_scores
from selfloop.workflows.pocket.make.player import Player, Said, load
from selfloop.workflows.pocket.source import POCKET_MODEL
from selfloop.workflows.pocket.tasks import Task, generate, verify

if TYPE_CHECKING:
    import torch

__all__ = ["SIGNALS", "Pair", "Settings", "curve", "learn", "main", "pairs_of", "reply_logprobs"]

SIGNALS = ("majority", "judge", "shuffled", "reversed", "unpublished")


@dataclass(frozen=True)
class Settings:
    """Settings of the loop."""

    prompts: int = 768  # an iteration
    samples: int = 8
    iterations: int = 4
    lr: float = 1e-4
    judge_lr: float = (
        3e-5  # for the judge signal: a judge that changes with the policy drifts when steps are large
    )
    beta: float = 0.1
    nll: float = 0.2
    epochs: int = 2
    pairs: int = 64  # an optimizer step
    threshold: float = 0.0  # least vote share of the preferred answer
    heldout: int = 256
    seed: int = 0


@dataclass(frozen=True)
class Pair:
    """A preference pair as tokens, and its weight."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    weight: float = 1.0


def pairs_of(
    signal: str,
    player: Player,
    tasks: Sequence[Task],
    said: list[list[Said]],
    settings: Settings,
    rng: random.Random,
) -> list[Pair]:
    """One pair a prompt at most, by this signal."""
    scores = judge_scores(player, tasks, said) if signal == "judge" else [_votes(group) for group in said]
    prompts = player.encode([roles.answer_messages(task.text) for task in tasks])
    pairs = []
    for prompt, group, values in zip(prompts, said, scores, strict=True):
        if signal == "shuffled":
            rng.shuffle(values)
        best, worst = max(values), min(values)
        if best == worst or (signal != "judge" and best < settings.threshold):
            continue
        chosen = group[rng.choice([place for place, value in enumerate(values) if value == best])]
        rejected = group[rng.choice([place for place, value in enumerate(values) if value == worst])]
        if signal == "reversed":
            chosen, rejected = rejected, chosen
        if chosen.ids != rejected.ids:
            weight = 1.0 if signal == "judge" else best - worst
            pairs.append(Pair(prompt, list(chosen.ids), list(rejected.ids), weight))
    return pairs


def _votes(group: Sequence[Said]) -> list[float]:
    counts = Counter(one.text.strip() for one in group)
    return [counts[one.text.strip()] / len(group) for one in group]


def reply_logprobs(model: Any, rows: Sequence[tuple[list[int], list[int]]]) -> torch.Tensor:
    """Sum of the log-probs of each reply, (rows,)."""
    import torch

    width = max(len(prompt) + len(reply) for prompt, reply in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    shown = torch.zeros(len(rows), width - 1, dtype=torch.bool)
    for row, (prompt, reply) in enumerate(rows):
        ids[row, : len(prompt) + len(reply)] = torch.tensor(prompt + reply)
        shown[row, len(prompt) - 1 : len(prompt) + len(reply) - 1] = True
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    found = torch.log_softmax(model.lm_head(hidden[shown]), -1)
    values = torch.zeros(shown.shape)
    return values.masked_scatter(shown, found.gather(-1, ids[:, 1:][shown][:, None])[:, 0]).sum(-1)


def learn(model: Any, pairs: Sequence[Pair], lr: float, settings: Settings, rng: random.Random) -> None:
    """Weighted DPO with an NLL term on the chosen reply, against the model as it is now; fresh AdamW."""
    import torch

    reference = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    order = [pair for _ in range(settings.epochs) for pair in rng.sample(list(pairs), len(pairs))]
    for start in range(0, len(order), settings.pairs):
        batch = order[start : start + settings.pairs]
        rows = [(pair.prompt, pair.chosen) for pair in batch] + [
            (pair.prompt, pair.rejected) for pair in batch
        ]
        now = reply_logprobs(model, rows)
        with torch.no_grad():
            before = reply_logprobs(reference, rows)
        chosen, rejected = (now - before).chunk(2)
        lengths = torch.tensor([len(pair.chosen) for pair in batch])
        preference = -torch.nn.functional.logsigmoid(settings.beta * (chosen - rejected))
        loss = preference + settings.nll * -now[: len(batch)] / lengths
        loss = (loss * torch.tensor([pair.weight for pair in batch])).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def _accuracy(player: Player, tasks: Sequence[Task], seed: int) -> tuple[float, float]:
    """Held-out accuracy: sampled (four a task) and greedy."""
    asked = [roles.answer_messages(task.text) for task in tasks]
    sampled = player.sample(asked, n=4, seed=seed)
    greedy = player.sample(asked, temperature=0.0)
    right = [verify(t, one.text) for t, group in zip(tasks, sampled, strict=True) for one in group]
    return fmean(right), fmean(verify(t, group[0].text) for t, group in zip(tasks, greedy, strict=True))


def curve(model: Path, signal: str, settings: Settings, verbose: bool = False) -> list[tuple[float, float]]:
    """Held-out accuracy (sampled, greedy) before the first and after each iteration."""
    rng = random.Random(settings.seed)
    learner = load(model)
    sampler = load(model) if signal == "unpublished" else learner
    heldout = generate("heldout", settings.heldout, settings.seed)
    train = generate("train", settings.prompts * settings.iterations, settings.seed)
    figures = [_accuracy(sampler, heldout, settings.seed)]
    for turn in range(settings.iterations):
        started = time.monotonic()
        tasks = train[turn * settings.prompts : (turn + 1) * settings.prompts]
        asked = [roles.answer_messages(task.text) for task in tasks]
        said = sampler.sample(asked, n=settings.samples, seed=1000 * settings.seed + turn + 1)
        sampling = time.monotonic() - started
        pairs = pairs_of(signal, sampler, tasks, said, settings, rng)
        learn(learner.model, pairs, settings.judge_lr if signal == "judge" else settings.lr, settings, rng)
        taken = time.monotonic() - started
        figures.append(_accuracy(sampler, heldout, settings.seed))
        if verbose:
            sampled, greedy = figures[-1]
            print(
                f"  {signal} {turn + 1}: sampled {sampled:.3f} greedy {greedy:.3f}, {len(pairs)} pairs, "
                f"sampling {sampling:.0f} s, training {taken - sampling:.0f} s",
                flush=True,
            )
    return figures


def main(argv: list[str] | None = None) -> None:
    """Command line: every field of Settings is an option."""
    import torch

    parser = argparse.ArgumentParser(
        description="Show what label-free and broken loops do to the pocket base."
    )
    parser.add_argument("--model", type=Path, default=POCKET_MODEL)
    parser.add_argument("--signals", nargs="+", default=SIGNALS, choices=SIGNALS)
    parser.add_argument("--threads", type=int, default=1)
    for name, default in vars(Settings()).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    args = vars(parser.parse_args(argv))
    torch.set_num_threads(args.pop("threads"))
    model, signals = args.pop("model"), args.pop("signals")
    settings = Settings(**args)
    print(settings)
    for signal in signals:
        figures = curve(model, signal, settings, verbose=True)
        print(
            f"{signal:12s}" + "  ".join(f"{a:.3f}/{b:.3f}" for a, b in figures) + "  (sampled/greedy)",
            flush=True,
        )


if __name__ == "__main__":
    main()
