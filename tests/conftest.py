"""What all tests share: one thread, a fixed seed, and property tests that draw the same examples every time."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import slipcover.pytest_plugin
from hypothesis import HealthCheck, settings

# Slipcover 1.1 on Python 3.11 writes the code anew of what it has counted, which costs more here than to count on; and
# it does not hand its option for that, `--threshold`, to the workers of pytest-xdist.
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


@pytest.fixture(autouse=True)
def _seeded() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """What was compiled before and during a test is forgotten."""
    import torch

    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


LONG = (  # whole files that take tens of seconds: they start first, so that no worker is left with one at the end
    "tests/ponder/export/",
    "tests/integrations/transformers/test_encoder_exports.py",
    "tests/benchmarks/test_glue_sweep_kills.py",
    "tests/packaging/",
    "tests/ponder/streaming/test_stream_soak.py",
    "tests/docs/test_notebooks.py",
    "tests/benchmarks/test_glue_run.py",
    "tests/benchmarks/test_glue_sweep.py",
    "tests/benchmarks/test_glue_report.py",
)
TOGETHER = {  # the first export of a process takes seconds more, as the first of any code does; and there is one wheel
    "tests/ponder/export/": "exports",
    "tests/integrations/transformers/test_encoder_exports.py": "exports",
    "tests/integrations/transformers/test_serving_folders.py": "exports",
    "tests/benchmarks/test_quantised.py": "exports",
    "tests/benchmarks/test_finetuned_benchmark.py": "exports",
    "tests/benchmarks/test_speed_sections.py": "exports",
    "tests/ponder/cli/test_export_command.py": "exports",
    "tests/benchmarks/test_glue_sweep_kills.py": "forks",
    "tests/benchmarks/test_glue_sweep_parallel.py": "forks",
    "tests/integrations/transformers/test_several_processes.py": "forks",
    "tests/ponder/test_data_parallel.py": "forks",
    "tests/test_killed_saves.py": "forks",
    "tests/packaging/": "wheel",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest starts first."""
    items.sort(key=lambda item: next((n for n, start in enumerate(LONG) if item.nodeid.startswith(start)), len(LONG)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of a file share a worker, and with it what they have made; so do those of a group.

    Trap: groups of pytest-xdist 3.8 are parts of names, which pytest 9.2 no longer reads. Without a word each test is
    dealt out by itself, and every worker makes everything.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return next((group for start, group in TOGETHER.items() if path.startswith(start)), path)

    return ByFile(config, log)


def pytest_collection_finish() -> None:
    import torch  # the process that hands out the tests does without, and all others wait for it

    torch.set_num_threads(1)
    for device in (torch.cuda, torch.mtia, torch.xpu):  # PyTorch would note for each where every seed was set
        if not device.is_available():
            device.manual_seed_all = lambda seed: None
    # What is loaded by now stays. Trainers and exporters collect garbage, and would look through all of it each time;
    # trainers, to give devices their memory back.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
    if (memory := sys.modules.get("accelerate.utils.memory")) is not None:
        memory.clear_device_cache = lambda garbage_collection=False: None  # type: ignore[attr-defined]
    # Pytest hangs its handlers on each logger that tells its parents nothing, six times a test; PyTorch has dozens.
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("torch") and isinstance(logger, logging.Logger):
            logger.propagate = True
