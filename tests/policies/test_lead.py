"""`Lead` and `StandardError` against plain Python, and the lead that cannot be overtaken."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from ponder import policies
from ponder.calibration import Moved, Record, control_risk
from ponder.errors import ArgumentError

ROWS, MEMBERS, CLASSES = 60, 11, 3
VOTES = np.random.default_rng(0).integers(0, CLASSES, size=(ROWS, MEMBERS))
VOTES[::3, 3:] = 1


def exit_of_votes(votes: list[int], threshold: float) -> set[int]:
    """Return the steps at which a row may exit; several if rounding decides."""
    exits = set[int]()
    for taken in range(1, len(votes)):
        counts = sorted((votes[:taken].count(c) for c in range(CLASSES)), reverse=True)
        ahead = counts[0] - counts[1]
        z = ahead / taken * math.sqrt(taken / (1 - taken / len(votes)))
        if ahead > len(votes) - taken or z > threshold + 1e-6:
            return exits | {taken}
        if z > threshold - 1e-6:
            exits.add(taken)
    return exits | {len(votes)}


@pytest.mark.parametrize("threshold", [0.0, 0.7, 1.0, 1.5, 2.5, float(MEMBERS)])
def test_lead_exits_as_plain_python(threshold: float) -> None:
    exits = Record.from_votes(VOTES).exit_steps(policies.Lead(threshold))
    for votes, exit_step in zip(VOTES.tolist(), exits.tolist(), strict=True):
        assert exit_step in exit_of_votes(votes, threshold)


@pytest.mark.parametrize("members", [4, 5, 7])
def test_a_settled_lead_is_never_overtaken(members: int) -> None:
    votes = np.array(list(itertools.product(range(2), repeat=members)))
    record = Record.from_votes(votes)
    exits = record.exit_steps(policies.Lead(members))
    assert record.agreement()[np.arange(len(votes)), exits - 1].all()
    assert exits.mean() < members


def test_shares_of_blocks_are_those_of_their_members() -> None:
    record = Record.from_votes(VOTES, block=4)
    assert record.num_steps == 3
    for step, taken in enumerate((4, 8, 11)):
        counts = np.stack([(VOTES[:, :taken] == c).sum(1) for c in range(CLASSES)], axis=1)
        np.testing.assert_allclose(
            np.exp(record.outputs[:, step]), np.maximum(counts / taken, 1e-9), rtol=1e-12
        )


def test_standard_errors_are_those_of_numpy() -> None:
    values = np.random.default_rng(1).normal(size=(20, 6))
    record = Record.from_values(values)
    assert record.features is not None
    for taken in range(2, 7):
        expected = values[:, :taken].std(axis=1, ddof=1) / math.sqrt(taken)
        np.testing.assert_allclose(record.features[:, taken - 1, 0], expected, rtol=1e-9)
        np.testing.assert_allclose(record.outputs[:, taken - 1, 0], values[:, :taken].mean(axis=1))
    exits = record.exit_steps(policies.StandardError(0.3))
    for row, exit_step in zip(values, exits.tolist(), strict=True):
        for taken in range(2, exit_step):
            error = row[:taken].std(ddof=1) * math.sqrt((1 - taken / 6) / taken)
            assert error > 0.3 - 1e-9


def test_numbers_that_moved_are_the_loss() -> None:
    record = Record.from_values([[1.0, 1.0, 4.0, 2.0]] * 3)  # means 1, 1, 2, 2
    assert Moved(0.5).losses(record)[0].tolist() == [1.0, 1.0, 0.0, 0.0]
    found = control_risk(record, policies.StandardError, risk=Moved(0.5), level=0.5)
    assert not found.met


@pytest.mark.parametrize("votes", [[[0.5, 1.0]], [[-1, 0]], [0, 1], np.zeros((0, 3), dtype=int)])
def test_votes_that_are_no_class_numbers_are_refused(votes: object) -> None:
    with pytest.raises(ArgumentError, match="votes"):
        Record.from_votes(votes)
