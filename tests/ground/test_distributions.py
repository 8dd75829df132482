"""The halting distribution at levels that a CDF equals, sums that are not one, and copies; its oracle is a matrix."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from ponder import StepDistribution
from ponder.errors import ArgumentError


def test_the_quantile_is_the_first_step_whose_cdf_reaches_the_level() -> None:
    halting = StepDistribution(torch.tensor([0.25, 0.5, 0.25]).log())
    assert halting.icdf(torch.tensor([0.0, 0.25, 0.26, 0.75, 1.0])).tolist() == [1, 1, 2, 2, 3]
    sure = StepDistribution(torch.tensor([0.0, 1.0, 0.0]).log())
    assert sure.icdf(torch.tensor([0.0, 0.5, 1.0])).tolist() == [1, 2, 2]


def test_masses_must_sum_to_one() -> None:
    with pytest.raises(
        ArgumentError, match=r"sums between 0.7 and 0.7. Normalise with log_softmax"
    ):
        StepDistribution(
            torch.tensor([0.5, 0.2]).log(), validate_args=True
        )  # torch.compile turns the default off


def test_copies_of_a_distribution_are_equal() -> None:
    halting = StepDistribution.from_hazard_logits(torch.randn(3, 4))
    _ = halting.pmf
    for twin in (copy.deepcopy(halting), pickle.loads(pickle.dumps(halting)), halting.expand((3,))):
        assert torch.equal(twin.log_pmf, halting.log_pmf)
        assert torch.equal(twin.pmf, halting.pmf)
