"""The roles a model plays in the pocket world: a prompt, a parser and a truth for each.

| role | the model is given | and replies |
| --- | --- | --- |
| answer | a task | its answer |
| point score | a task and a response | yes or no |
| comparison | a task and two responses | A or B |
| critique | a task and a response | `right`, or `wrong at 3`: the first wrong place |
| refinement | a task, a response, a critique if there is one | a better answer |
| principle | a task and a rule | the answer, written as the rule says |
| new task | a kind, or none | a new task |

Only the truth functions know right from wrong; builders and parsers never see an answer. A response that goes into another
prompt cannot leave its line there: see `shown`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from selfloop.workflows.data.schema import Message
from selfloop.workflows.judges.base import PromptJudge
from selfloop.workflows.pocket.tasks import Task, parse_task

__all__ = [
    "PRINCIPLES",
    "PocketComparison",
    "PocketPointJudge",
    "answer_messages",
    "comparison_messages",
    "comparison_truth",
    "critique_messages",
    "critique_truth",
    "new_task_messages",
    "new_task_truth",
    "parse_comparison",
    "parse_critique",
    "parse_new_task",
    "parse_point",
    "point_messages",
    "point_truth",
    "principle_messages",
    "principle_truth",
    "refinement_messages",
    "refinement_truth",
    "shown",
    "task_of",
]

LONGEST = 32  # a text is cut here before it goes into another prompt

PRINCIPLES: dict[str, Callable[[str], str]] = {
    "with spaces": " ".join,
    "with dashes": "-".join,
    "in brackets": "[{}]".format,
    "backwards": lambda answer: answer[::-1],
}
"""Rules for writing an answer, and what each makes of it."""


def _user(*lines: str) -> list[Message]:
    return [{"role": "user", "content": "\n".join(lines)}]


def _line(text: str) -> str:
    return " ".join(text.split())[:LONGEST]


def shown(response: str) -> str:
    """A response as other prompts show it: its digits, or nothing where it holds anything else and so is no answer.

    The base was trained on prompts that are bare lines of words, and reads none with a token in them. So a response that
    could spell a line of the prompt, a verdict or a turn marker is shown as the empty answer, which is wrong as it is.
    """
    line = _line(response)
    return line if line.isascii() and line.isdecimal() else ""


def task_of(prompt: Sequence[Mapping[str, str]]) -> str:
    """The task a prompt states: the first line of its last user message."""
    content = next(message["content"] for message in reversed(prompt) if message["role"] == "user")
    return content.split("\n", 1)[0]


def answer_messages(task: str) -> list[Message]:
    """Asks for the answer of a task."""
    return _user(task)


def point_messages(task: str, response: str) -> list[Message]:
    """Asks whether a response is right: yes or no."""
    return _user(task, f"answer: {shown(response)}", "right?")


def parse_point(text: str) -> bool | None:
    """True for yes, False for no, None for anything else."""
    return {"yes": True, "no": False}.get(text.strip())


def point_truth(task: Task, response: str) -> str:
    """What an all-knowing judge says."""
    return "yes" if shown(response) == task.answer else "no"


def comparison_messages(task: str, first: str, second: str) -> list[Message]:
    """Asks which of two responses is better: A or B."""
    return _user(task, f"A: {shown(first)}", f"B: {shown(second)}", "better?")


def parse_comparison(text: str) -> str | None:
    """A or B, or None for anything else."""
    return text.strip() if text.strip() in ("A", "B") else None


def comparison_truth(task: Task, first: str, second: str) -> str | None:
    """A or B, or None when both are right or both wrong."""
    right = [shown(response) == task.answer for response in (first, second)]
    return None if right[0] == right[1] else "AB"[right.index(True)]


def critique_messages(task: str, response: str) -> list[Message]:
    """Asks where a response is wrong."""
    return _user(task, f"answer: {shown(response)}", "critique")


def parse_critique(text: str) -> int | None:
    """The first wrong place, counted from 1; 0 for right; None when it cannot be read."""
    if text.strip() == "right":
        return 0
    match = re.fullmatch(r"wrong at (\d+)", text.strip())
    return int(match[1]) if match else None


def critique_truth(task: Task, response: str) -> str:
    """`right`, or `wrong at n`: the first place, from 1, where the response leaves the answer or ends too early."""
    said, answer = shown(response), task.answer
    if said == answer:
        return "right"
    same = next((i for i, (a, b) in enumerate(zip(said, answer, strict=False)) if a != b), None)
    return f"wrong at {(min(len(said), len(answer)) if same is None else same) + 1}"


def refinement_messages(task: str, response: str, critique: str | None = None) -> list[Message]:
    """Asks for a better answer than this one, in the light of a critique if there is one."""
    said = [] if critique is None else [f"critique: {_line(critique)}"]
    return _user(task, f"answer: {shown(response)}", *said, "improve")


def refinement_truth(task: Task, response: str) -> str:
    """The right answer, whatever was given."""
    return task.answer


def principle_messages(task: str, rule: str) -> list[Message]:
    """Asks for the answer, written by a rule."""
    return _user(task, f"rule: {rule}")


def principle_truth(task: Task, rule: str) -> str:
    """The right answer, written by the rule."""
    return PRINCIPLES[rule](task.answer)


def new_task_messages(kind: str | None = None) -> list[Message]:
    """Asks for a new task, of one kind or of any."""
    return _user("new task" if kind is None else f"new task: {kind}")


def parse_new_task(text: str) -> Task | None:
    """The task that was written, or None when it is none."""
    return parse_task(text)


def new_task_truth(text: str, kind: str | None = None) -> bool:
    """Whether a task of the asked kind was written."""
    task = parse_new_task(text)
    return task is not None and kind in (None, task.kind)


class PocketPointJudge(PromptJudge):
    """The point score as a judge: `scale` times the probability of yes, from the labels' log-probs.

    Where labels are not asked for (`labels=()`), replies are sampled and yes counts `scale`, no 0; with several
    votes their mean is graded too.
    """

    reads: ClassVar[tuple[str, ...]] = ("prompt", "response")
    labels: tuple[str, ...] = ("yes", "no")
    max_tokens: int = 2
    temperature: float = 1.0
    top_p: float = 1.0
    scale: float = 5.0

    def messages(self, row: Mapping[str, Any]) -> list[Message]:
        return point_messages(task_of(row["prompt"]), row["response"])

    def parse(self, text: str) -> float | None:
        said = parse_point(text)
        return None if said is None else self.scale * said

    def parse_labels(self, logprobs: Sequence[float]) -> float | None:
        return _share(logprobs, self.scale)


class PocketComparison(PromptJudge):
    """The comparison as a judge: the probability that `response` is better than the response in column `other`.

    `swapped` shows the two in the other order; averaging both takes the position bias out.
    """

    reads: ClassVar[tuple[str, ...]] = ("prompt", "response")
    other: str = "other"
    swapped: bool = False
    labels: tuple[str, ...] = ("A", "B")
    max_tokens: int = 2
    temperature: float = 1.0
    top_p: float = 1.0

    def messages(self, row: Mapping[str, Any]) -> list[Message]:
        pair = (row["response"], row[self.other])
        return comparison_messages(task_of(row["prompt"]), *(reversed(pair) if self.swapped else pair))

    def parse(self, text: str) -> float | None:
        said = parse_comparison(text)
        return None if said is None else float((said == "A") != self.swapped)

    def parse_labels(self, logprobs: Sequence[float]) -> float | None:
        first = _share(logprobs, 1.0)
        return None if first is None else (1.0 - first if self.swapped else first)


def _share(logprobs: Sequence[float], scale: float) -> float | None:
    """`scale` times the first label's share of the probability of both; None when neither has any."""
    top = max(logprobs)
    if not math.isfinite(top):
        return None
    weights = [math.exp(value - top) for value in logprobs]
    return scale * weights[0] / sum(weights)
