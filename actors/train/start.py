"""Log-probs under the weights that a training starts from, without a pass over the rows of its first step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from selfloop.actors.train.collectives import Collectives
from selfloop.actors.train.rows.examples import Examples
from selfloop.actors.train.rows.micro import Micro
from selfloop.actors.train.scores import TokenScores

__all__ = ["StartScores"]


class StartScores:
    """The first step's own forward is still under these weights, so it gives the log-probs of the start for its rows:
    `columns` takes them from it, `note` and `close` keep them for the epochs to come.

    reads: (view, name) of the values that are such log-probs; zero for the first step's rows until `close`. again: an epoch
    to come reads these rows once more.
    """

    def __init__(
        self, examples: Examples, collectives: Collectives, reads: Sequence[tuple[str, str]], again: bool
    ):
        self.values = examples.values
        self.collectives = collectives
        self.reads = reads
        self.kept = TokenScores({view: examples.views[view] for view, _ in reads}) if again else None

    def columns(self, micro: Micro, outputs: Tensor) -> dict[str, Tensor]:
        """`VIEW.NAME` -> (rows, tokens) of a micro-batch of the first step; nothing after it."""
        return {f"{view}.{name}": micro.spread(outputs.detach(), view) for view, name in self.reads}

    def note(self, micro: Micro, outputs: Tensor) -> None:
        """Keep what the first step's forward gave."""
        if self.kept is not None:
            self.kept.put(micro, outputs.detach())

    def close(self) -> None:
        """The first step is done on all ranks, and the weights are others now."""
        if self.kept is not None:
            found = self.kept.total(self.collectives)
            for view, name in self.reads:
                self.values[view, name] = self.values[view, name] + found[view]
        self.reads, self.kept = (), None
