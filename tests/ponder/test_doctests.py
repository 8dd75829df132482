"""Every example of a docstring runs and prints what it says, with the names at hand that the reference announces."""

from __future__ import annotations

import copy
import doctest
import importlib
import os
import pkgutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest
import torch

import ponder
import ponder.integrations
from tests.docs.shown_code import run_page
from tests.ponder.test_imports import MODULES
from tests.quick_exports import make_exports_quick

DOCS = Path(__file__).resolve().parents[2] / "docs"
OF_PARTNERS = sorted(name for _, name, _ in pkgutil.walk_packages(ponder.integrations.__path__, "ponder.integrations."))
EVERY = ["ponder", *MODULES, *OF_PARTNERS]
SET_UP = {
    "ponder.export": "api-deploy.md",
    "ponder.serving": "api-deploy.md",
    "ponder.integrations": "api-transformers.md",
}
"""Pages of the reference whose code the examples of a package begin with, after that of `api.md`."""


@pytest.fixture(scope="module", autouse=True)
def _in_an_empty_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    make_exports_quick()
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("examples"))
    yield
    os.chdir(before)


def names_on(page: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    torch.manual_seed(0)
    run_page(DOCS / page, page, namespace)
    return namespace


once_names_on = cache(names_on)  # an export takes a second


def names_anew(page: str) -> dict[str, Any]:
    """A copy of what a page makes, in which no example finds what another has changed."""
    memo: dict[int, Any] = {}
    kept = (ModuleType, FunctionType, type)
    made = {name: value for name, value in once_names_on(page).items() if name != "__builtins__"}
    return {name: value if isinstance(value, kept) else copy.deepcopy(value, memo) for name, value in made.items()}


def names_for(module: str) -> dict[str, Any]:
    """What the examples of a module find: the names of the pages, and those of the packages that it is in."""
    names = names_anew("api.md")
    for start, page in SET_UP.items():
        if module.startswith(start):
            names.update(once_names_on(page) if page == "api-deploy.md" else names_anew(page))
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        package = importlib.import_module(".".join(parts[:length]))
        names.update({public: getattr(package, public) for public in getattr(package, "__all__", ())})
    return {**names, "ponder": ponder}  # which is a recipe, too


def examples_of(name: str) -> list[doctest.DocTest]:
    found = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name), name, globs={})
    return [test for test in found if test.examples]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
@pytest.mark.parametrize("name", EVERY)
def test_docstring_examples(name: str) -> None:
    if name == "ponder.integrations.ray.deployment":
        pytest.importorskip("ray", reason="its example needs Ray Serve (extra ray), which is not installed")
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for test in examples_of(name):
        test.globs = names_for(name)
        torch.manual_seed(0)
        failed = runner.run(test)
        assert failed.failed == 0, f"{test.name}: see the output above"
