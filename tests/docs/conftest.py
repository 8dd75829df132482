"""What pages and notebooks share when they run."""

from __future__ import annotations

import copy
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ponder import objectives, policies, priors, recipes


@pytest.fixture
def namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Names of an empty `__main__` in an empty folder, in which pickle and dataclasses look for classes of a page."""
    monkeypatch.chdir(tmp_path)
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    registries: list[Any] = [
        policies.registry,
        priors.registry,
        objectives.registry,
        recipes.registry,
    ]
    before = [copy.copy(registry._factories) for registry in registries]
    yield vars(main)
    for registry, factories in zip(registries, before, strict=True):
        registry._factories = factories
