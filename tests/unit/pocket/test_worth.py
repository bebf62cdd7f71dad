"""One iteration of a plain loop: votes improve the base, broken loops do not (docs/pocket.md has the whole curves)."""

from __future__ import annotations

import pytest

from selfloop.workflows.pocket.make.worth import Settings, curve
from selfloop.workflows.pocket.source import POCKET_MODEL

SHORT = Settings(prompts=384, iterations=1, heldout=192, lr=2e-4)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("signal", "least", "most"),
    [("majority", 0.06, 0.4), ("shuffled", -0.3, 0.04), ("reversed", -0.5, -0.03), ("unpublished", 0.0, 0.0)],
)
def test_only_a_working_loop_improves(signal: str, least: float, most: float) -> None:
    (before, _), (after, _) = curve(POCKET_MODEL, signal, SHORT)
    assert least <= after - before <= most
