"""What all tests share: one thread, a fixed seed, and property tests that draw the same examples every time."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import slipcover.pytest_plugin
from hypothesis import HealthCheck, settings

from tests.unaligned import move_weights_if_asked

# Slipcover on Python 3.11 rewrites the code of lines that it has counted, which costs more here
# than counting on.
if (counter := getattr(slipcover.pytest_plugin, "_slipcover_instance", None)) is not None:
    counter.d_miss_threshold = 10**9

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
move_weights_if_asked()


@pytest.fixture(autouse=True)
def _seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    torch.manual_seed(0)
    # The coins of audits come from the operating system, and would fall otherwise in every run.
    monkeypatch.setattr(random, "SystemRandom", lambda: random.Random(0))


@pytest.fixture(scope="module", autouse=True)
def _what_stays_is_not_looked_at_again() -> Iterator[None]:
    """Every training collects garbage, which takes a third of a second among the modules of a hundred encoders."""
    yield
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of a file share a worker, and with it what they have made."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid.partition("::")[0]

    return ByFile(config, log)


def pytest_collection_finish() -> None:
    import torch  # the process that hands out the tests does without, and all others wait for it
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    ONNXRegistry.from_torchlib = staticmethod(
        cache(ONNXRegistry.from_torchlib)
    )  # else read anew for every graph
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
