"""What each verb does to one batch. An op is a frozen, picklable description that knows how to run itself.

Both runtimes call the same ops: `op.run(tables, context)` takes one table an input and returns one table. Where it runs
is `op.place`: on an engine, on the trainer, on a CPU worker. Rows that fail become data (`status`); an op that breaks
raises.

**A new verb** is one file in this folder and one method of `Stream`. The file holds a frozen dataclass of `Op` with

    verb     its name in graphs and content keys
    reads    the columns without which it cannot run: the lint asks
    writes   the columns it adds (or `columns`, where it does not keep its input's)
    run      the work, on one batch of whole prompt groups

and, where the default does not say it: `place` and `wants` (a model), `barrier` (the whole stream at once), `takes` (more
streams than one), `responds`, `opens`, `passes`, `numbers` and `final` (what its rows are), `phrase` (the screen's words),
`tell`, `shows` and `became` (what `selfloop why` says), `rows` (the estimate of `check`), `failed` (a row that ends its
actor), `metrics`. Lint, provenance, both runtimes, screen, `why` and the picture of the graph ask for nothing else. Its
fields are in its content key. The method of Stream is one line: `return self.add(Shout(column), name=name)`, with `model=` where
a model takes part and further streams in between where it `takes` them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pyarrow as pa

from selfloop.workflows.data.seeds import derive_seed
from selfloop.workflows.errors import RecipeError, SelfloopError
from selfloop.workflows.flow.asks import Engine, Scorer
from selfloop.workflows.flow.telling import Seen, Told, by_place, named, same_rows
from selfloop.workflows.store.keys import identity

if TYPE_CHECKING:
    from selfloop.workflows.models.codec import Codec

__all__ = ["PROMPT_COLUMNS", "Context", "Op", "Place", "apply", "call", "reads_of"]

Place = Literal["driver", "engine", "trainer", "worker"]
Takes = Literal["first", "all", "in turn"]
"""Whose rows become an op's: its first input's, with one more input handed whole to each batch; those of all inputs, batch k
with batch k; those of one input after the other."""
Wants = Literal["", "words", "logprobs", "values", "rewards"]
Shows = Literal["", "verdict", "pair", "text", "value", "changes"]
"""What `why` shows of its rows (of responses their text): nothing, verdicts, both sides, a text that is another now, the columns
that it writes, or whatever is not as it was."""
PROMPT_COLUMNS = frozenset({"prompt_id", "prompt", "answer", "meta", "parent"})


@dataclass
class Context:
    """What an op is given beside its tables."""

    node: str
    iteration: int
    seed: int
    model: str = ""  # role@version
    version: int = 0
    folder: str = ""  # checkpoint of the model
    engine: Engine | None = None
    codec: Codec | None = None
    scorer: Scorer | None = None
    pauses: tuple[float, ...] = (
        0.0,
        0.2,
        1.0,
    )  # seconds before each time that rows are judged whose judge broke

    def draw(self, *parts: object) -> random.Random:
        """A generator that depends only on the run, the iteration, the node and these parts."""
        return random.Random(derive_seed(self.seed, self.iteration, self.node, *parts))


@dataclass(frozen=True)
class Op:
    """Base of all ops: what everybody else may ask of one. The module says which of it a new verb writes."""

    verb: ClassVar[str] = ""
    place: ClassVar[Place] = "worker"
    barrier: ClassVar[bool] = False  # it is given whole streams, once they have ended
    takes: ClassVar[Takes] = "first"
    responds: ClassVar[bool] = False  # its rows are responses of its own
    opens: ClassVar[bool] = False  # its rows may open prompts that its input does not have
    passes: ClassVar[bool] = False  # its rows are those of its inputs, as they are
    numbers: ClassVar[bool] = False  # its rows are named numbers (name, value) for metrics.jsonl
    final: ClassVar[bool] = False  # nobody in the graph has to read its rows
    fails: ClassVar[bool] = False  # it can give rows that end their actor as failed ones, by `failed`
    phrase: ClassVar[str] = ""  # what it does, in the screen's words
    shows: ClassVar[Shows] = "changes"
    metrics: ClassVar[
        tuple[str, ...]
    ] = ()  # of its counts, those told: tokens, truncated, stripped, verdicts

    @property
    def reads(self) -> frozenset[str]:
        """Columns its input must have."""
        return frozenset()

    @property
    def writes(self) -> frozenset[str]:
        """Columns that come from it."""
        return frozenset()

    def columns(self, inputs: Sequence[frozenset[str]]) -> frozenset[str]:
        """The columns its rows have, from those of its inputs."""
        return inputs[0] | self.writes

    @property
    def wants(self) -> Wants:
        """What it asks of its model, if anything."""
        return "words" if self.place == "engine" else ""

    @property
    def cuts(self) -> bool:
        """Whether its batches hold other prompts than those of its inputs."""
        return self.barrier

    @property
    def sees_answer(self) -> bool:
        """Whether it may read the gold answer."""
        return "answer" in self.reads

    @property
    def settings(self) -> dict[str, Any]:
        """The filled-in settings, for content keys and `check`."""
        return {item.name: identity(getattr(self, item.name)) for item in fields(self)}

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        raise NotImplementedError

    def failed(self, table: pa.Table, context: Context, error: str) -> pa.Table:
        """The failed rows that stand for those of a batch that ended its actor (asked where it `fails`)."""
        raise NotImplementedError

    def author(self, model: str, version: int | None) -> tuple[str, int | None]:
        """(model, version) that its responses name, asked where it `responds`; given those of the node's model."""
        return model, version

    def rows(self, n: int, groups: int) -> int:
        """How many rows it makes of n at most, in so many prompt groups."""
        return n

    def tell(self, told: Told) -> Iterator[str]:
        """What it did to the rows of a prompt, in lines."""
        function = getattr(self, "function", None)
        left = "" if told.rows or told.opened or not told.complete else ": nothing of it is left"
        yield (f"{self.verb} by {named(function)}" if function else self.verb) + left

    def became(self, before: list[Seen], among: Callable[[], list[Seen]], group: list[Seen]) -> list[Seen]:
        """The rows of a prompt group that `before` became; `before` are some of the group `among` of its first input."""
        return by_place(before, among(), group) if self.responds else same_rows(before, group)


def reads_of(rule: Any) -> frozenset[str]:
    """The columns without which a rule could not choose, as it declares them in `reads`."""
    return frozenset(getattr(rule, "reads", ()))


def apply(function: Callable[..., Any], context: Context, group: str, *args: Any) -> list[Any]:
    """What a recipe's function gives for a prompt group, as a list."""

    def listed() -> list[Any]:
        result = function(*args)
        return [] if result is None else [result] if isinstance(result, Mapping) else list(result)

    return call(listed, context, group, named=function)


def call(function: Callable[..., Any], context: Context, group: str, *args: Any, named: Any = None) -> Any:
    """What a recipe's function gives; what it raises becomes one typed error."""
    try:
        return function(*args)
    except SelfloopError:
        raise
    except Exception as error:  # the recipe's own code: it may raise anything
        function = named or function
        name = getattr(function, "__qualname__", type(function).__qualname__)
        raise RecipeError(
            f"node {context.node!r}: {name} raised {type(error).__name__}: {error} on prompt {group} (iteration "
            f"{context.iteration}). The rows before it are committed: mend {name} and resume the run"
        ) from error
