"""Gains: what going on is worth to each example, and what knows it."""

import pytest
import torch

from benchmarks.glue.diagnostics import gains
from ponder import Trajectory

STEPS = 4


def logits(probability):
    """Of two classes, where class 1 has this probability: (…, 2)."""
    return torch.stack([torch.zeros_like(probability), torch.logit(probability)], dim=-1)


def losses_that_fall_by(slopes):
    """A classifier whose loss on class 1 is 1 − slope · step, exactly on a line, and its labels."""
    steps = torch.arange(float(STEPS))
    wanted = 1.0 - slopes[:, None] * steps
    return logits((-wanted).exp()), torch.ones(len(slopes), dtype=torch.long)


def trajectory(outputs, labels, hazard=None, task="classification"):
    return Trajectory(outputs, hazard, torch.arange(len(labels)), labels=labels, task=task)


@pytest.fixture
def slopes():
    return torch.tensor([0.25, 0.1, 0.0, -0.2, 0.15])


def test_the_gain_is_the_slope_of_the_loss(slopes):
    found = gains(trajectory(*losses_that_fall_by(slopes)))
    assert found["mean"] == pytest.approx(slopes.mean().item(), abs=1e-5)
    assert found["deviation"] == pytest.approx(slopes.std().item(), abs=1e-5)
    assert found["halting"] is None


@pytest.mark.parametrize(("sign", "expected"), [(-1.0, 1.0), (1.0, -1.0)])
def test_a_head_that_knows_halts_late_where_there_is_much_to_gain(slopes, sign, expected):
    hazard = (sign * 4.0 * slopes)[:, None].expand(-1, STEPS)
    assert gains(trajectory(*losses_that_fall_by(slopes), hazard))["halting"] == expected


def test_a_head_that_treats_all_alike_knows_nothing(slopes):
    assert gains(trajectory(*losses_that_fall_by(slopes), torch.zeros(len(slopes), STEPS)))["halting"] is None


def test_being_unsure_is_ranked_at_every_step_but_the_last():
    # Right and surer with every step, from different starts: who is less sure at first has more to gain.
    start = torch.tensor([0.55, 0.65, 0.75, 0.85])
    probability = torch.stack([start + (0.95 - start) * step / (STEPS - 1) for step in range(STEPS)], dim=1)
    labels = torch.ones(4, dtype=torch.long)
    assert gains(trajectory(logits(probability), labels))["unsure"] == [1.0] * (STEPS - 1)


def test_regression_has_gains_and_no_classes_to_be_unsure_of(slopes):
    outputs = (1.0 - slopes[:, None] * torch.arange(float(STEPS))).clamp(min=0).sqrt()[..., None]
    found = gains(trajectory(outputs, torch.zeros(len(slopes)), task="regression"))
    assert found["mean"] == pytest.approx(slopes.mean().item(), abs=1e-5)
    assert found["unsure"] is None
