"""What the base model can and cannot do: `python -m selfloop.workflows.pocket.make.measure [--model DIR] [--json]`."""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean

from selfloop.workflows.pocket import roles
from selfloop.workflows.pocket.make.player import Player, Said, load
from selfloop.workflows.pocket.source import POCKET_MODEL
from selfloop.workflows.pocket.tasks import KINDS, Task, generate, verify

__all__ = ["auc", "calibration_error", "judge_scores", "main", "measure"]

Figures = dict[str, float | dict[str, float]]


def auc(scores: Sequence[float], truths: Sequence[bool]) -> float:
    """Chance that a right one scores above a wrong one, ties counting half; nan without both."""
    from scipy.stats import rankdata

    right = sum(truths)
    if right in (0, len(truths)):
        return float("nan")
    ranks = rankdata(scores)
    above = sum(rank for rank, truth in zip(ranks, truths, strict=True) if truth) - right * (right + 1) / 2
    return float(above / (right * (len(truths) - right)))


def calibration_error(probabilities: Sequence[float], truths: Sequence[bool], bins: int = 10) -> float:
    """Expected calibration error over equal-width bins."""
    cells: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for probability, truth in zip(probabilities, truths, strict=True):
        cells[min(int(probability * bins), bins - 1)].append((probability, truth))
    gaps = (len(cell) * abs(fmean(p for p, _ in cell) - fmean(t for _, t in cell)) for cell in cells.values())
    return sum(gaps) / len(truths)


def _right(tasks: Sequence[Task], said: Sequence[Sequence[Said]]) -> list[list[bool]]:
    return [[verify(task, one.text) for one in group] for task, group in zip(tasks, said, strict=True)]


def _majority(tasks: Sequence[Task], said: Sequence[Sequence[Said]]) -> list[bool]:
    votes = (Counter(one.text.strip() for one in group).most_common(1)[0][0] for group in said)
    return [verify(task, vote) for task, vote in zip(tasks, votes, strict=True)]


def _by(tasks: Sequence[Task], values: Iterable[float], name: Callable[[Task], str]) -> dict[str, float]:
    cells: dict[str, list[float]] = defaultdict(list)
    for task, value in zip(tasks, values, strict=True):
        cells[name(task)].append(value)
    return {key: fmean(cells[key]) for key in sorted(cells)}


def measure(player: Player, size: int = 600, seed: int = 1) -> Figures:
    """All figures of docs/pocket.md, on `size` held-out tasks and a third as many of the hard band."""
    tasks = generate("heldout", size, seed)
    asked = [roles.answer_messages(task.text) for task in tasks]
    said = player.sample(asked, n=8, seed=seed)
    sampled = [fmean(group) for group in _right(tasks, said)]
    greedy = [float(group[0]) for group in _right(tasks, player.sample(asked, temperature=0.0))]
    cool = [fmean(group) for group in _right(tasks, player.sample(asked, n=4, temperature=0.5, seed=seed))]
    figures: Figures = {
        "sampled": fmean(sampled),
        "greedy": fmean(greedy),
        "sampled at 0.5": fmean(cool),
        "majority of 8": fmean(_majority(tasks, said)),
        "sampled by kind": _by(tasks, sampled, lambda task: task.kind),
        "greedy by kind": _by(tasks, greedy, lambda task: task.kind),
        "sampled by level": _by(tasks, sampled, lambda task: str(task.level)),
        "greedy by level": _by(tasks, greedy, lambda task: str(task.level)),
    }
    return (
        figures
        | _point(player, tasks, said)
        | _roles(player, tasks, said, seed)
        | _hard(player, size // 3, seed)
    )


def judge_scores(player: Player, tasks: Sequence[Task], said: Sequence[Sequence[Said]]) -> list[list[float]]:
    """The player's own point score of each response: its probability of yes."""
    asked = [
        roles.point_messages(t.text, one.text) for t, group in zip(tasks, said, strict=True) for one in group
    ]
    judge = roles.PocketPointJudge(scale=1.0)
    scores = iter(judge.parse_labels(row) or 0.0 for row in player.label_logprobs(asked, judge.labels))
    return [[next(scores) for _ in group] for group in said]


def _point(player: Player, tasks: Sequence[Task], said: list[list[Said]]) -> Figures:
    few = [group[:4] for group in said]
    scores = [score for group in judge_scores(player, tasks, few) for score in group]
    truths = [truth for group in _right(tasks, few) for truth in group]
    return {
        "judge accuracy": fmean((s > 0.5) == t for s, t in zip(scores, truths, strict=True)),
        "judge AUC": auc(scores, truths),
        "judge calibration error": calibration_error(scores, truths),
        "judge says yes": fmean(s > 0.5 for s in scores),
    }


def _roles(player: Player, tasks: Sequence[Task], said: list[list[Said]], seed: int) -> Figures:
    return {
        **_comparison(player, tasks, said),
        **_critique(player, tasks, said),
        **_refinement(player, tasks, said, seed),
        **_principle(player, tasks, seed),
        **_new_task(player, seed),
    }


def _comparison(player: Player, tasks: Sequence[Task], said: list[list[Said]]) -> Figures:
    pairs = []  # one right and one wrong sample of the same task
    for task, group, right in zip(tasks, said, _right(tasks, said), strict=True):
        if any(right) and not all(right):
            pairs.append((task, group[right.index(True)].text, group[right.index(False)].text))
    first = player.label_logprobs(
        [roles.comparison_messages(t.text, good, bad) for t, good, bad in pairs], "AB"
    )
    second = player.label_logprobs(
        [roles.comparison_messages(t.text, bad, good) for t, good, bad in pairs], "AB"
    )
    chances = [
        (
            roles.PocketComparison().parse_labels(a) or 0.0,
            roles.PocketComparison(swapped=True).parse_labels(b) or 0.0,
        )
        for a, b in zip(first, second, strict=True)
    ]
    return {
        "comparison, right one first": fmean(a > 0.5 for a, _ in chances),
        "comparison, right one second": fmean(b > 0.5 for _, b in chances),
        "comparison, both orders averaged": fmean(a + b > 1 for a, b in chances),
    }


def _critique(player: Player, tasks: Sequence[Task], said: list[list[Said]]) -> Figures:
    asked = [roles.critique_messages(t.text, group[0].text) for t, group in zip(tasks, said, strict=True)]
    replies = player.sample(asked, temperature=0.0)
    truths = [roles.critique_truth(t, group[0].text) for t, group in zip(tasks, said, strict=True)]
    return {"critique accuracy": fmean(r[0].text == t for r, t in zip(replies, truths, strict=True))}


def _refinement(player: Player, tasks: Sequence[Task], said: list[list[Said]], seed: int) -> Figures:
    drafts = [group[0].text for group in said]
    before = [right[0] for right in _right(tasks, said)]
    asked = [roles.refinement_messages(t.text, draft) for t, draft in zip(tasks, drafts, strict=True)]
    after = [right[0] for right in _right(tasks, player.sample(asked, seed=seed + 1))]
    words = [roles.critique_messages(t.text, draft) for t, draft in zip(tasks, drafts, strict=True)]
    critiques = [group[0].text for group in player.sample(words, seed=seed + 2)]
    asked = [
        roles.refinement_messages(*row)
        for row in zip((t.text for t in tasks), drafts, critiques, strict=True)
    ]
    guided = [right[0] for right in _right(tasks, player.sample(asked, seed=seed + 3))]
    wrong = [place for place, right in enumerate(before) if not right]
    return {
        "first answer": fmean(before),
        "refined": fmean(after),
        "refinement gain": fmean(after) - fmean(before),
        "refined with own critique": fmean(guided),
        "wrong answers put right": fmean(after[place] for place in wrong),
    }


def _principle(player: Player, tasks: Sequence[Task], seed: int) -> Figures:
    rules = [list(roles.PRINCIPLES)[place % len(roles.PRINCIPLES)] for place in range(len(tasks))]
    asked = [roles.principle_messages(task.text, rule) for task, rule in zip(tasks, rules, strict=True)]
    replies = player.sample(asked, seed=seed + 4)
    truths = [roles.principle_truth(task, rule) for task, rule in zip(tasks, rules, strict=True)]
    return {"principle followed": fmean(r[0].text == t for r, t in zip(replies, truths, strict=True))}


def _new_task(player: Player, seed: int) -> Figures:
    kinds = [KINDS[place % len(KINDS)] for place in range(120)]
    replies = player.sample([roles.new_task_messages(kind) for kind in kinds], seed=seed + 5)
    texts = [group[0].text for group in replies]
    return {
        "new tasks well formed": fmean(
            roles.new_task_truth(t, kind) for t, kind in zip(texts, kinds, strict=True)
        ),
        "new tasks different": len(set(texts)) / len(texts),
    }


def _hard(player: Player, size: int, seed: int) -> Figures:
    tasks = generate("hard", size, seed)
    asked = [roles.answer_messages(task.text) for task in tasks]
    said = player.sample(asked, n=8, seed=seed + 6)
    right = _right(tasks, said)
    greedy = [float(group[0]) for group in _right(tasks, player.sample(asked, temperature=0.0))]
    few = [group[:2] for group in said]
    scores = [score for group in judge_scores(player, tasks, few) for score in group]
    return {
        "hard band, sampled": fmean(fmean(group) for group in right),
        "hard band, greedy": fmean(greedy),
        "hard band, majority of 8": fmean(_majority(tasks, said)),
        "hard band, one of 8 right": fmean(any(group) for group in right),
        "hard band, greedy by kind": _by(tasks, greedy, lambda task: task.kind),
        "hard band, greedy by level": _by(tasks, greedy, lambda task: str(task.level)),
        "hard band, judge AUC": auc(scores, [truth for group in right for truth in group[:2]]),
    }


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    import torch

    parser = argparse.ArgumentParser(description="Measure a model in the pocket world.")
    parser.add_argument("--model", type=Path, default=POCKET_MODEL)
    parser.add_argument("--size", type=int, default=600, help="held-out tasks")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    figures = measure(load(args.model), args.size, args.seed)
    if args.json:
        print(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        cells = value.items() if isinstance(value, dict) else [("", value)]
        print(f"{name:34s}" + "  ".join(f"{key} {number:.3f}".strip() for key, number in cells))


if __name__ == "__main__":
    main()
