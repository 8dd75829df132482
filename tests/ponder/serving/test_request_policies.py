"""What a request may ask of a policy."""

from __future__ import annotations

import pytest

from ponder import policies
from ponder.serving.request_policies import with_threshold
from tests.ponder.checks import refused


@pytest.mark.parametrize(("value", "remedy"), [(0.9, 1), (2.4, 2), (7.5, 6)])
def test_a_remedy_for_whole_numbers_is_one_of_them(value: float, remedy: int) -> None:
    fixed = policies.FixedStep(4)
    with refused("threshold", str(value), f"Pass threshold={remedy}."):
        with_threshold(fixed, value, num_steps=6, width=3)
    assert with_threshold(fixed, float(remedy), num_steps=6, width=3) == policies.FixedStep(remedy)
    with refused("threshold", "7"):
        with_threshold(fixed, 7.0, num_steps=6, width=3)
