"""What `selfloop why` says of each node that a row came to: who made it, how it was judged, what was decided."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from selfloop.workflows.data.seeds import derive_seed
from selfloop.workflows.flow.graph import ModelRef, Training
from selfloop.workflows.flow.telling import Told, counted, named, number
from selfloop.workflows.flow.verbs.judge import JudgeOp
from selfloop.workflows.judges.base import PromptJudge
from selfloop.workflows.report.text import clean
from selfloop.workflows.report.why.page import Page, words
from selfloop.workflows.report.why.past import Past, Row
from selfloop.workflows.report.why.trail import Step

__all__ = ["tell"]

LONGEST = 400  # characters of one line of a model's own words in the short form
ENDED = {"stop": "ended by itself", "length": "cut at max_tokens", "error": "failed"}


def tell(page: Page, past: Past, step: Step, full: bool) -> None:
    """One node: what it did, and what that meant for each of the rows."""
    node, entry = step.node, past.entry(step.iteration, step.node.name) or {}
    if node.training is not None:
        tell_training(page, past, step, node.training, entry)
        return
    assert node.op is not None
    lines = list(node.op.tell(told_of(past, step)))
    page.put(node.name, lines[0] if lines else node.verb)
    if entry.get("reused"):
        page.put("", f"taken over from the run {entry['reused']}")
    for line in lines[1:]:
        page.put("", line)
    if not node.given:
        tell_rows(page, past, step, full)
    if step.opened:
        names = list(dict.fromkeys(row["prompt_id"] for row in step.opened))
        page.put("", f"new prompts were made from it: {', '.join(names[:8])}{' …' * (len(names) > 8)}")
    if not step.complete:
        page.put("", "(this node is not complete yet)")


def told_of(past: Past, step: Step) -> Told:
    """A step as ops are told of it."""
    node, config = step.node, past.setup.config

    def origin(source: str) -> str:
        spec = config.data.get(source, config.prompts)
        return spec.heldout_source or spec.source if source == "heldout" else spec.source

    return Told(
        node.name,
        node.inputs,
        node.model.name if node.model else "",
        step.before,
        step.rows,
        step.group,
        step.opened,
        step.complete,
        node.evaluation,
        origin,
    )


# What it meant for each row


def tell_rows(page: Page, past: Past, step: Step, full: bool) -> None:
    """The rows themselves: in the short form a line each, in the full form all that the node added."""
    op = step.node.op
    assert op is not None
    for row in step.rows:
        if op.responds:
            tell_response(page, step, row, full)
        elif isinstance(op, JudgeOp):
            tell_verdict(page, past, step, op, row, full)
        elif op.shows == "pair":
            tell_sides(page, step, row)
        elif op.shows == "text" and row.get("edited"):
            page.put("", f"sample {row['sample']} reads now:")
            page.quote(row["response"])
        elif op.shows == "value":
            for name in sorted(name for name in op.writes if not name.endswith("_state")):
                page.put("", f"{tag(row)}: {short(row[name])}")
        elif op.shows == "changes":
            tell_changes(page, step, row)


def tell_response(page: Page, step: Step, row: Row, full: bool) -> None:
    """A response: its seed, how it ended, its log-prob, its text."""
    if row.get("status") == "failed":
        page.put("", f"sample {row['sample']} failed: {clean(row['error'] or '')}")
        return
    logprobs, text = row["response_logprobs"], row["response"] or ""
    facts = [f"seed {row['seed']}"] if row.get("seed") is not None else []
    facts += [ENDED.get(row["finish"] or "", "end not known"), f"{len(row['response_ids'] or ())} tokens"]
    facts += [f"log-prob {sum(logprobs):.3f}"] if logprobs else []
    page.put("", f"sample {row['sample']}: {', '.join(facts)}")
    shown = getattr(step.node.op, "show", None)
    if full and shown is not None:
        page.put("", "it was shown:", indent=16)
        page.quote(rebuilt(shown, given_to(step, row)), indent=18)
        page.put("", "and wrote:", indent=16)
    page.quote(text if full else text[:LONGEST])


def given_to(step: Step, row: Row) -> Row:
    """The row that a response was made from: each has as many responses, in the order of the rows."""
    each = max(1, len(step.rows) // max(1, len(step.before)))
    return step.before[min(step.rows.index(row) // each, len(step.before) - 1)] if step.before else row


def tell_verdict(page: Page, past: Past, step: Step, op: JudgeOp, row: Row, full: bool) -> None:
    """A verdict with its state; in the full form the judge's prompt and each judgement in the judge's own words."""
    state, single = row[f"{op.column}_state"], row[f"{op.column}_judgements"] or []
    verdict = (
        f"{row[op.column]:.4g}"
        if state == "score"
        else {"abstain": "no verdict could be read"}.get(state, state)
    )
    read = sum(one["state"] == "score" for one in single)
    of = f" (mean of {read} read of {len(single)})" if len(single) > 1 else ""
    page.put("", f"{tag(row)}: {op.column} {verdict}{of}")
    if not full:
        return
    if isinstance(op.judge, PromptJudge):
        page.put("", "the judge was asked:", indent=16)
        page.quote(rebuilt(op.judge.messages, row), indent=18)
    for place, one in enumerate(single):
        seed = judge_seed(past, step, op, row, place)
        score = f"{one['score']:.4g}" if one["score"] is not None else one["state"]
        if one["text"]:
            page.put("", f"judgement {place + 1}{seed}: {score}, in its words:", indent=16)
            page.quote(one["text"], indent=18)
        elif one["state"] != state or one["score"] != row[op.column]:
            page.put("", f"judgement {place + 1}{seed}: {score}", indent=16)


def judge_seed(past: Past, step: Step, op: JudgeOp, row: Row, vote: int) -> str:
    """The seed of a sampled judgement, derived again as the run derived it."""
    if not isinstance(op.judge, PromptJudge) or op.judge.labels:
        return ""
    parts = (step.iteration, step.node.name, row["prompt_id"], row.get("sample"), vote)
    return f" (seed {derive_seed(past.setup.config.seed, *parts)})"


def tell_sides(page: Page, step: Step, row: Row) -> None:
    """A pair: which side the row is, against what."""
    own = {one["sample"] for one in step.before}
    for side, other in (("chosen", "rejected"), ("rejected", "chosen")):
        if row[f"{side}_sample"] not in own:
            continue
        values = [row.get(f"{one}_score") for one in (side, other)]
        scores = f" ({values[0]:.4g} against {values[1]:.4g})" if None not in values else ""
        more = "".join(
            f", {name} {row[name]:.4g}" for name in ("weight", "margin") if row.get(name) is not None
        )
        page.put(
            "", f"sample {row[f'{side}_sample']} {side} against sample {row[f'{other}_sample']}{scores}{more}"
        )
        page.quote(words(row[side]))
        page.put("", f"{other}:", indent=16)
        page.quote(words(row[other]))
        return


def tell_changes(page: Page, step: Step, row: Row) -> None:
    """The columns that a function changed or added."""
    if not step.before:
        page.put("", f"it opened this prompt, made from {row.get('parent')}")
        return
    before = next((one for one in step.before if one.get("sample") == row.get("sample")), step.before[0])
    for name, value in row.items():
        if (name not in before or before[name] != value) and not name.endswith("_ids"):
            page.put("", f"{tag(row)}: {name} = {short(value)}")


def tell_training(page: Page, past: Past, step: Step, training: Training, entry: Mapping[str, Any]) -> None:
    """What was learned from the rows, and what that made."""
    rows = counted(step.before, "pair" if any("chosen_ids" in row for row in step.before) else "row")
    if not entry:
        page.put(step.node.name, f"not trained on yet: {rows} to be learned from")
        return
    if entry.get("idle"):
        page.put(
            step.node.name,
            f"not trained: {rows}, and every term of {named(training.objective)} is 0 on all rows",
        )
        return
    reference = f", reference {training.reference.name}" if training.reference else ""
    number_of_all = past.trained_rows(step.iteration, step.node)
    of = f" of {number_of_all}" if number_of_all is not None else ""
    page.put(
        step.node.name,
        f"learned from: {rows}{of}, {named(training.objective)}, from {training.start.name}{reference}, "
        f"{training.optimizer} optimizer, {training.epochs:g} epoch(s), {entry['steps']} step(s)",
    )
    made = ModelRef(training.role, step.iteration)
    kept = any(model.node == step.node.name for model in past.graph(step.iteration).outputs.values())
    thrown = "" if kept else " (used in this iteration only)"
    page.put("", f"-> {made.name}{thrown}, checksum {entry['model']['checksum']}")


# Words


def rebuilt(function: Callable[[Row], Iterable[Mapping[str, str]]], row: Row) -> str:
    """Messages made again from a stored row by the same code that made them during the run."""
    try:
        return words(function(row))
    except Exception as error:  # a recipe's own code, on rows that another version of it may have written
        return f"(cannot be made again from the stored row: {type(error).__name__}: {error})"


def tag(row: Row) -> str:
    return (
        f"{'pair' if 'chosen_ids' in row else 'sample'} {row['sample']}" if "sample" in row else "the prompt"
    )


def short(value: Any) -> str:
    """A value of a column in a line."""
    if isinstance(value, list) and value and all(isinstance(one, float) for one in value):
        return f"{sum(value):.4g} in all, over {len(value)} tokens"
    text = clean(words(value) if is_messages(value) else number(value))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "content" in value[0]
