"""Measures of the house: lines of each room, share of guard code, names in package faces.

``python -m tests.ground.house`` prints the table.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS: dict[str, tuple[str, ...]] = {
    "ground": (
        "ponder/__init__.py",
        "ponder/errors.py",
        "ponder/_utils",
        "ponder/distributions.py",
        "ponder/tasks.py",
        "ponder/trajectory.py",
        "ponder/saving.py",
        "ponder/testing.py",
    ),
    "statistics": ("ponder/statistics",),
    "policies": ("ponder/policies",),
    "priors": ("ponder/priors.py",),
    "objectives": ("ponder/objectives",),
    "recipes": ("ponder/recipes",),
    "running": ("ponder/running",),
    "model": ("ponder/model", "ponder/wrapper.py"),
    "loops": ("ponder/loops",),
    "calibration": ("ponder/calibration",),
    "inference": ("ponder/inference",),
    "training": ("ponder/training.py", "ponder/fitting"),
    "cascade": ("ponder/cascade",),
    "ensembles": ("ponder/ensembles",),
    "deploy": ("ponder/deploy",),
    "cli": ("ponder/cli",),
    "integrations": ("integrations",),
    "advice": ("ponder/advice",),
}
"""Files and folders of each room."""


BRANCHES = (
    ast.If,
    ast.IfExp,
    ast.For,
    ast.While,
    ast.ExceptHandler,
    ast.comprehension,
    ast.Assert,
    ast.match_case,
)


def complexity(function: ast.AST) -> int:
    """Return McCabe's complexity: branches, loops, handlers, comprehensions and their conditions."""
    total = 1
    for node in ast.walk(function):
        total += isinstance(node, BRANCHES)
        if isinstance(node, ast.BoolOp):
            total += len(node.values) - 1
        if isinstance(node, ast.comprehension):
            total += len(node.ifs)
    return total


def functions_of(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    """Yield every function with its docstring, which for a constructor is that of its class."""
    documented: dict[ast.AST, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef) and member.name in CONSTRUCTORS:
                    documented[member] = ast.get_docstring(node) or ""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node, ast.get_docstring(node) or documented.get(node, "")


CONSTRUCTORS = ("__init__", "__post_init__")


def files_of(room: str) -> list[Path]:
    """Return the Python files of a room."""
    found: list[Path] = []
    for place in ROOMS[room]:
        path = ROOT / place
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path] if path.exists() else []
    return found


def lines_of(room: str) -> int:
    """Return the lines of a room, docstrings and blank ones among them."""
    return sum(len(path.read_text().splitlines()) for path in files_of(room))


def guard_share(files: list[Path]) -> float:
    """Return the share of code lines that guard: what only raises or warns, and functions that check."""
    guard = code = 0
    for path in files:
        if path.name == "testing.py":  # whose checks are what it is for
            continue
        tree = ast.parse(path.read_text())
        guards = {
            line
            for node in _guards(tree)
            for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        }
        lines = set(_code_lines(path, tree))
        guard = guard + len(guards & lines)
        code = code + len(lines)
    return guard / max(code, 1)


def face_names() -> dict[str, list[str]]:
    """Return the public names of every package face."""
    faces = [*(ROOT / "ponder").rglob("__init__.py"), *(ROOT / "integrations").rglob("__init__.py")]
    found = {}
    for path in faces:
        if not any(
            part.startswith("_") and not part.startswith("__")
            for part in path.relative_to(ROOT).parts
        ):
            found[str(path.relative_to(ROOT).parent)] = _exported(ast.parse(path.read_text()))
    return {
        name: names for name, names in found.items() if not name.startswith("ponder/integrations")
    }


def table() -> str:
    """Return lines and guard share of every room."""
    rows = [f"{'room':<14}{'lines':>8}{'guard':>8}"]
    for room in ROOMS:
        share = guard_share(files_of(room))
        rows.append(f"{room:<14}{lines_of(room):>8,}{100 * share:>7.1f}%")
    everything = [path for room in ROOMS for path in files_of(room)]
    total = sum(map(lines_of, ROOMS))
    rows.append(f"{'all':<14}{total:>8,}{100 * guard_share(everything):>7.1f}%")
    faces = face_names()
    rows.append(f"names in faces {sum(map(len, faces.values()))}, in ponder {len(faces['ponder'])}")
    return "\n".join(rows)


def _guards(tree: ast.AST) -> Iterator[ast.stmt]:
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt) and (
            _only_refuses(node) or _refuses(node) or _is_check(node)
        ):
            yield node


def _only_refuses(node: ast.stmt) -> bool:
    """Return whether a statement is an `if` that ends by refusing, and does nothing before but to name the words."""
    if not isinstance(node, ast.If) or node.orelse or not _refuses(node.body[-1]):
        return False
    return all(_refuses(each) or isinstance(each, ast.Assign) for each in node.body)


def _is_check(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name.lstrip("_").startswith(
        ("check_", "warn_", "require_")
    )


def _refuses(node: ast.stmt) -> bool:
    if isinstance(node, ast.Raise):
        return True
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and ast.unparse(call.func) in ("warnings.warn", "warn")


def _code_lines(path: Path, tree: ast.AST) -> Iterator[int]:
    quiet: set[int] = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            quiet.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if line.strip() and not line.strip().startswith("#") and number not in quiet:
            yield number


def _exported(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


if __name__ == "__main__":
    print(table())
