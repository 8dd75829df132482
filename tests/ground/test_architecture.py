"""The plan of the house: arrows between rooms, guard code, faces, and what imports without PyTorch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

from tests.ground import house

LAYERS = (
    ("ponder.errors", "ponder._utils"),
    ("ponder.statistics",),
    ("ponder.distributions", "ponder.tasks"),
    ("ponder.policies", "ponder.priors", "ponder.objectives"),
    ("ponder.recipes",),
    ("ponder.running",),
    ("ponder.calibration",),
    ("ponder.model",),
    ("ponder.trajectory",),
    ("ponder.loops",),
    ("ponder.inference",),
    ("ponder.wrapper",),
    ("ponder.saving", "ponder.fitting", "ponder.training", "ponder.testing"),
    ("ponder.cascade", "ponder.ensembles"),
    ("ponder.deploy",),
    ("ponder.integrations",),
    ("ponder.advice",),
    ("ponder.cli",),
)
"""Rooms from the ground up; imports go to the same room or down. `ponder` itself loads nothing."""
WITHOUT_TORCH = (
    "ponder",
    "ponder.errors",
    "ponder.tasks",
    "ponder._utils.arrays",
    "ponder._utils.checks",
    "ponder._utils.files",
    "ponder._utils.readers",
    "ponder._utils.registry",
    "ponder._utils.rows",
    "ponder._utils.seals",
    "ponder._utils.seeds",
    "ponder.policies",
    "ponder.policies.base",
    "ponder.policies.certainty",
    "ponder.policies.combine",
    "ponder.calibration",
    "ponder.calibration.calibrating",
    "ponder.calibration.control",
    "ponder.calibration.sweeps",
    "ponder.cascade",
    "ponder.cli.app",
    "ponder.cli.commands.certify",
    "ponder.cli.commands.check",
    "ponder.cli.commands.label",
    "ponder.cli.commands.predict",
    "ponder.cli.commands.serve",
    "ponder.statistics.answers",
    "ponder.deploy.export",
    "ponder.deploy.auditing",
    "ponder.deploy.ranking",
    "ponder.deploy.runtime",
    "ponder.running",
    "ponder.running.chunk",
    "ponder.running.loop",
    "ponder.running.readings",
    "ponder.running.source",
)


def modules() -> dict[str, ast.Module]:
    found = {}
    for folder, prefix in (("ponder", ""), ("integrations", "ponder.")):
        for path in sorted((house.ROOT / folder).rglob("*.py")):
            parts = path.relative_to(house.ROOT).with_suffix("").parts
            if parts[:2] != ("ponder", "integrations"):  # a link to the folder beside
                found[(prefix + ".".join(parts)).removesuffix(".__init__")] = ast.parse(
                    path.read_text()
                )
    return found


MODULES = modules()


def imports_of(tree: ast.AST, *, at_top: bool) -> Iterator[str]:
    """Yield the modules of this library that a file imports, but for type checking alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from {
                name if name in MODULES else str(node.module) for name in names
            } & MODULES.keys()
        elif not (at_top and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            yield from imports_of(node, at_top=at_top)


def layer_of(module: str) -> int:
    return next(
        n
        for n, rooms in enumerate(LAYERS)
        for room in rooms
        if (module + ".").startswith(room + ".")
    )


def test_imports_go_down() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, tree in MODULES.items()
        if module != "ponder"
        for imported in imports_of(tree, at_top=False)
        if imported != "ponder" and layer_of(imported) > layer_of(module)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_string_names_a_room_above() -> None:
    """A dotted path as text is an import too: what is below gets readers by entry points."""
    wrong = [
        f"{module} names {node.value}"
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if node.value.partition(":")[0] in MODULES.keys() - {"ponder"} and module != "ponder"
        if layer_of(node.value.partition(":")[0]) > layer_of(module)
    ]
    assert not wrong, "\n".join(wrong)


def test_modules_do_not_import_in_circles() -> None:
    graph = {
        module: set(imports_of(tree, at_top=True)) - {module} for module, tree in MODULES.items()
    }
    list(TopologicalSorter(graph).static_order())


def test_private_names_stay_inside_their_file() -> None:
    wrong = [
        f"{module} imports {node.module}.{alias.name}"
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("ponder")
        for alias in node.names
        if alias.name.startswith("_") and alias.name != "_utils"
    ]
    assert not wrong, "\n".join(wrong)


def test_guard_code_is_a_tenth_at_most() -> None:
    files = [path for room in house.ROOMS for path in house.files_of(room)]
    assert house.guard_share(files) <= 0.10, house.table()


def test_what_needs_no_torch_loads_none() -> None:
    there = [module for module in WITHOUT_TORCH if module in MODULES]
    code = f"import sys; sys.modules['torch'] = None\nimport {', '.join(there)}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=house.ROOT)


def test_importing_ponder_loads_nothing() -> None:
    code = "import sys; import ponder; print([name for name in sys.modules if name.startswith('ponder.')])"
    made = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=house.ROOT, capture_output=True, text=True
    )
    assert made.stdout.strip() == "[]"


def test_every_file_says_what_it_is() -> None:
    paths = [
        *(house.ROOT / "ponder").glob("**/*.py"),
        *Path(house.ROOT / "integrations").glob("**/*.py"),
    ]
    assert not [str(path) for path in paths if not ast.get_docstring(ast.parse(path.read_text()))]


def test_complex_functions_have_a_docstring() -> None:
    bare = [
        f"{module}.{function.name} ({house.complexity(function)})"
        for module, tree in MODULES.items()
        for function, docstring in house.functions_of(tree)
        if not docstring and house.complexity(function) >= 8
    ]
    assert not bare, "\n".join(bare)


def test_lines_of_the_library_are_at_most_100_characters() -> None:
    # Docstrings and comments too, to which the limits of ruff do not apply or are wider.
    folders = (house.ROOT / "ponder", house.ROOT / "integrations")
    long = [
        f"{path}:{number}"
        for folder in folders
        for path in sorted(folder.rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > 100
    ]
    assert not long, "\n".join(long)


def test_protocols_that_are_checked_have_methods_alone() -> None:
    """From Python 3.12 on `isinstance` misses attributes of `__getattr__`, as modules are held."""
    wrong = []
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ClassDef):
                continue
            if "runtime_checkable" not in {ast.unparse(each) for each in node.decorator_list}:
                continue
            for member in node.body:
                decorators = getattr(member, "decorator_list", ())
                is_property = "property" in {ast.unparse(each) for each in decorators}
                if is_property or isinstance(member, ast.AnnAssign):
                    wrong.append(f"{module}: {node.name}")
    assert not wrong, "\n".join(wrong)
