"""Extras are named by what really installs them: in every message, in the documentation, in pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
NAMED = re.compile(r"ponder-torch\[([^\]]+)\]")
SOURCES = sorted(path for folder in ("ponder", "integrations", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def installs(extra: str) -> set[str]:
    """The names of the distributions of an extra, those of extras in it included."""
    found: set[str] = set()
    for requirement in EXTRAS[extra]:
        own = NAMED.match(requirement)
        if own:
            found = found.union(*(installs(name) for name in own[1].split(",")))
        else:
            found.add(re.split(r"[\[<>=;]", requirement)[0].strip())
    return found


@pytest.mark.parametrize("path", [*SOURCES, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_extras_that_are_named_exist(path: Path) -> None:
    for names in NAMED.findall(path.read_text()):
        if "{" not in names:  # the name of a backbone, which is that of its extra
            assert set(names.split(",")) <= set(EXTRAS), f"{path.relative_to(ROOT)} names [{names}]"


def messages() -> list[tuple[str, str, str]]:
    """(file, sentence before the command, extra) of every message that says how to install what is missing."""
    found = []
    for path in SOURCES:
        text = re.sub(r'"\s*\n\s*f?"', "", path.read_text())  # strings that stand on several lines are one
        for line in (line for line in text.splitlines() if "pip install" in line):
            for match in re.finditer(r"(.*)pip install '?ponder-torch\[([\w,-]+)\]", line):
                found.append((path.relative_to(ROOT).as_posix(), match[1], match[2]))
    return found


def test_there_are_messages() -> None:
    assert len(messages()) >= 10


@pytest.mark.parametrize(("path", "sentence", "extra"), messages(), ids=lambda value: str(value)[-40:])
def test_a_message_names_an_extra_that_brings_what_is_missing(path: str, sentence: str, extra: str) -> None:
    known = {name for one in EXTRAS for name in installs(one)}
    said = {
        name
        for name in known
        if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", sentence, re.I) and name != "ponder-torch"
    }
    brought = set().union(*(installs(one) for one in extra.split(",")))
    assert said <= brought, f"{path}: [{extra}] does not install {sorted(said - brought)}"


def test_install_page_lists_every_extra() -> None:
    page = (ROOT / "docs" / "install.md").read_text()
    table = set(re.findall(r"`([\w-]+)`", "\n".join(line for line in page.splitlines() if line.startswith("|"))))
    assert {*EXTRAS} - {"dev", "docs"} <= table
