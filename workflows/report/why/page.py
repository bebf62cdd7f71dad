"""The page that `selfloop why` writes, and how it puts values into words."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping

from selfloop.workflows.report.text import clean

__all__ = ["Page", "words"]


class Page:
    """Lines of at most `width` columns: a label on the left, text beside it."""

    def __init__(self, width: int):
        self.width = width
        self.lines: list[str] = []

    def title(self, text: str) -> None:
        self.lines += ([""] if self.lines else []) + [text]

    def put(self, label: str, text: str, indent: int = 14, hang: int = 0) -> None:
        """Text beside its label; a long label stands above."""
        first = f"  {label}".ljust(indent)
        if label and len(label) > indent - 3:
            self.lines.append(first.rstrip())
            first = " " * indent
        margin = " " * (indent + hang)
        self.lines += textwrap.wrap(
            text,
            self.width,
            initial_indent=first,
            subsequent_indent=margin,
            break_on_hyphens=False,
            break_long_words=False,
        ) or [first.rstrip()]

    def quote(self, text: str, indent: int = 16) -> None:
        """Words of a model or of a prompt: a bar on the left, control characters gone."""
        for line in text.split("\n") or [""]:
            self.lines += textwrap.wrap(
                clean(line), self.width, initial_indent=" " * indent + "| ", subsequent_indent=" " * indent + "| ",
                break_on_hyphens=False,
            ) or [" " * indent + "|"]  # fmt: skip


def words(messages: Iterable[Mapping[str, str]]) -> str:
    """Messages as text: roles only where there are several."""
    turns = list(messages)
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n".join(f"[{turn['role']}] {turn['content']}" for turn in turns)
