"""What a figure was measured on, printed above every table."""

from __future__ import annotations

import os
import statistics
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

__all__ = ["Load", "cpu_of", "describe", "equal_priority", "spread", "tree"]


def describe() -> str:
    """Cores, processor and OpenMP threads."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "?")
    threads = os.environ.get("OMP_NUM_THREADS", "unset")
    return f"{os.cpu_count()} cores, {name}, OMP_NUM_THREADS={threads}"


def equal_priority() -> None:
    """Let Ray's workers run at our own priority. Ray gives way to everybody else (nice 15), which on a machine that others
    use too would compare priorities instead of programs."""
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray spells it so)


class Load:
    """How busy the machine was while we measured."""

    def __init__(self) -> None:
        self.before = _jiffies()

    def sentence(self) -> str:
        """Load average now (processes that want to run; two cores serve two), and busy cores since this object was made."""
        busy, total = (new - old for new, old in zip(_jiffies(), self.before, strict=True))
        share = busy / max(total, 1) * (os.cpu_count() or 1)
        return f"load average {os.getloadavg()[0]:.2f}, {share:.2f} cores busy on average"


def _jiffies() -> tuple[int, int]:
    """(busy, all) clock ticks of all cores since the machine started."""
    values = [int(one) for one in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(values) - values[3] - values[4], sum(values)


def tree(pid: int, without: Collection[int] = ()) -> list[int]:
    """A process and all that it started, but for some of its children."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):  # it has ended
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    found = [pid]
    for one in found:
        found += [child for child in children.get(one, []) if child not in without]
    return found


def cpu_of(pids: Iterable[int]) -> float:
    """Processor seconds that these processes have used, fine grained where the kernel tells it."""
    total = 0.0
    for pid in pids:
        try:
            threads = list(Path(f"/proc/{pid}/task").iterdir())
            total += sum(int((one / "schedstat").read_text().split()[0]) for one in threads) / 1e9
        except (OSError, IndexError, ValueError):  # it has ended
            continue
    return total


def spread(values: Sequence[float]) -> str:
    """The median, and between which values it lies."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"
