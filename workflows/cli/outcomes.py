"""How a command ends: every error becomes a sentence and an exit status, a signal a clean stop."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import tempfile
import traceback
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import typer

from selfloop.workflows.errors import (
    ClusterError,
    InputError,
    NoSignalError,
    RunLockedError,
    SelfloopError,
    StoreError,
)
from selfloop.workflows.store.disk import append, is_full, unwritten

__all__ = ["complain", "outcomes", "say", "stopped_by_signal"]

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
OURS = re.compile(r"selfloop\.workflows\.errors\.\w+: (?P<said>.+)")  # the last line of an actor's traceback


@contextmanager
def stopped_by_signal() -> Generator[None]:
    """SIGTERM (a scheduler, `docker stop`) stops a run as cleanly as Ctrl-C."""

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def outcomes(debug: bool, folder: Path | None = None) -> Generator[None]:
    """Turn exceptions into messages and exit statuses. folder: a run that can be resumed."""
    again = f"selfloop resume {shlex.quote(str(folder))}" if folder else ""
    try:
        yield
    except typer.Exit:
        raise
    except BrokenPipeError:  # the reader of a pipe (head) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except KeyboardInterrupt:
        complain(
            f"Stopped. Nothing that was committed is lost. Go on with:\n  {again}" if again else "Stopped."
        )
        raise typer.Exit(130) from None
    except Exception as error:  # the boundary: every error becomes a sentence and an exit status
        cause = getattr(error, "cause", None)
        shown = cause if isinstance(cause, SelfloopError) else error
        if debug:
            traceback.print_exc()
        if isinstance(shown, InputError):
            complain(f"Error: {shown}")
            raise typer.Exit(2) from None
        if isinstance(shown, NoSignalError):
            complain(f"Stopped: {shown}")
        elif isinstance(shown, RunLockedError):
            complain(f"Failed: {shown}")
        else:
            complain(failure(shown, folder, again))
        if isinstance(shown, ClusterError):
            sys.stdout.flush()
            os._exit(1)  # see ClusterError
        raise typer.Exit(1) from None


def failure(error: BaseException, folder: Path | None, again: str) -> str:
    """The message of a failed command; the traceback goes into the run folder, or beside it where nothing is left of a run."""
    if is_full(error) and not isinstance(error, SelfloopError):
        error = StoreError(unwritten(folder or getattr(error, "filename", None) or ".", "a file", error))
    lines = [f"Failed: {error}" if isinstance(error, SelfloopError) else f"Failed: {brief(error)}"]
    run = folder if folder is not None and (folder / "config.json").is_file() else None
    log = keep_traceback(run) if folder is not None else None
    lines.append(f"  traceback:   {log or 'run again with --debug'}")
    if run is not None:
        lines.append(f"  go on with:  {again}")
    elif folder is not None:
        lines.append(
            "  Nothing was committed, and what this command wrote is removed. Give the same command again."
        )
    return "\n".join(lines)


def keep_traceback(run: Path | None) -> Path | None:
    """Write the traceback into the run folder, or else into the folder for temporary files; where it is."""
    said = (traceback.format_exc() + "\n").encode()
    for place in (run, Path(tempfile.gettempdir())):
        if place is not None:
            log = place / ("error.log" if place == run else f"selfloop-{os.getpid()}-error.log")
            with suppress(OSError):
                append(log, said)
                return log
    return None


def brief(error: BaseException) -> str:
    """An unexpected error in a line or two: Ray's errors hold the traceback of the actor, whose last line counts."""
    text = COLOUR.sub("", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and (ours := OURS.match(lines[-1])):
        return ours["said"]
    shown = f"{lines[0]} … {lines[-1]}" if len(lines) > 2 else " ".join(lines)
    return f"{type(error).__name__}: {shown}"


def say(text: str) -> None:
    """Print at once, also into a pipe."""
    print(text, flush=True)


def complain(text: str) -> None:
    """Print to stderr."""
    print(text, file=sys.stderr, flush=True)
