"""Ray's own processes under a run: when one of them ends, the run says so at once instead of waiting for an answer."""

from __future__ import annotations

import _thread
import importlib
import socket
import threading
import time
from contextlib import suppress
from typing import Any, Self

import ray

__all__ = ["RayWatch"]

LOOK_SECONDS = 0.5
GCS_SECONDS = (
    50.0  # without an answer of a cluster's head; a head may be started anew, and Ray itself waits for 60 s
)
DOOR_SECONDS = 5.0  # for one of its doors to open; a busy machine may take a moment
NAMES = {"raylet": "the raylet of this machine", "gcs_server": "the head's store (GCS)"}


class RayWatch:
    """While it is entered, a thread looks whether Ray still lives; if not, it interrupts the main thread.

    here: Ray was started by this process, which so knows its processes. Else the cluster's doors are knocked at.
    """

    def __init__(self, here: bool):
        self.here = here
        self.lost = ""
        self.ended = threading.Event()
        self.heard = time.monotonic()

    def __enter__(self) -> Self:
        self.inner = importlib.import_module("ray._private.worker")  # Ray tells of its processes nowhere else
        self.node: Any = self.inner._global_node
        self.head = ray.get_runtime_context().gcs_address.rpartition(":")
        self.printer: Any = self.inner.print_to_stdstream
        setattr(self.inner, "print_to_stdstream", self.print)  # noqa: B010
        if threading.current_thread() is threading.main_thread():
            threading.Thread(target=self.watch, name="ray-watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        if not self.lost:
            setattr(self.inner, "print_to_stdstream", self.printer)  # noqa: B010

    def print(self, *args: Any, **options: Any) -> None:
        """What Ray prints of itself, but not the log of a raylet that has ended: the run says that in a sentence."""
        if not self.look():
            self.printer(*args, **options)

    def watch(self) -> None:
        while not self.ended.wait(LOOK_SECONDS):
            if self.look():
                if not self.ended.is_set():
                    _thread.interrupt_main()
                return

    def look(self) -> str:
        """What of Ray is gone; empty while it lives."""
        if not self.lost:
            self.lost = self.gone_here() if self.here else self.gone_there()
        return self.lost

    def gone_here(self) -> str:
        ended = [name for name, _ in self.node.dead_processes() if name in NAMES]
        return NAMES[ended[0]] if ended else ""

    def gone_there(self) -> str:
        if not answers(socket.AF_UNIX, self.node.raylet_socket_name):
            return NAMES["raylet"]
        if answers(socket.AF_INET, (self.head[0], int(self.head[2]))):
            self.heard = time.monotonic()
        return NAMES["gcs_server"] if time.monotonic() - self.heard > GCS_SECONDS else ""

    def clean_up(self) -> None:
        """End what is left of a Ray that was started here; its own way of ending would wait for what is gone."""
        if self.here:
            with suppress(Exception):
                self.node.kill_all_processes(check_alive=False, allow_graceful=False)


def answers(family: int, address: Any) -> bool:
    """Whether something listens there."""
    with socket.socket(family) as door:
        door.settimeout(DOOR_SECONDS)
        try:
            door.connect(address)
        except OSError:
            return False
        return True
