"""A trainer that trains nothing, for tests, debugging and the executor's benchmark (engine: fake)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from selfloop.actors.train.telling import Told
from selfloop.actors.weights.folder import folder_tensors
from selfloop.actors.weights.receipt import checksum, receipt_of
from selfloop.workflows.errors import TrainerError

if TYPE_CHECKING:
    from torch import Tensor

    from selfloop.actors.train.spec import TrainResult, TrainWork

__all__ = ["FakeTrainer"]


class FakeTrainer:
    """The new checkpoint is a copy of the start. It refuses what the real trainer refuses.

    `works` keeps what it was given, for tests to look at.
    """

    tell: Callable[[Told], None] = staticmethod(lambda told: None)

    def __init__(self, model: str):
        self.folder = model
        self.works: list[TrainWork] = []

    def train(self, work: TrainWork) -> TrainResult:
        from selfloop.actors.train.spec import TrainResult

        self.works.append(work)
        if work.table.num_rows == 0:
            raise TrainerError(
                f"there is nothing to train {work.role}@{work.version} on: the node before it kept no row"
            )
        needed = [f"{view}_ids" for view in work.objective.views] + list(work.objective.columns)
        missing = [name for name in needed if name not in work.table.column_names]
        if missing:
            raise TrainerError(f"the rows for {type(work.objective).__name__} lack {', '.join(missing)}")
        shutil.copytree(work.start, work.out, dirs_exist_ok=True)
        if work.state_out:
            Path(work.state_out).mkdir(parents=True, exist_ok=True)
        self.folder = work.out
        receipt, _ = self.weights()
        return TrainResult(work.version, checksum(receipt), receipt, 1, {"loss": 0.0}, [])

    def logprobs(
        self, folder: str | None, contexts: list[list[int]], targets: list[list[int]]
    ) -> list[list[float]]:
        return [[-1.0] * len(ids) for ids in targets]

    def rewards(self, folder: str, contexts: list[list[int]], targets: list[list[int]]) -> list[float]:
        """A number in [0, 1) that depends on the tokens of a row."""
        return [sum(head + tail) * 37 % 101 / 101 for head, tail in zip(contexts, targets, strict=True)]

    def values(self, folder: str, contexts: list[list[int]], targets: list[list[int]]) -> list[list[float]]:
        return [[token % 7 / 7 for token in ids] for ids in targets]

    def weights(self) -> tuple[dict[str, str], Iterator[tuple[str, Tensor]]]:
        """Receipt and tensors of the folder last made."""
        return receipt_of(folder_tensors(self.folder, "float32")), folder_tensors(self.folder, "float32")
