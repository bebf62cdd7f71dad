"""What may change in a run that goes on: how much works on it, not what it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from selfloop.workflows.errors import InputError

__all__ = [
    "FREE",
    "NOTED",
    "Changes",
    "changes",
    "differences",
    "kept_gpus",
    "made_under",
    "unconfirmed",
]

FREE = (
    "generator.replicas", "generator.gpus", "generator.memory", "generator.max_num_seqs", "generator.patience",
    "trainer.gpus", "trainer.checkpoint_steps", "trainer.gradient_checkpointing", "placement", "batch_size",
    "max_failed_rows", "probe_limit", "checkpoints.keep", "trackers", "reuse",
)  # fmt: skip
"""Keys that change neither rows nor weights."""

NOTED = (
    "generator.threads", "trainer.threads", "trainer.ranks", "trainer.zero", "trainer.tokens_per_micro_batch",
)  # fmt: skip
"""Keys that leave the mathematics as it is, and change the order of its sums: the last bits may differ."""

LONG = 100  # characters of a value that messages show
MADE = tuple(dict.fromkeys(key.partition(".")[2] for key in NOTED))


def made_under(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of an actor's settings, those that a run may change with a note: manifests say under which a node was made."""
    return {name: settings[name] for name in MADE if name in settings}


def kept_gpus(device: str | None, gpus: int) -> int:
    """Of the GPUs here, those that a run which began on `device` may use. Raises InputError where it needs one."""
    if device == "cuda" and not gpus:
        raise InputError(
            "the run began on GPU (config.json, resolved), and no GPU is here now: on CPU, in other precision, its numbers would "
            "not match. Resume it where there are GPUs, or start another run from its last policy (model=RUN/iteration=…/policy)"
        )
    return 0 if device == "cpu" else gpus


@dataclass(frozen=True)
class Changes:
    """Lines `key was … and is now …`: what keeps a run from going on, what may change bytes from here on, and the rest."""

    refused: list[str] = field(default_factory=list)
    noted: list[str] = field(default_factory=list)
    free: list[str] = field(default_factory=list)

    @property
    def refusal(self) -> str:
        """Why the run cannot go on so, with what it could go on with."""
        these = "this" if len(self.refused) == 1 else "these"
        return (
            f"{'; '.join(self.refused)}. Choose another --run-dir, set {these} back, or give `selfloop run … --again`, which "
            "renames the earlier run aside. A run that goes on may change iterations (to more) and "
            f"{', '.join(FREE)}; and, with bytes that may differ from there on, {', '.join(NOTED)}"
        )


def changes(held: dict[str, Any], config: dict[str, Any]) -> Changes:
    """How a run of `held` differs from `config`, by what that means for going on. More iterations extend it."""
    found = Changes()
    for key, (old, new) in pairs(held, config).items():
        more = key == "iterations" and isinstance(old, int) and isinstance(new, int) and new > old
        kind = found.free if more or key in FREE else found.noted if key in NOTED else found.refused
        kind.append(line(key, old, new))
    return found


def unconfirmed(held: dict[str, Any], config: dict[str, Any]) -> str | None:
    """What the user must say yes to before a run of `held` goes on with `config`: more iterations than its learning rate
    was planned over."""
    before, now = held.get("iterations", 0), config.get("iterations", 0)
    if now <= before or config.get("trainer", {}).get("schedule", {}).get("over") != "run":
        return None
    return (
        f"the learning rate of this run follows one curve over its iterations (trainer.schedule.over=run), planned over "
        f"{before} and now to be over {now}: what is trained stays as it is, and iteration {before + 1} would begin at "
        f"{100 * before / now:.0f} % of the new curve. Add --yes if that is meant, or start another run with "
        f"iterations={now} (reuse=<this run> takes the rows that still match)"
    )


def differences(old: Any, new: Any) -> list[str]:
    """Where two configs differ, as `key was … and is now …`."""
    return [line(key, *values) for key, values in pairs(old, new).items()]


def line(key: str, old: Any, new: Any) -> str:
    return f"{key} was {in_short(old)} and is now {in_short(new)}"


def in_short(value: Any) -> str:
    """A value in a sentence: of a long one (a chat template) the beginning, and a hash to tell it from others."""
    text = json.dumps(value)
    if len(text) <= LONG:
        return text
    return f"{text[:LONG]}… ({len(text):,} characters, hash {hashlib.sha256(text.encode()).hexdigest()[:8]})"


def pairs(old: Any, new: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """The values of both by the keys in which they differ."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return {} if old == new else {path: (old, new)}
    found: dict[str, tuple[Any, Any]] = {}
    for key in [*old, *(key for key in new if key not in old)]:
        found |= pairs(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    return found
