"""How a command ends: every error becomes a sentence and an exit status, a signal a clean stop."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import typer

from selfloop.workflows.errors import InputError, NoSignalError, SelfloopError

__all__ = ["complain", "outcomes", "stopped_by_signal"]


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
        complain(f"Stopped: {shown}" if isinstance(shown, NoSignalError) else failure(shown, folder, again))
        raise typer.Exit(1) from None


def failure(error: BaseException, folder: Path | None, again: str) -> str:
    """The message of a failed command; the traceback goes into the run folder."""
    lines = [f"Failed: {error}" if isinstance(error, SelfloopError) else f"Failed: {brief(error)}"]
    if folder is not None and folder.is_dir():
        log = folder / "error.log"
        try:
            with open(log, "a", encoding="utf-8") as file:
                file.write(traceback.format_exc() + "\n")
            lines.append(f"  traceback:   {log}")
        except OSError:
            lines.append("  traceback:   run again with --debug")
        lines.append(f"  go on with:  {again}")
    else:
        lines.append("  traceback:   run again with --debug")
    return "\n".join(lines)


def brief(error: BaseException) -> str:
    """An unexpected error in a line or two: Ray's errors hold the traceback of the actor, whose last line counts."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{lines[0]} … {lines[-1]}" if len(lines) > 2 else " ".join(lines)
    return f"{type(error).__name__}: {text}"


def complain(text: str) -> None:
    """Print to stderr."""
    print(text, file=sys.stderr, flush=True)
