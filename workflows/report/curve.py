"""The curve of a run in words and bars: shared by the console, `show` and the run page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = [
    "ACCURACY",
    "SCORE",
    "figure",
    "gain",
    "greedy",
    "interval",
    "number",
    "sentence",
    "shown",
    "signal",
    "sparkline",
]

ACCURACY = "heldout_accuracy"
SCORE = "heldout_score"
BARS = "▁▂▃▄▅▆▇█"

Metrics = Mapping[str, Any]


def number(metrics: Metrics, name: str) -> float | None:
    """A metric, or None where it is missing or no number."""
    value = metrics.get(name)
    return float(value) if isinstance(value, int | float) and value == value else None


def figure(history: Iterable[Metrics]) -> str:
    """The metric that tells a run's curve: accuracy, unless some iteration has only a mean score."""
    scored = any(SCORE in metrics and ACCURACY not in metrics for metrics in history)
    return SCORE if scored else ACCURACY


def greedy(name: str) -> str:
    """The same figure of greedy answers."""
    return f"{name}_greedy"


def interval(metrics: Metrics, name: str = ACCURACY) -> tuple[float, float] | None:
    """The 95 % interval of a metric, or None where none was measured."""
    low, high = number(metrics, f"{name}_low"), number(metrics, f"{name}_high")
    return None if low is None or high is None else (low, high)


def shown(value: float | None, name: str = ACCURACY) -> str:
    """An accuracy of 0.714 as `71.4 %`, a score of 7.1448 as `7.145`."""
    if value is None:
        return "-"
    return f"{value:.4g}" if name == SCORE else f"{100 * value:.1f} %"


def gain(new: float | None, old: float | None, name: str = ACCURACY) -> str:
    """The gain in points of accuracy, e.g. `+21.3`, or in score, e.g. `+0.42`."""
    if new is None or old is None:
        return "-"
    return f"{new - old:+.3g}" if name == SCORE else f"{100 * (new - old):+.1f}"


def sparkline(values: Sequence[float | None]) -> str:
    """One bar a value, from the lowest to the highest; a space where there is none."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    top = len(BARS) - 1
    return "".join(
        " " if value is None else BARS[round(top * (value - low) / span) if span else top // 2]
        for value in values
    )


def sentence(index: int, metrics: Metrics, before: Metrics | None = None, name: str | None = None) -> str:
    """What one iteration brought, for somebody who sees it for the first time. name: the run's `figure`."""
    name = name or figure([metrics, before or {}])
    who = "initial policy" if index == 0 else f"after iteration {index}"
    value, likeliest = number(metrics, name), number(metrics, greedy(name))
    if value is None:
        loss = next((f", {name} {number(metrics, name):.4g}" for name in metrics if name.endswith("loss")
                     and number(metrics, name) is not None), "")  # fmt: skip
        measured = "mean_length" in metrics or "kl_to_initial" in metrics
        why = "no answers to check the held-out prompts with" if measured else "not evaluated this time"
        return f"{who}: done{loss} ({why})"
    told = gain(value, number(before or {}, name), name)
    if name == SCORE:
        text = f"{who}: its sampled answers to held-out prompts have a mean score of {shown(value, name)}"
        text += "" if told == "-" else f" ({told})"
    else:
        text = f"{who}: {shown(value, name)} of its sampled answers to held-out prompts are right"
        text += "" if told == "-" else f" ({told} points)"
    if likeliest is not None:
        text += f"; {shown(likeliest, name)} when it takes its likeliest words (greedy)"
    return text


def signal(metrics: Metrics, cut: str = "") -> str:
    """What there was to learn from, to be put after a sentence. cut: what the method does with cut answers."""
    told: list[str] = []
    silent, short = number(metrics, "no_signal_share"), number(metrics, "cut_share")
    told += [f"{shown(silent)} of the prompts gave no signal"] if silent else []
    few = short is not None and 0 < short < 0.0005  # "0.0 % were cut" would deny what it tells
    share = "less than 0.1 %" if few else shown(short)
    told += [f"{share} of the answers were cut{f' ({cut})' if cut else ''}"] if short else []
    told += [kept(metrics)] if kept(metrics) else []
    told += ["nothing was trained"] if metrics.get("idle") else []
    return f" · {', '.join(told)}" if told else ""


def kept(metrics: Metrics) -> str:
    """How many rows or pairs were handed to training, of how many sampled answers."""
    made = number(metrics, "made_rows")
    for unit in ("rows", "pairs"):
        count = number(metrics, f"kept_{unit}")
        if count is not None and made is not None:
            return f"{count:,.0f} {'pairs from' if unit == 'pairs' else 'of'} {made:,.0f} answers kept"
    return ""
