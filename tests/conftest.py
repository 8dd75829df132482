"""What all tests share: one thread, a fixed seed, and property tests that draw the same examples every time."""

from __future__ import annotations

import gc
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


LONG = (  # whole files that take tens of seconds: they start first, so that no worker is left with one at the end
    "tests/benchmarks/test_glue_sweep_kills.py",
    "tests/ponder/export/",
    "tests/integrations/transformers/test_encoder_exports.py",
    "tests/ponder/streaming/test_stream_soak.py",
    "docs/notebooks/",
    "tests/packaging/",
    "tests/benchmarks/test_glue_run.py",
    "tests/benchmarks/test_glue_sweep.py",
    "tests/benchmarks/test_glue_report.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The tests of a file share a worker, and with it what they have made; so do those of exports, and of the wheel."""
    items.sort(key=lambda item: next((n for n, start in enumerate(LONG) if item.nodeid.startswith(start)), len(LONG)))
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            path = item.nodeid.partition("::")[0]
            group = next((start for start in LONG if path.startswith(start) and start.endswith("/")), path)
            item.add_marker(pytest.mark.xdist_group(path if group == "docs/notebooks/" else group))


def pytest_collection_finish() -> None:
    # What is loaded by now stays. Trainers and exporters collect garbage, and would look through all of it each time.
    gc.collect()
    gc.freeze()
