"""What a user installs: the distributions are whole, and README's code runs from the wheel, far from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

import ponder

ROOT = Path(__file__).resolve().parents[2]
NAME = f"ponder_torch-{ponder.__version__}"


@pytest.fixture(scope="session")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as files:
        return message_from_bytes(files.read(f"{NAME}.dist-info/METADATA"))


def test_wheel_and_source_hold_the_same_modules(wheel: Path, sdist: Path) -> None:
    with zipfile.ZipFile(wheel) as files:
        installed = {name for name in files.namelist() if name.startswith("ponder/")}
    with tarfile.open(sdist) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
        packed = {name for name in names if name.startswith("ponder/") and "." in Path(name).name}
    assert installed == packed
    tracked = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ponder").rglob("*.py")}
    linked = {f"ponder/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "integrations").rglob("*.py")}
    assert {name for name in installed if name.endswith(".py")} == tracked | linked
    assert {"ponder/py.typed", "ponder/integrations/transformers/families.json"} <= installed
    assert {"CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md", "pyproject.toml"} <= names
    assert not {name for name in names if name.startswith(("tests/", "benchmarks/"))}


def test_twine_has_nothing_to_say(wheel: Path, sdist: Path) -> None:
    pytest.importorskip("twine", reason="twine is not installed")
    ran = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist)], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_metadata(metadata: Message) -> None:
    assert metadata["Name"] == "ponder-torch"
    assert metadata["Version"] == ponder.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    needed = [one for one in metadata.get_all("Requires-Dist", []) if "extra ==" not in one]
    assert sorted(one.partition(">")[0] for one in needed) == ["einops", "torch"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert len(metadata["Summary"]) < 120


@pytest.fixture(scope="session")
def outside(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has the wheel, and sees what this one has installed, but no checkout."""
    folder = tmp_path_factory.mktemp("outside")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    paths = {
        kind: Path(sysconfig.get_path(kind, vars={"base": str(folder / "venv")})) for kind in ("purelib", "scripts")
    }
    with zipfile.ZipFile(wheel) as files:
        files.extractall(paths["purelib"])
    # A path that a .pth names is not searched for more .pth files: an editable installation is not found through it.
    (paths["purelib"] / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return paths["scripts"] / Path(sys.executable).name


def run(python: Path, folder: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [str(python), *arguments],
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.slow
def test_readme_runs_from_the_wheel_without_the_checkout(outside: Path, tmp_path: Path) -> None:
    # Trap: README imported `benchmarks`, which no installed package has.
    pytest.importorskip("transformers", reason="README wraps an encoder of Transformers")
    program = ROOT / "tests" / "docs" / "shown_code.py"
    told = run(outside, tmp_path, str(program), str(ROOT / "README.md")).splitlines()
    assert told[0] == str(outside.parents[1] / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix) / "ponder")
    assert told[1] == "benchmarks: not there"
    assert int(told[2].split()[0]) >= 4, "README shows less code than it should"


def test_the_command_says_its_version(outside: Path, tmp_path: Path) -> None:
    pytest.importorskip("typer", reason="the command needs the extra cli")
    told = run(
        outside, tmp_path, "-c", "import sys; sys.argv = ['ponder', '--version']; import ponder.cli; ponder.cli.main()"
    )
    assert told == f"ponder {ponder.__version__}\n"
