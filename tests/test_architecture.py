"""The arrows of docs/architecture.md, held against the imports of every file."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPTIONAL = {
    "accelerate",
    "rich",
    "safetensors",
    "matplotlib",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "sklearn",
    "ray",
    "tokenizers",
    "transformers",
    "tqdm",
    "datasets",
    "earlyon",
    "ponder_transformer",
    "reasoning_gym",
}
"""Libraries that a user may not have: imported where they are needed, in functions of the file that wraps them."""

LATE = {
    "ponder.cli": "says which libraries are missing before it loads them",
    "benchmarks.glue.cli": "says what is wrong with an option, and shows its help, without loading PyTorch",
    "benchmarks.glue.sweeping.executors": "a worker sets its threads before it loads what reads them",
}
"""Files whose functions import what is not optional, and why; no others do."""


@dataclass(frozen=True)
class Import:
    """One import of one file."""

    importer: str
    imported: str
    inside_a_function: bool


def files() -> dict[str, Path]:
    """Every file of the library, the integrations and the benchmarks, by the name under which it is imported."""
    found = {}
    for folder, prefix in (("ponder", ""), ("integrations", "ponder."), ("benchmarks", "")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[:2] != ("ponder", "integrations"):  # a link, read under its own name
                found[(prefix + ".".join(parts)).removesuffix(".__init__")] = path
    return found


FILES = files()


def imports_of(name: str, source: str) -> Iterator[Import]:
    """The imports of a file; those under TYPE_CHECKING count as well."""
    tree = ast.parse(source)
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = [target if target in FILES else str(node.module) for target in whole]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            targets = [it.value for it in node.args[:1] if isinstance(it, ast.Constant)]
        for target in targets:
            yield Import(name, target, id(node) in inside)


@cache
def all_imports() -> list[Import]:
    return [found for name, path in FILES.items() for found in imports_of(name, path.read_text())]


def inner_imports() -> list[Import]:
    return [i for i in all_imports() if i.imported in FILES]


def room(name: str) -> str:
    """The file or folder of `ponder/` to which a module belongs; ``ponder`` for its `__init__`."""
    parts = name.split(".")
    return parts[0] if parts[0] == "benchmarks" or len(parts) == 1 else parts[1]


def floors() -> dict[str, int]:
    """How far right each room stands in the block of arrows."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    (block,) = re.findall(r"```arrows\n(.*?)```", page, re.DOTALL)
    levels = [[name.strip() for name in level.split(",")] for level in block.replace("\n", " ").split("←")]
    assert all(all(level) for level in levels)
    return {name: floor for floor, level in enumerate(levels) for name in level}


def test_every_room_stands_in_the_arrows() -> None:
    assert {room(name) for name in FILES} - {"ponder"} == floors().keys()


def wrong(imports: list[Import]) -> list[str]:
    """The imports between rooms that do not follow the arrows."""
    floor = floors()
    return [
        f"{i.importer} imports {i.imported}"
        for i in imports
        if i.imported in FILES
        and room(i.importer) != room(i.imported)
        and i.importer != "ponder"
        and not (room(i.imported) == "ponder" and room(i.importer) == "benchmarks")  # a user of the library
        and (room(i.imported) == "ponder" or floor[room(i.imported)] >= floor[room(i.importer)])
    ]


def test_arrows_point_one_way() -> None:
    assert wrong(inner_imports()) == []


@pytest.mark.parametrize(
    "source",
    [
        "from ponder.wrapper import PonderWrapper",
        "import ponder",
        "from ponder import LambdaHead",
        "from ponder import recipes",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ponder.engine.loop import run",
        "def late():\n    from ponder.priors import Geometric",
    ],
)
def test_the_test_sees_an_arrow_that_points_the_other_way(source: str) -> None:
    assert wrong(list(imports_of("ponder.policies.base", source)))


def test_no_files_import_one_another_in_a_circle() -> None:
    graph: dict[str, set[str]] = {name: set() for name in FILES}
    for found in inner_imports():
        graph[found.importer] |= {found.imported} - {found.importer}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" ← ".join(error.args[1]))


def hidden(imports: list[Import]) -> set[tuple[str, str]]:
    """Imports in functions, of files of ours or of libraries that are not optional."""
    late = [i for i in imports if i.inside_a_function]
    return {(i.importer, i.imported) for i in late if i.imported.partition(".")[0] not in OPTIONAL}


def test_no_import_hides_in_a_function() -> None:
    assert {importer for importer, _ in hidden(all_imports())} == LATE.keys()
    late = {i.imported.partition(".")[0] for i in all_imports() if i.inside_a_function}
    assert late >= OPTIONAL, "the list names nothing that is not there"


def test_the_test_sees_a_module_that_is_imported_by_its_name() -> None:
    source = "def late():\n    return importlib.import_module('ponder.wrapper')"
    assert hidden(list(imports_of("ponder.policies.base", source))) == {("ponder.policies.base", "ponder.wrapper")}
