"""Converged: fixed points of answers and of features, and what it refuses. The contracts run over it as well."""

from __future__ import annotations

import math

import pytest
import torch

import ponder
from ponder import policies
from tests.ponder.checks import refused


def trajectory(outputs, features=None, task="classification"):
    outputs = torch.as_tensor(outputs)
    return ponder.Trajectory(outputs, None, torch.arange(len(outputs)), features, task=task)


def norm(vector):
    return math.sqrt(math.fsum(x * x for x in vector))


@pytest.mark.parametrize("tolerance", [0.05, 0.3])
@pytest.mark.parametrize("patience", [1, 2, 3])
def test_features_against_a_plain_loop(tolerance, patience):
    generator = torch.Generator().manual_seed(patience)
    moves = torch.randn(40, 12, 5, generator=generator, dtype=torch.float64)
    features = (moves * 0.6 ** torch.arange(12).view(1, 12, 1)).cumsum(1)  # settles, each row at a pace of its own
    outputs = torch.zeros(40, 12, 2)
    exits = trajectory(outputs, features).replay(policies.Converged(tolerance, patience, on="features"))
    expected = []
    for row in features.tolist():
        count, left = 0, 12
        for n in range(2, 13):
            now, before = row[n - 1], row[n - 2]
            still = norm([a - b for a, b in zip(now, before, strict=True)]) <= tolerance * norm(now)
            count = count + 1 if still else 0
            if count >= patience:
                left = n
                break
        expected.append(left)
    assert exits.exit_step.tolist() == expected
    assert len(set(expected)) > 2


def test_features_that_are_zero_rest():
    features = torch.zeros(2, 4, 3)
    features[1] = torch.tensor([1.0, 2.0, 4.0, 8.0]).view(4, 1)
    exits = trajectory(torch.zeros(2, 4, 2), features).replay(policies.Converged(0.1, on="features"))
    assert exits.exit_step.tolist() == [2, 4]


def test_every_position_must_rest():
    """Token-level outputs halt per sequence: one position that still changes keeps the row."""
    answers = torch.tensor([[[0, 0], [0, 1], [0, 1], [0, 1]], [[0, 0], [0, 1], [0, 0], [0, 1]]])
    outputs = torch.nn.functional.one_hot(answers, 3).float()
    exits = trajectory(outputs, task="token_classification").replay(policies.Converged(patience=1))
    assert exits.exit_step.tolist() == [3, 4]
    half = trajectory(outputs, task="token_classification").replay(policies.Converged(0.5, patience=1))
    assert half.exit_step.tolist() == [2, 2]


def test_what_it_cannot_serve():
    two = trajectory(torch.zeros(1, 2, 3))
    with refused("patience", "2 steps"):
        two.replay(policies.Converged(patience=2))
    with refused("tolerance", "regression"):
        trajectory(torch.zeros(1, 4, 1), task="regression").replay(policies.Converged())
    with refused("policy", "features"):
        two.replay(policies.Converged(on="features"))
    for arguments in ({"tolerance": -0.1}, {"patience": 0}, {"patience": 1.5}, {"on": "hazards"}):
        with refused(next(iter(arguments))):
            policies.Converged(**arguments)
