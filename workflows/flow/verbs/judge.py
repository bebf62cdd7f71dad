"""The `judge` verb: verdicts with three states. A score, an abstention (nothing could be read) or a failure (the judge
broke); a missing verdict is never a zero."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import pyarrow as pa

from selfloop.workflows.data.rows import Row, groups, with_column
from selfloop.workflows.data.schema import COLUMNS
from selfloop.workflows.data.seeds import derive_seed
from selfloop.workflows.errors import JudgeError
from selfloop.workflows.flow.telling import Told
from selfloop.workflows.flow.telling import named as said
from selfloop.workflows.flow.verbs.base import Context, Op, Place, Shows
from selfloop.workflows.flow.verbs.responses import encode
from selfloop.workflows.judges.base import GroupJudge, Judge, PromptJudge, Verdict, Verifier
from selfloop.workflows.judges.verifiers import FunctionVerifier

__all__ = ["JudgeBy", "JudgeOp", "JudgeRule"]

T = TypeVar("T")
Judged = tuple[Verdict, list[Verdict]]  # the verdict, and the single judgements behind it


def add_verdicts(table: pa.Table, column: str, judged: dict[int, Judged]) -> pa.Table:
    """Append a verdict's three columns. Rows without one (failed rows) get a failed verdict."""
    missing: Judged = (Verdict(None, "failed", "the row itself failed"), [])
    verdicts = [judged.get(index, missing) for index in range(table.num_rows)]
    values: dict[str, list[Any]] = {
        "score": [verdict.score for verdict, _ in verdicts],
        "score_state": [verdict.state for verdict, _ in verdicts],
        "score_judgements": [[one._asdict() for one in single] for _, single in verdicts],
    }
    for name, data in values.items():
        table = with_column(table, name.replace("score", column, 1), pa.array(data, COLUMNS[name][0]))
    return table


@dataclass(frozen=True)
class JudgeOp(Op):
    """What both kinds of judge share."""

    verb: ClassVar[str] = "judge"
    phrase: ClassVar[str] = "answers are judged"
    shows: ClassVar[Shows] = "verdict"
    metrics: ClassVar[tuple[str, ...]] = ("verdicts",)
    judge: Judge
    column: str = "score"

    @property
    def reads(self) -> frozenset[str]:
        return self.judge.needs | {"prompt_id"}

    @property
    def writes(self) -> frozenset[str]:
        return frozenset(f"{self.column}{end}" for end in ("", "_state", "_judgements"))

    @property
    def sees_answer(self) -> bool:
        return "answer" in self.reads or self.judge.sees_answer

    def tell(self, told: Told) -> Iterator[str]:
        yield f"judged by the rule {said(self.judge)}"


@dataclass(frozen=True)
class JudgeRule(JudgeOp):
    """A verifier (row by row) or a group judge (votes), on CPU workers. What breaks is asked again, then a failed verdict."""

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        judged: dict[int, Judged] = {}
        left = [rows for _, rows in groups(tables[0])]
        for pause in context.pauses:
            await asyncio.sleep(pause if left else 0)
            broken: list[list[Row]] = []
            for rows in left:
                found = list(zip(rows, self.verdicts(rows), strict=True))
                judged |= {row.index: (verdict, [verdict]) for row, verdict in found}
                broken.append([row for row, verdict in found if verdict.state == "failed"])
            left = [rows for rows in broken if rows]
        return add_verdicts(tables[0], self.column, judged)

    def verdicts(self, rows: list[Row]) -> list[Verdict]:
        """One verdict a row. A verifier that raises fails that row; a group judge that raises fails its group."""
        if isinstance(self.judge, Verifier):
            return [self.one(row) for row in rows]
        assert isinstance(self.judge, GroupJudge)
        try:
            scores = list(self.judge.verify_group(rows)) if rows else []
        except Exception as error:  # user code: whatever it raises is a failed verdict, counted, never a zero
            return [raised(self.judge, error)] * len(rows)
        if len(scores) != len(rows):
            name = type(self.judge).__name__
            raise JudgeError(
                f"{name} gave {len(scores)} verdicts for {len(rows)} responses of a prompt; it must give one each"
            )
        return [verdict_of(score, "", self.judge) for score in scores]

    def one(self, row: Row) -> Verdict:
        assert isinstance(self.judge, Verifier)
        try:
            return verdict_of(self.judge.verify(row), "", self.judge)
        except Exception as error:  # as above
            return raised(self.judge, error)


def raised(judge: Judge, error: Exception) -> Verdict:
    """The verdict of a judge that raised."""
    return Verdict(None, "failed", f"{type(error).__name__}: {error} in {named(judge)}")


def named(judge: Judge) -> str:
    """A judge in a message: a user's function as the config names it, else the class."""
    return judge.path if isinstance(judge, FunctionVerifier) else type(judge).__name__


def failure(error: str) -> Judged:
    """The verdict of a row that could not be judged: its only judgement says why."""
    verdict = Verdict(None, "failed", error)
    return verdict, [verdict]


def parsed(parse: Callable[[T], float | None], said: T, text: str, judge: Judge | None = None) -> Verdict:
    """What a judge's words (or label log-probs) mean; text: as it is shown. A parser that raises is broken: the same words
    would break it again."""
    try:
        return verdict_of(parse(said), text, judge)
    except Exception as error:  # as above
        return Verdict(None, "failed", f"{type(error).__name__}: {error}, of: {text}")


def verdict_of(score: float | None, text: str = "", judge: Judge | None = None) -> Verdict:
    """A score or an abstention; failed where the score is not finite or outside the range that its judge declares."""
    if score is None:
        return Verdict(None, "abstain", text)
    lowest, highest = (judge.score_range if judge else None) or (-math.inf, math.inf)
    try:
        value = float(score)
        shown = f"{value:g}"
    except (TypeError, ValueError, OverflowError):  # user code gives what it likes
        value, shown = math.nan, repr(score)[:40]
    if math.isfinite(value) and lowest <= value <= highest:
        return Verdict(value, "score", text)
    allowed = f"outside its range {lowest:g} to {highest:g}" if math.isfinite(value) else "no finite number"
    by, of = f" in {named(judge)}" if judge else "", f", of: {text}" if text else ""
    return Verdict(None, "failed", f"score {shown} is {allowed}{by}{of}")


@dataclass(frozen=True)
class JudgeBy(JudgeOp):
    """A language model as judge, on an engine: `votes` judgements a response, the valid ones aggregated."""

    place: ClassVar[Place] = "engine"
    fails: ClassVar[bool] = True
    votes: int = 1

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        assert isinstance(self.judge, PromptJudge) and context.codec is not None
        rows = [row for _, group in groups(tables[0]) for row in group]
        encoded = [encode(context.codec, self.judge.messages(row)) for row in rows]
        able = [place for place, (_, error) in enumerate(encoded) if error is None]
        prompts = [encoded[place][0] for place in able]
        ask = self.by_labels if self.judge.labels else self.by_text
        judgements = await ask([rows[place] for place in able], prompts, context)
        judged = {row.index: failure(error) for row, (_, error) in zip(rows, encoded, strict=True) if error}
        for place, single in zip(able, judgements, strict=True):
            judged[rows[place].index] = (self.combine(single), single)
        return add_verdicts(tables[0], self.column, judged)

    def failed(self, table: pa.Table, context: Context, error: str) -> pa.Table:
        """The verdicts of rows that could not be judged at all."""
        return add_verdicts(table, self.column, dict.fromkeys(range(table.num_rows), failure(error)))

    def tell(self, told: Told) -> Iterator[str]:
        judge, votes = self.judge, f", {self.votes} judgements each" if self.votes > 1 else ""
        assert isinstance(judge, PromptJudge)
        how = f"temperature {judge.temperature:g}, top_p {judge.top_p:g}, at most {judge.max_tokens} tokens"
        read = f"by the log-probs of {', '.join(judge.labels)}" if judge.labels else how
        yield f"judged by {told.model} with {said(judge)}{votes}: {read}"

    def combine(self, single: list[Verdict]) -> Verdict:
        """The aggregate of the valid judgements; failed only if every one of them failed."""
        assert isinstance(self.judge, PromptJudge)
        scores = [verdict.score for verdict in single if verdict.score is not None]
        if scores:
            return verdict_of(self.judge.aggregate(scores), "", self.judge)
        failed = all(verdict.state == "failed" for verdict in single)
        return Verdict(None, "failed" if failed else "abstain", single[0].text if single else "")

    async def by_text(
        self, rows: list[Row], prompts: list[list[int]], context: Context
    ) -> list[list[Verdict]]:
        from selfloop.workflows.flow.asks import Ask, SamplingParams

        judge = self.judge
        assert isinstance(judge, PromptJudge) and context.engine is not None and context.codec is not None
        params = SamplingParams(judge.temperature, judge.top_p, max_tokens=judge.max_tokens)
        asks = [
            Ask(
                ids,
                derive_seed(
                    context.seed, context.iteration, context.node, row["prompt_id"], row.get("sample"), vote
                ),
                params,
            )
            for row, ids in zip(rows, prompts, strict=True)
            for vote in range(self.votes)
        ]
        replies = await context.engine.sample(asks)
        texts = context.codec.decode([reply.ids for reply in replies])
        verdicts = [
            Verdict(None, "failed", reply.error or "")
            if reply.finish == "error"
            else parsed(judge.parse, text, text, judge)
            for reply, text in zip(replies, texts, strict=True)
        ]
        return [verdicts[start : start + self.votes] for start in range(0, len(verdicts), self.votes)]

    async def by_labels(
        self, rows: list[Row], prompts: list[list[int]], context: Context
    ) -> list[list[Verdict]]:
        judge = self.judge
        assert isinstance(judge, PromptJudge) and context.engine is not None and context.codec is not None
        labels = [context.codec.token(label) for label in judge.labels]
        values = await context.engine.label_logprobs(prompts, labels)
        return [[self.label_verdict(judge, logprobs)] for logprobs in values]

    @staticmethod
    def label_verdict(judge: PromptJudge, logprobs: Sequence[float]) -> Verdict:
        if not logprobs:
            return Verdict(None, "failed", "the judge's prompt does not fit the model")
        text = " ".join(f"{name}:{value:.3f}" for name, value in zip(judge.labels, logprobs, strict=True))
        return parsed(judge.parse_labels, logprobs, text, judge)
