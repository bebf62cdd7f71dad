"""One math-verify process beside this one, with a hard deadline: what does not answer in time is killed."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from selfloop.workflows.errors import InputError, JudgeError

__all__ = ["MathProcess", "compare", "require_math_verify"]

START_SECONDS = 60.0  # importing sympy on a busy machine


def require_math_verify() -> None:
    """Raise InputError with the install line if math-verify is missing."""
    if importlib.util.find_spec("math_verify") is None:
        raise InputError(
            "judge=math needs the package math-verify, which is not installed; "
            "install it with pip install 'selfloop[math]'"
        )


class MathProcess:
    """A worker that is started when first needed, killed at a deadline and started again for the next request."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = os.getpid()

    def compare(self, gold: str, text: str, deadline: float) -> float | None:
        """1 or 0; None when nothing could be read within the deadline (seconds). Raises JudgeError if it broke."""
        with self.lock:
            reply = self.ask(json.dumps({"gold": gold, "text": text}), deadline)
        if reply is None:
            return None
        if "error" in reply:
            raise JudgeError(f"math-verify could not compare an answer: {reply['error']}")
        return reply["score"]

    def ask(self, line: str, deadline: float) -> dict[str, Any] | None:
        process = self.alive()
        assert process.stdin is not None
        try:
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
            reply = self.read(process, deadline)
        except BrokenPipeError:
            reply = b""
        if reply is None or not reply.endswith(b"\n"):
            self.stop()
        if reply == b"":
            raise JudgeError("the math-verify process died; the answer it was comparing is marked as failed")
        return None if reply is None else json.loads(reply)

    def alive(self) -> subprocess.Popen[bytes]:
        if self.process is not None and self.owner == os.getpid() and self.process.poll() is None:
            return self.process
        require_math_verify()
        command = [sys.executable, "-P", str(Path(__file__).with_name("worker.py"))]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment, bufsize=0
        )
        self.process, self.owner = process, os.getpid()
        if not self.read(process, START_SECONDS):
            self.stop()
            raise JudgeError(f"the math-verify process did not start within {START_SECONDS:.0f} s")
        return process

    def read(self, process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
        """One line; b"" (or a part of a line) when the process ended; None at the deadline."""
        assert process.stdout is not None
        line, end = b"", time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, end - time.monotonic())):
                    return None
                more = os.read(process.stdout.fileno(), 65536)
                if not more:
                    return b""
                line += more
        return line

    def stop(self) -> None:
        """Kill the worker; the next request starts another."""
        process, self.process = self.process, None
        if process is None or self.owner != os.getpid():
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()


_HERE = MathProcess()
atexit.register(_HERE.stop)


def compare(gold: str, text: str, deadline: float) -> float | None:
    """`MathProcess.compare` on this process's own worker."""
    return _HERE.compare(gold, text, deadline)
