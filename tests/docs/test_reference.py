"""The reference lists every public name, and every name that it lists exists, says what it is and has an example.

The examples are run by `tests/ponder/test_doctests.py`.
"""

from __future__ import annotations

import importlib
import inspect
import re
from contextlib import suppress
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ponder
from ponder.objectives import Unrolled
from ponder.objectives.base import NEEDS

DOCS = Path(__file__).resolve().parents[2] / "docs"
PACKAGES = (
    "ponder",
    "ponder.calibration",
    "ponder.cost",
    "ponder.errors",
    "ponder.export",
    "ponder.export.policies",
    "ponder.inference.streaming",
    "ponder.integrations.ray",
    "ponder.integrations.sentence_transformers",
    "ponder.integrations.transformers",
    "ponder.monitor",
    "ponder.objectives",
    "ponder.parts.readouts",
    "ponder.parts.tasks",
    "ponder.plots",
    "ponder.policies",
    "ponder.priors",
    "ponder.recipes",
    "ponder.serving",
    "ponder.testing",
    "ponder.training",
)
REGISTRY = {"register", "get", "names", "from_dict"}  # methods of one class, described once
DIRECTIVE = re.compile(r"^::: ([\w.]+)\n(?:    options:\n((?:      .*\n)*))?", re.M)


def directives() -> list[tuple[str, list[str]]]:
    """Every name that a page of the reference shows, with the members that it shows of it."""
    found = []
    for page in sorted(DOCS.glob("api*.md")):
        for name, options in DIRECTIVE.findall(page.read_text()):
            members = re.search(r"members: \[([^\]]*)\]", options)
            found.append((name, [one.strip() for one in members[1].split(",")] if members else []))
    return found


def resolve(name: str) -> Any:
    """What a user gets by this name; where a function and its file have one name, that is the function."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        with suppress(ModuleNotFoundError, AttributeError):
            return reduce(getattr, parts[length:], importlib.import_module(".".join(parts[:length])))
    return importlib.import_module(name)


SHOWN = [name for name, _ in directives()] + [f"{name}.{one}" for name, members in directives() for one in members]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_reference(package: str) -> None:
    shown = [resolve(name) for name in SHOWN]
    last = {name.rpartition(".")[2] for name in SHOWN}
    module = importlib.import_module(package)
    for name in set(module.__all__) - REGISTRY:
        value = getattr(module, name)
        if isinstance(value, ModuleType):
            continue  # a package, whose names are looked for themselves
        listed = name in last if isinstance(value, (tuple, frozenset, dict)) else any(one is value for one in shown)
        assert listed or f"{package}.{name}" in SHOWN, f"{package}.{name} stands on no page of the reference"


def test_packages_that_users_import_are_looked_at() -> None:
    listed = {value.__name__ for name in ponder.__all__ if isinstance(value := getattr(ponder, name), ModuleType)}
    assert listed <= set(PACKAGES)


@pytest.mark.parametrize("name", SHOWN)
def test_a_name_of_the_reference_exists_and_is_described(name: str) -> None:
    value = resolve(name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert (inspect.getdoc(value) or "").strip(), f"{name} has no docstring"


ALL_EXAMPLES = "\n".join(
    inspect.getdoc(value) or "" for name in SHOWN if not isinstance(value := resolve(name), ModuleType)
)
OF_CLASSES = {f"{name}.{one}" for name, members in directives() for one in members if inspect.isclass(resolve(name))}
"""Members of a class, which the example of the class shows."""
OWN = [name for name in SHOWN if name not in OF_CLASSES]


def own_docstring(value: Any) -> str:
    """The docstring of a class or function; no class has that of its base."""
    return (vars(value).get("__doc__") if inspect.isclass(value) else inspect.getdoc(value)) or ""


@pytest.mark.parametrize("name", OWN)
def test_a_name_of_the_reference_has_an_example(name: str) -> None:
    value = resolve(name)
    if isinstance(value, ModuleType):
        return  # whose members are named
    if inspect.isclass(value) or inspect.isfunction(value):
        assert ">>> " in own_docstring(value), f"{name} has no example"
    else:  # a table, an alias or a registry, which has no docstring of its own
        last = name.rpartition(".")[2]
        assert re.search(rf"^ *(>>>|\.\.\.) .*\b{last}\b", ALL_EXAMPLES, re.M), f"{name} stands in no example"


def test_no_name_stands_twice() -> None:
    assert sorted(SHOWN) == sorted(set(SHOWN))


def test_the_page_of_objectives_tells_all_that_one_may_read() -> None:
    page = (DOCS / "objective.md").read_text()
    fields, declared = zip(*re.findall(r'^\| `(\w+)` \| [^|]+ \| (?:`"(\w+)"`|–) \|', page, re.M), strict=True)
    assert sorted(fields) == sorted(Unrolled.__dataclass_fields__)
    assert sorted(filter(None, declared)) == sorted(NEEDS)
