"""What is shipped: packages, versions, the CI entry, and nothing that belongs to one machine."""

from __future__ import annotations

import importlib
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from setuptools import find_packages

import ponder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_shipped(project: dict[str, Any]) -> None:
    # A subpackage that a list forgets works from a checkout and is missing from the wheel, so there is no list.
    found = find_packages(str(ROOT), include=project["tool"]["setuptools"]["packages"]["find"]["include"])
    folders = (path.parent.relative_to(ROOT) for path in (ROOT / "ponder").rglob("__init__.py"))
    links = (path.parent.relative_to(ROOT) for path in (ROOT / "integrations").rglob("__init__.py"))
    expected = {".".join(folder.parts) for folder in folders} | {
        ".".join(("ponder", *folder.parts)) for folder in links
    }
    assert set(found) == expected


def test_every_folder_with_modules_is_a_package() -> None:
    for folder in ("ponder", "integrations", "benchmarks"):
        for module in (ROOT / folder).rglob("*.py"):
            assert (module.parent / "__init__.py").is_file(), module


def test_integrations_come_from_the_same_checkout_as_ponder() -> None:
    # Two clones that share one environment: the second imported the integrations of the first, without a word.
    link = ROOT / "ponder" / "integrations"
    assert link.is_symlink()
    assert link.resolve() == ROOT / "integrations"
    integrations = importlib.import_module("ponder.integrations")
    assert Path(str(integrations.__file__)).parent.parent == Path(ponder.__file__).parent


def test_version(project: dict[str, Any]) -> None:
    assert ponder.__version__ == project["project"]["version"]
    assert f"## [{ponder.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {ponder.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_types_are_shipped(project: dict[str, Any]) -> None:
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["ponder"]
    assert (ROOT / "ponder" / "py.typed").is_file()


def test_ci_runs_make_test_and_nothing_else() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    lines = [line.strip() for line in script.read_text().splitlines()]
    assert lines[0].startswith("#!")
    assert [line for line in lines if line and not line.startswith(("#", "set ", "cd "))] == ["make test"]


def test_pre_commit_runs_local_tools_only() -> None:
    config = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"repo: (\S+)", config) == ["local"]
    assert set(re.findall(r"language: (\S+)", config)) == {"system"}


def tracked() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_nothing_of_one_machine_is_tracked() -> None:
    # Spelled in parts, or this file would find itself.
    places = [f"/{place}/" for place in ("work", "root", "home/[a-z]+", "Users/[A-Za-z]+", "tmp/bash")]
    hosts = [r"pypi\.o" + "rg", r"pythonhosted\.o" + "rg", r"download\.pytorch\.o" + "rg", r"index[-_]u" + "rl"]
    found = re.compile("|".join(r"(?<![\w.$}/-])" + place for place in places) + "|" + "|".join(hosts))
    starts = [*(f"/{place.partition('/')[0]}/" for place in places), "pypi", "pythonhosted", "download", "index"]
    for path in tracked():
        # Trap: a database of coverage, which is no text, held the folder of the machine that made it.
        text = path.read_text(errors="replace")
        if not any(start in text for start in starts):
            continue  # as nearly all results, which are long
        for number, line in enumerate(text.splitlines(), start=1):
            assert not found.search(line), f"{path.relative_to(ROOT)}:{number}: {line.strip()}"


def test_tracked_files_are_small() -> None:
    # Data, weights and run folders stay out of the repository.
    for path in tracked():
        assert path.stat().st_size < 1_000_000, path
