"""What a user installs: distributions are whole, and extras bring what the code behind them imports."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path

import pytest

import ponder

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
SHIPPED = ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "CHANGELOG.md", "CITATION.cff")
NAMED = re.compile(r"ponder-torch\[([^\]{]+)\]")
MODULES = {
    "prometheus_client": "prometheus-client",
    "sentence_transformers": "sentence-transformers",
}
MODULES |= {
    "sklearn": "scikit-learn",
    "huggingface_hub": "transformers",
    "pydantic": "fastapi",
    "starlette": "fastapi",
}
MODULES |= {"markupsafe": "jinja2"}
"""Distributions of modules that have another name, or that come with another distribution."""
WANTS = {
    "ponder/cascade": {"cascade", "cli"},
    "ponder/ensembles": {"cascade"},
    "ponder/deploy": {"cli", "serve"},
    "ponder/cli": {"cli", "serve"},
    "ponder/advice": {"cli"},
    "ponder/training.py": {"train"},
    "ponder/fitting/": {"train"},
    "integrations/transformers": {"transformers"},
    "integrations/sentence_transformers.py": {"sentence-transformers"},
}
"""Extras that a room may ask for; others live by the dependencies of the core."""
SOURCES = sorted(
    path for folder in ("ponder", "integrations") for path in (ROOT / folder).rglob("*.py")
)
SOURCES = [
    path for path in SOURCES if path.relative_to(ROOT).parts[:2] != ("ponder", "integrations")
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the wheel and the source distribution, built without a network."""
    source = tmp_path_factory.mktemp("source")
    folder = tmp_path_factory.mktemp("dist")
    for name in SHIPPED:
        shutil.copy(ROOT / name, source / name)
    for name in ("ponder", "integrations"):
        shutil.copytree(
            ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    code = f"from setuptools import build_meta as b; b.build_sdist({str(folder)!r}); b.build_wheel({str(folder)!r})"
    ran = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return folder


def test_wheel_and_source_are_whole(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        installed = {name for name in wheel.namelist() if name.startswith("ponder/")}
        (place,) = [name for name in wheel.namelist() if name.endswith("METADATA")]
        metadata = message_from_bytes(wheel.read(place))
    with tarfile.open(next(built.glob("*.tar.gz"))) as source:
        packed = {name.partition("/")[2] for name in source.getnames()}
    names = {path.relative_to(ROOT).as_posix() for path in SOURCES}
    names = {name if name.startswith("ponder/") else f"ponder/{name}" for name in names}
    assert {name for name in installed if name.endswith(".py")} == names
    templates = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ponder").rglob("*.jinja")}
    assert {"ponder/py.typed", *templates} <= installed
    assert {"CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md", *installed} <= packed
    assert not {name for name in packed if name.startswith(("tests/", "benchmarks/", "docs/"))}
    assert (metadata["Name"], metadata["Version"]) == ("ponder-torch", ponder.__version__)
    assert metadata["Description-Content-Type"] == "text/markdown"


def test_the_wheel_answers_far_from_the_checkout(built: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import ponder, ponder.cli\n"
        "assert ponder.__file__.startswith(sys.path[0]), ponder.__file__\n"
        "import ponder.integrations.transformers\n"
        "sys.argv = ['ponder', '--version']; ponder.cli.main()"
    )
    ran = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert ran.stdout.split() == ["ponder", ponder.__version__], ran.stderr


def installs(extra: str) -> set[str]:
    """Return the names of the distributions of an extra, those of extras inside it included."""
    found: set[str] = set()
    for requirement in EXTRAS[extra]:
        own = NAMED.match(requirement)
        names = (
            set().union(*map(installs, own[1].split(",")))
            if own
            else {re.split(r"[\[<>=;]", requirement)[0]}
        )
        found |= names
    return found


def test_exports_are_answered_and_served_without_torch() -> None:
    heavy = {
        "torch",
        "transformers",
        "accelerate",
        "scipy",
        "scikit-learn",
        "matplotlib",
        "onnx",
    }
    assert not heavy & installs("serve")
    assert installs("runtime") <= installs("serve")


def imported(path: Path) -> Iterator[str]:
    """Yield the distributions that a file imports, in functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += (
            [node.module]
            if isinstance(node, ast.ImportFrom) and node.module and not node.level
            else []
        )
        for name in names:
            top = name.partition(".")[0]
            if top not in sys.stdlib_module_names and top != "ponder":
                yield MODULES.get(top, top)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_imported_is_brought(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    wanted = set().union(*(extras for place, extras in WANTS.items() if name.startswith(place)))
    brought = {re.split(r"[<>=]", one)[0] for one in PROJECT["dependencies"]}.union(
        *map(installs, wanted | {"torch"})
    )
    assert set(imported(path)) - {"ray"} <= brought


@pytest.mark.parametrize(
    "path", [*SOURCES, ROOT / "README.md", *(ROOT / "docs").glob("*.md")], ids=lambda p: p.name
)
def test_extras_that_are_named_exist(path: Path) -> None:
    for names in NAMED.findall(path.read_text()):
        assert set(names.split(",")) <= set(EXTRAS), names


def test_the_page_lists_every_extra() -> None:
    rows = [
        line
        for line in (ROOT / "docs" / "index.md").read_text().splitlines()
        if line.startswith("|")
    ]
    assert set(re.findall(r"`([\w-]+)`", "\n".join(rows))) >= {*EXTRAS}
    assert len(EXTRAS) <= 8
