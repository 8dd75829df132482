"""What all tests share: one thread, a fixed seed, and property tests that draw the same examples every time."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
os.environ["MPLBACKEND"] = "Agg"  # figures open no windows
settings.register_profile(
    "ponder",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("ponder")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
