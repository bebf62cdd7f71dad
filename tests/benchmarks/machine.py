"""What a figure was measured on, printed above every table."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path

__all__ = ["Load", "cpu_of", "describe", "peak_mib", "spread"]


def describe() -> str:
    """Cores, processor and OpenMP threads."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "?")
    threads = os.environ.get("OMP_NUM_THREADS", "unset")
    return f"{os.cpu_count()} cores, {name}, OMP_NUM_THREADS={threads}"


class Load:
    """Processor time that other processes took while we measured: whether the machine was idle."""

    def __init__(self) -> None:
        self.before = _jiffies()
        self.mine = _mine()

    def sentence(self, own_seconds: float | None = None) -> str:
        """Load average now, and the busy share of all cores since this object was made."""
        busy, total = (new - old for new, old in zip(_jiffies(), self.before, strict=True))
        share = busy / max(total, 1) * (os.cpu_count() or 1)
        text = f"load average {os.getloadavg()[0]:.2f}, {share:.2f} cores busy on average"
        if own_seconds is not None:
            tick = os.sysconf("SC_CLK_TCK")
            others = max(busy / tick - own_seconds, 0) / max(total / tick / (os.cpu_count() or 1), 1e-9)
            text += f", {others:.2f} of them with other people's work"
        return text


def _jiffies() -> tuple[int, int]:
    """(busy, all) clock ticks of all cores since the machine started."""
    values = [int(one) for one in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(values) - values[3] - values[4], sum(values)


def _mine() -> float:
    return sum(os.times()[:4])


def cpu_of(pid: int) -> float:
    """Processor seconds that a process and its ended children have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(int(value) for value in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def peak_mib(pid: int | str = "self") -> float:
    """Largest resident memory of a process so far, MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def spread(values: Sequence[float]) -> str:
    """The median, and between which values it lies."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"
