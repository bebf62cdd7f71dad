"""`selfloop why`: where a row or a version comes from, step by step, back to the prompt and the initial model."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from selfloop.workflows.errors import InputError
from selfloop.workflows.flow.graph import ModelRef, Node
from selfloop.workflows.flow.telling import named, settings_of
from selfloop.workflows.recipes import find_method
from selfloop.workflows.report.text import clean
from selfloop.workflows.report.why.page import Page, words
from selfloop.workflows.report.why.past import Made, Past, Row
from selfloop.workflows.report.why.tell import tell
from selfloop.workflows.report.why.trail import Ask, Step, find, follow
from selfloop.workflows.run.setup import Setup, open_config
from selfloop.workflows.store.folder import RunFolder

__all__ = ["explain", "why"]

EXAMPLES = 3
OUTLINE = (
    "prompt_id",
    "prompt",
    "response",
    "model",
    "chosen",
    "rejected",
    "chosen_version",
    "rejected_version",
)
VERSION = re.compile(r"(?:([A-Za-z_][\w-]*)@)?(\d{1,5})")
UNTOLD = ("step", "steps", "examples", "tokens_per_s", "prepare_s", "train_s", "save_s", "resumed_at_step")


def why(run: str | Path, what: str, width: int = 80) -> str:
    """The chain behind a version (`3`, `policy@3`) or a row (`PROMPT[/NODE][/SAMPLE][@ITERATION]`), as text."""
    folder, config = open_config(run)
    if find_method(config.recipe) is None:
        raise InputError(
            f"{folder} is a run of the recipe {config.recipe!r}, which this Selfloop does not have, so its graph is not known. "
            "Ask the Selfloop that made it"
        )
    return explain(Past(RunFolder(folder), Setup(config)), what, width)


def explain(past: Past, what: str, width: int = 80) -> str:
    """The same of a run that is opened already. Raises InputError for what the run does not hold."""
    page = Page(width)
    match = VERSION.fullmatch(what)
    roles = roles_of(past) if match else set[str]()
    if match and (match[1] is None or match[1] in roles):
        tell_version(page, past, ModelRef(match[1] or "policy", int(match[2])))
    elif match and not re.fullmatch(r"[0-9a-f]{6,}", match[1] or ""):
        raise InputError(f"the run has no role {match[1]!r}: it has {', '.join(sorted(roles))}")
    else:
        tell_row(page, past, find(past, Ask.parse(what)))
    return "\n".join(page.lines)


def roles_of(past: Past) -> set[str]:
    """Every role that a graph of the run makes."""
    trainings = (node.training for index in past.iterations for node in past.graph(index))
    return {"policy"} | {training.role for training in trainings if training is not None}


# A row


def tell_row(page: Page, past: Past, ask: Ask) -> None:
    """The prompt, every node that the rows came to, and the weights that had a part in it."""
    steps = follow(past, ask)
    rows = [row for step in steps for row in step.rows]
    page.title(f"{ask} of {past.folder.path}")
    page.put("prompt", "")
    page.quote(words(rows[0]["prompt"]), indent=14)
    notes = {"answer": "", "meta": "", "parent": ": it was made from this prompt; ask why of it"}
    for name, note in notes.items():
        values = [row[name] for row in rows if row.get(name) is not None]
        if values:
            page.put(name, f"{clean(values[0])}{note}")
    full = ask.sample is not None or most(steps) == 1
    before = None
    for step in steps:
        if step.iteration != before:
            page.title(f"Iteration {step.iteration}")
            before = step.iteration
        tell(page, past, step, full)
    page.title("Weights")
    tell_weights(page, past, [(model, step.iteration) for step in steps for model in step.node.models])
    if not full:
        page.title("One sample in full, with judge prompts and judgements:")
        page.lines.append(f"  selfloop why {quoted(past)} {Ask(ask.prompt, ask.node, 0, ask.iteration)}")


def quoted(past: Past) -> str:
    """The run folder as a shell takes it."""
    return shlex.quote(str(past.folder.path))


def most(steps: Iterable[Step]) -> int:
    """The most rows that are followed at a node."""
    return max(len(step.rows) for step in steps)


def tell_weights(page: Page, past: Past, used: Iterable[tuple[ModelRef, int]]) -> None:
    """Each model once, the newest first, with what made it, back to the initial model."""
    waiting, told = list(used), dict[str, tuple[int, str]]()
    while waiting:
        model, iteration = waiting.pop()
        made = past.made(model, iteration)
        if model.name in told or made is None:
            continue
        told[model.name] = (model.version, origin_of(past, model, made))
        training = made.node.training if made.node else None
        if training is not None:
            waiting.append((training.start, made.iteration))
    for name, (_, text) in sorted(told.items(), key=lambda item: -item[1][0]):
        page.put(name, text)


def origin_of(past: Past, model: ModelRef, made: Made) -> str:
    """One line of a chain of weights."""
    if made.node is None:
        return f"the initial model, {past.setup.config.model}"
    assert made.node.training is not None
    entry = past.entry(made.iteration, made.node.name)
    if entry is None:
        return f"not made yet: {made.node.name!r} of iteration {made.iteration} has not ended"
    carried = f"is {model.role}@{made.iteration}, carried over; " if made.iteration < model.version else ""
    rows = past.trained_rows(made.iteration, made.node)
    learned = f"{rows} rows of" if rows is not None else "the rows of"
    return (f"{carried}checksum {entry['model']['checksum']}: {made.node.name!r} of iteration {made.iteration} made it from "
            f"{made.node.training.start.name} with {learned} {made.node.inputs[0]!r}")  # fmt: skip


# A version


def tell_version(page: Page, past: Past, model: ModelRef) -> None:
    """The checkpoint, how and on what it was trained, and the versions before it."""
    for made in makers(past, model):
        page.title(f"{model.name} of {past.folder.path}")
        if made.node is None:
            page.put("checkpoint", f"the initial model, {past.setup.config.model}; nothing was trained")
            return
        tell_checkpoint(page, past, model, made, made.node)
        tell_trained_rows(page, past, made, made.node)
        page.title("Weights")
        tell_weights(
            page, past, [(one, made.iteration) for one in made.node.models] + [(model, made.iteration)]
        )


def makers(past: Past, model: ModelRef) -> list[Made]:
    """What made a version: the train node whose model the iteration ended in, or those whose models it threw away."""
    last = max((index for index in past.iterations), default=0)
    there = model.version <= last
    thrown = [Made(model.version, node) for node in past.graph(model.version)
              if node.training is not None and node.training.role == model.role] if there else []  # fmt: skip
    made = past.made(model, model.version) if there else None
    found = [made] if made is not None and (made.node is not None or model.version == 0) else thrown
    if there and not found and made is not None:
        found = [made]  # carried over from the initial model
    if not found or any(one.node and past.entry(one.iteration, one.node.name) is None for one in found):
        versions = [index for index in past.iterations if past.manifest(index)["complete"]]
        held = f"{model.role}@0 to {model.role}@{max(versions)}" if versions else "none yet"
        raise InputError(f"{model.name} does not exist: the run has {held}. Name one of these")
    return found


def tell_checkpoint(page: Page, past: Past, model: ModelRef, made: Made, node: Node) -> None:
    training, entry = node.training, past.entry(made.iteration, node.name)
    assert training is not None and entry is not None
    folder, keep = past.checkpoint(made), past.setup.config.checkpoints.keep
    why_gone = f", checkpoints.keep is {keep}" if keep else ""
    page.put(
        "checkpoint", str(folder) if folder else f"its folder is gone ({entry['model']['folder']}{why_gone})"
    )
    page.put(
        "checksum", f"{entry['model']['checksum']}, of the hashes of {len(entry['model']['receipt'])} tensors"
    )
    if made.iteration < model.version:
        page.put("carried over", f"it is {model.role}@{made.iteration}: later iterations left it as it was")
    page.put("made by", f"{node.name!r} of iteration {made.iteration}")
    if entry.get("reused"):
        page.put("", f"taken over from the run {entry['reused']}")
    page.put("objective", named(training.objective, everything=True))
    page.put("start", training.start.name)
    page.put("reference", training.reference.name if training.reference else "none")
    for name, teacher in training.frozen:
        page.put(name, f"{teacher.name}, frozen")
    trainer = past.setup.config.trainer
    lora = f", LoRA of rank {trainer.lora.rank}" if trainer.lora else ""
    lr, size = training.lr or trainer.lr, training.batch_size or trainer.batch_size
    page.put("settings", f"{training.optimizer} optimizer, learning rate {lr:g}, {size} examples a step, {training.epochs:g} "
             f"epoch(s), {entry['steps']} step(s), {trainer.ranks} rank(s), ZeRO {trainer.zero}{lora}")  # fmt: skip
    metrics = {name: value for name, value in entry.get("metrics", {}).items() if name not in UNTOLD}
    if metrics:
        page.put("metrics", settings_of(metrics))


def tell_trained_rows(page: Page, past: Past, made: Made, node: Node) -> None:
    """The rows trained on: how many, from which iterations and weights, and a few of them to ask further about."""
    (source,) = node.inputs
    entry = past.entry(made.iteration, source)
    page.title(
        f"Rows it was trained on: {entry['rows']} of {source!r}" if entry else "Rows it was trained on"
    )
    for iteration, name in past.origins(made.iteration, source):
        rows = past.read(iteration, name, OUTLINE)
        page.put("", f"{len(rows)} of {name!r} of iteration {iteration}: {writers(rows)}", indent=2, hang=2)
        for row in examples(rows):
            page.lines.append(f"    selfloop why {quoted(past)} {row['prompt_id']}@{iteration}")
            page.put("", outline(row), indent=6, hang=2)


def writers(rows: list[Row]) -> str:
    """Who wrote the responses, counted."""
    found: Counter[str] = Counter()
    for row in rows:
        if "chosen" in row:
            sides = (f"{side} by {weights(row.get(f'{side}_version'))}" for side in ("chosen", "rejected"))
            found[", ".join(sides)] += 1
        else:
            found[f"written by {row.get('model')}"] += 1
    return "; ".join(f"{count} {text}" for text, count in sorted(found.items()))


def weights(version: Any) -> str:
    return "no weights (a source)" if version is None else f"version {version}"


def examples(rows: list[Row]) -> list[Row]:
    """The first rows of the first prompts."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row["prompt_id"], row)
    return list(first.values())[:EXAMPLES]


def outline(row: Row) -> str:
    """A row in a line: prompt and response, or both sides of a pair."""
    prompt = words(row["prompt"][-1:])
    said = (
        f"{words(row['chosen'])} > {words(row['rejected'])}" if "chosen" in row else str(row.get("response"))
    )
    return f"{clean(prompt)[:60]} -> {clean(said)[:60]}"
