"""Small numerical tools: roots of many functions at once, against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ponder._utils.numerics import at_least_float32, bisect


@given(st.lists(st.floats(0.01, 1e6), min_size=1, max_size=5))
def test_bisection_finds_each_root(squares: list[float]) -> None:
    wanted = torch.tensor(squares, dtype=torch.float64)
    found = bisect(lambda x: x**2 < wanted, torch.zeros_like(wanted), torch.full_like(wanted, 2e3))
    assert found.tolist() == pytest.approx([math.sqrt(square) for square in squares], rel=1e-12)


def test_a_root_outside_is_the_nearer_end() -> None:
    low, high = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0])
    found = bisect(lambda x: x < torch.tensor([-5.0, 5.0]), low, high)
    assert found.tolist() == pytest.approx([0.0, 1.0])


def test_statistics_are_in_float32_at_least() -> None:
    expected = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.long: torch.float32}
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.long):
        assert at_least_float32(torch.zeros(2, dtype=dtype)).dtype == expected.get(dtype, dtype)
