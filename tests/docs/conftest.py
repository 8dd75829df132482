"""What pages and notebooks share when they run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import benchmarks.graded.base as graded
import ponder
from ponder.integrations.transformers import adapters


@pytest.fixture
def registries() -> Iterator[None]:
    """Names that a page or a notebook registers are gone after it."""
    tables: list[dict[str, Any]] = [
        ponder.policies.base.registry._factories,
        ponder.priors.base.registry._factories,
        ponder.objectives.base.registry._factories,
        ponder.recipes.base.registry._factories,
        adapters._factories,
        graded._TASKS,
    ]
    graded.names()  # reads them all: modules that are imported later, and taken out again, register nothing twice
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)
