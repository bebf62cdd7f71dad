"""What each verb does to one batch. An op is a frozen, picklable description that knows how to run itself.

Both runtimes call the same ops: `op.run(tables, context)` takes one table an input and returns one table. Where it runs
is `op.place`: on an engine, on the trainer, on a CPU worker. Rows that fail become data (`status`); an op that breaks
raises.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pyarrow as pa

from selfloop.workflows.data.seeds import derive_seed
from selfloop.workflows.errors import RecipeError, SelfloopError
from selfloop.workflows.flow.asks import Engine, Scorer
from selfloop.workflows.store.keys import identity

if TYPE_CHECKING:
    from selfloop.workflows.models.codec import Codec

__all__ = ["PROMPT_COLUMNS", "Context", "Op", "Place", "apply", "call", "reads_of"]

Place = Literal["driver", "engine", "trainer", "worker"]
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
    """Base of all ops. `reads`: columns its inputs must have. `columns`: what its rows have afterwards."""

    verb: ClassVar[str] = ""
    place: ClassVar[Place] = "worker"
    barrier: ClassVar[bool] = False

    @property
    def reads(self) -> frozenset[str]:
        return frozenset()

    def columns(self, inputs: Sequence[frozenset[str]]) -> frozenset[str]:
        return inputs[0]

    @property
    def settings(self) -> dict[str, Any]:
        """The filled-in settings, for content keys and `check`."""
        return {item.name: identity(getattr(self, item.name)) for item in fields(self)}

    async def run(self, tables: Sequence[pa.Table], context: Context) -> pa.Table:
        raise NotImplementedError


def reads_of(rule: Any) -> frozenset[str]:
    """The columns without which a rule could not choose, as it declares them in `reads`."""
    return frozenset(getattr(rule, "reads", ()))


def apply(function: Callable[..., Any], context: Context, group: str, *args: Any) -> list[Any]:
    """What a recipe's function gives for a prompt group, as a list."""

    def listed() -> list[Any]:
        result = function(*args)
        return [] if result is None else [result] if isinstance(result, dict) else list(result)

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
