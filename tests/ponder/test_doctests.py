"""Every example in a docstring of the core runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
from typing import Any

import pytest
import torch
from torch import nn

import ponder
from tests.ponder.test_imports import MODULES

EVERY = ["ponder", *MODULES]


def examples_of(name: str) -> list[doctest.DocTest]:
    module = importlib.import_module(name)
    names: dict[str, Any] = {"torch": torch, "nn": nn, "ponder": ponder}
    for package in (ponder, module):
        names.update({public: getattr(package, public) for public in package.__all__})
    found = doctest.DocTestFinder(exclude_empty=True).find(module, name, globs=names)
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", EVERY)
def test_docstring_examples(name: str) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for test in examples_of(name):
        failed = runner.run(test)
        assert failed.failed == 0, f"{test.name}: see the output above"


def test_there_are_examples() -> None:
    assert sum(len(examples_of(name)) for name in EVERY) >= 6
