"""What must stay as it is while a run goes on: the device it began on, and the rows of its sources."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from selfloop.workflows.run.setup import Setup
from selfloop.workflows.store.folder import RunFolder

if TYPE_CHECKING:
    from selfloop.actors.generate.spec import EngineSpec
    from selfloop.actors.train.spec import TrainerSpec

__all__ = ["changed_data", "keep_resolved", "refuse_changed_data", "take_data"]


def keep_resolved(folder: RunFolder, engine: EngineSpec, trainer: TrainerSpec) -> None:
    """Keep in config.json what was found out about this machine when the run began."""
    if "resolved" not in folder.record():
        folder.note(
            resolved={
                "device": engine.device,
                "generator.dtype": engine.dtype,
                "trainer.dtype": trainer.dtype,
            }
        )


def changed_data(setup: Setup, folder: RunFolder) -> str | None:
    """The sentence for sources whose rows are others than those the run has worked with; None for a run without one that
    goes on."""
    held = folder.record().get("data")
    if not held or not folder.committed() or folder.completed() >= setup.config.iterations:
        return None
    now = setup.contents
    told = [told_of(setup, name, held.get(name), now.get(name)) for name in {**held, **now}
            if held.get(name) != now.get(name)]  # fmt: skip
    if not told:
        return None
    return (
        f"the data changed under the run {folder.path}: {'; '.join(told)}. What it has made so far was made with the rows "
        "before. Put them back, start another run (--run-dir), or add --yes to go on with the rows of now; an "
        "iteration that is not complete then begins again"
    )


def told_of(setup: Setup, name: str, held: dict[str, Any] | None, now: dict[str, Any] | None) -> str:
    config = setup.config
    spec = config.data.get(name, config.prompts)
    source = (config.prompts.heldout_source or spec.source) if name == "heldout" else spec.source
    had, has = (one["rows"] if one else 0 for one in (held, now))
    what = (
        f"had {had} rows and has {has} now"
        if had != has
        else f"has {has} rows as before, with other contents"
    )
    return f"{name} ({source}) {what}"


def take_data(setup: Setup, folder: RunFolder) -> None:
    """Keep in config.json what the run works with. An iteration that was begun on other rows begins again."""
    held = folder.record().get("data")
    if held == setup.contents:
        return
    if changed_data(setup, folder):
        index = folder.completed() + 1
        shutil.rmtree(folder.iteration(index), ignore_errors=True)
        folder.event("data", was=held, now=setup.contents, iteration=index)
    folder.note(data=setup.contents)


def refuse_changed_data(setup: Setup, folder: RunFolder, agreed: bool) -> list[str]:
    """The problem, unless the user has agreed."""
    sentence = None if agreed else changed_data(setup, folder)
    return [sentence] if sentence else []
