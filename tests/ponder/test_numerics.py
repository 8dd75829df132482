"""Small numerical tools: roots against their closed forms, and the precision of statistics."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ponder._utils.bisection import bisect
from ponder._utils.numerics import at_least_float32


@given(st.floats(0.01, 1e6))
def test_bisection_finds_a_root_from_either_side(square: float) -> None:
    for holds, ends in ((lambda x: x**2 < square, (0.0, 2e3)), (lambda x: x**2 > square, (2e3, 0.0))):
        assert bisect(holds, *ends) == pytest.approx((math.sqrt(square), math.sqrt(square)), rel=1e-12)


def test_a_root_outside_is_the_nearer_end() -> None:
    assert bisect(lambda x: x < -5.0, 0.0, 1.0) == pytest.approx((0.0, 0.0))
    assert bisect(lambda x: x < 5.0, 0.0, 1.0) == pytest.approx((1.0, 1.0))


def test_statistics_are_in_float32_at_least() -> None:
    expected = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.long: torch.float32}
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.long):
        assert at_least_float32(torch.zeros(2, dtype=dtype)).dtype == expected.get(dtype, dtype)
