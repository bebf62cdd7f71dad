"""Log-probs of the start come from the first step's forward, and last for the epochs after it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfloop.actors.train.collectives import Collectives
from selfloop.actors.train.rows.examples import Examples, examples_of
from selfloop.actors.train.rows.micro import Micro, columns_of, dummy, micro_of
from selfloop.actors.train.start import StartScores
from selfloop.workflows.objectives.policy_gradient import GRPO
from tests.unit.train.trainer_rows import response_rows

OLD, REFERENCE = ("response", "old_logprobs"), ("response", "reference_logprobs")


@pytest.fixture
def examples() -> Examples:
    """Rows whose first step was left out of the pass: zeros there, ones elsewhere."""
    found = examples_of(response_rows(), GRPO(beta=0.1))
    view = found.views["response"]
    values = np.ones(len(view.targets), np.float32)
    values[: view.row_targets()[2]] = 0
    found.values |= {OLD: values, REFERENCE: values}
    return found


def forward(examples: Examples, *rows: int) -> tuple[Micro, torch.Tensor]:
    micro = micro_of(examples.views, np.array(rows))
    return micro, -2 - torch.arange(len(micro.targets), dtype=torch.float32, requires_grad=True)


def test_the_first_step_reads_its_own_forward_without_gradient(examples: Examples):
    start = StartScores(examples, Collectives(0, 1), [OLD, REFERENCE], again=True)
    micro, outputs = forward(examples, 0, 1)
    columns = start.columns(micro, outputs)
    assert set(columns) == {"response.old_logprobs", "response.reference_logprobs"}
    for column in columns.values():
        assert not column.requires_grad
        assert torch.equal(column, micro.spread(outputs.detach(), "response"))
    start.close()
    assert start.columns(micro, outputs) == {}


def test_later_epochs_read_what_it_gave_once(examples: Examples):
    """In micro-batches of any order, under both names; a step after it changes nothing."""
    start = StartScores(examples, Collectives(0, 1), [OLD, REFERENCE], again=True)
    forwards = [forward(examples, 1), forward(examples, 0)]
    for micro, outputs in forwards:
        start.note(micro, outputs)
    start.note(dummy(), torch.zeros(1))
    start.close()
    start.note(*forwards[0])
    start.close()
    for micro, outputs in forwards:
        columns = columns_of(examples, micro)
        for _, name in (OLD, REFERENCE):
            assert torch.equal(columns[f"response.{name}"], micro.spread(outputs.detach(), "response"))
    others = examples.values[OLD][examples.views["response"].row_targets()[2] :]
    assert (others == 1).all()


def test_nothing_is_kept_where_no_epoch_follows(examples: Examples):
    before = examples.values[OLD].copy()
    start = StartScores(examples, Collectives(0, 1), [OLD], again=False)
    start.note(*forward(examples, 0, 1))
    start.close()
    assert np.array_equal(examples.values[OLD], before)
