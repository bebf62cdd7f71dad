"""Every exception Selfloop raises on purpose. Each message says what was found, why it is wrong, and the way out.

All of them pickle (they cross Ray), because each is built from one string.

    SelfloopError
        InputError
        ClusterError
        EngineError
        JudgeError
        RecipeError
        SandboxError
        ObjectiveError
        TrainerError
            NoSignalError
        WeightsError
        StoreError
            RunLockedError
        FailedRowsError
"""

from __future__ import annotations

import difflib
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "ClusterError",
    "EngineError",
    "FailedRowsError",
    "InputError",
    "JudgeError",
    "NoSignalError",
    "ObjectiveError",
    "RecipeError",
    "RunLockedError",
    "SandboxError",
    "SelfloopError",
    "StoreError",
    "TrainerError",
    "WeightsError",
    "blamed",
    "nearest",
]


class SelfloopError(Exception):
    """Base class: `str(error)` is the whole message shown to the user."""


class InputError(SelfloopError):
    """Bad input found before anything expensive started: a config, a data file, a model folder. Exit status 2."""

    @classmethod
    def of(cls, problems: list[str]) -> InputError:
        """One error for several mistakes, so that the user mends them all at once."""
        if len(problems) == 1:
            return cls(problems[0])
        lines = "\n".join(f"  {number}. {text}" for number, text in enumerate(problems, 1))
        return cls(f"{len(problems)} problems were found:\n{lines}")


class ClusterError(SelfloopError):
    """Ray itself ended under a run. Its own way of ending would wait for what is gone: the process should just end."""


class EngineError(SelfloopError):
    """The generation engine broke (not one bad row: that is data)."""


class JudgeError(SelfloopError):
    """A judge broke its contract, for example by answering for other rows than it was given."""


class RecipeError(SelfloopError):
    """A rule or function that a recipe handed to a verb raised."""


class SandboxError(SelfloopError):
    """Generated code cannot be run safely here."""


class ObjectiveError(SelfloopError):
    """A batch that an objective cannot take: a missing column, a mask without a token, a value that is not finite."""


class TrainerError(SelfloopError):
    """Training broke: a loss that is not finite, rows of weights that were not asked for, a rank that died."""


class NoSignalError(TrainerError):
    """Iteration after iteration held nothing to train on, so the run ends here; resumed it would end here again."""


class WeightsError(SelfloopError):
    """An engine does not serve the weights that were published: the receipt or the probe disagrees."""


class StoreError(SelfloopError):
    """The run folder cannot be read or written, or belongs to something else."""


class RunLockedError(StoreError):
    """Another driver is working on this run folder."""


class FailedRowsError(SelfloopError):
    """More rows failed than `max_failed_rows` allows."""


def blamed(error: BaseException) -> str:
    """ " (FILE, line N)": the innermost place in code that is neither Selfloop's engine nor installed; empty without one."""
    engine, library = Path(__file__).resolve().parent, sysconfig.get_paths()
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).exists()]
    for frame in reversed(places):
        path = Path(frame.filename).resolve()
        ours = path.is_relative_to(engine) and "recipes" not in path.parts
        if not ours and not any(
            path.is_relative_to(library[name]) for name in ("stdlib", "purelib", "platlib")
        ):
            return f" ({frame.filename}, line {frame.lineno})"
    return ""


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known word that is most like a wrong one, for the way out; None if none is like it."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)), None)
