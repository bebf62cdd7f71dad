"""No long silence: something is said every few seconds, whatever the main thread waits for."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

__all__ = ["SILENCE", "Ticker", "elapsed", "waiting"]

SILENCE = 14.0  # seconds; with the second between two looks at the clock no line comes later than 15 s after the last
LOOK = 1.0


class Ticker:
    """Calls `tick` every second from a thread of its own, from `start` to `stop`."""

    def __init__(self, tick: Callable[[], None]):
        self.tick = tick
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run, name="ticker", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def run(self) -> None:
        while not self.ended.wait(LOOK):
            self.tick()

    def stop(self) -> None:
        self.ended.set()
        self.thread.join()


def elapsed(seconds: float) -> str:
    """1:05, or 2:03:04."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


@contextmanager
def waiting(what: str) -> Generator[None]:
    """Says on stderr, every 15 s, that this is what takes so long."""
    began = last = time.monotonic()

    def tick() -> None:
        nonlocal last
        if time.monotonic() - last >= SILENCE:
            last = time.monotonic()
            print(f"[{elapsed(last - began)}] {what} …", file=sys.stderr, flush=True)

    ticker = Ticker(tick)
    ticker.start()
    try:
        yield
    finally:
        ticker.stop()
