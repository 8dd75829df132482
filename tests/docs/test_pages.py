"""Every Python block of README.md and docs/ runs, and commands, links, figures and tables are there."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import random
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import typer.main

from docs.extensions import tables
from docs.extensions.pages import BLOCK
from ponder.advice import race
from tests.docs.shown_code import Block, blocks, make_stand_ins, prose, run, run_page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    [
        *(
            ROOT / f"{name}.md"
            for name in ("README", "AGENTS", "CONTRIBUTING", "CHANGELOG", "SECURITY")
        ),
        *DOCS.glob("*.md"),
    ]
)
STAND_INS = re.compile("albert-base-v2|my-classifier|my-reranker")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [p for p in PAGES if "```python" in p.read_text()], ids=name)
def test_python_blocks_run(
    page: Path, tmp_path: Path, namespace: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        race.Race, "_int8", lambda self: None
    )  # which the tests of the command race
    if STAND_INS.search(page.read_text()):
        make_stand_ins(tmp_path)
    torch.manual_seed(0)
    random.seed(0)
    run_page(page, namespace)


def test_a_wrong_result_is_noticed() -> None:
    run(Block("python", 1, "x = 1\nx + 1  # -> 2\nprint(x)\n# -> 1\n"), "page", {})
    for wrong in ("1 + 1  # -> 3", "print(1)  # -> 2", "print(1)", "\n# -> 2"):
        with pytest.raises(AssertionError):
            run(Block("python", 1, wrong + "\n"), "page", {})


# ---- Commands ------------------------------------------------------------------------------------------------------


def commands() -> Iterator[list[str]]:
    """Yield every command of a shell block, and every `make …`, `ponder …` or `python -m …` in running text."""
    for page in PAGES:
        text = page.read_text()
        if page.name == "CHANGELOG.md":
            continue  # which also names commands that are gone
        for block in blocks(text):
            if block.language in ("bash", "console"):
                lines = block.text.replace("\\\n", " ").splitlines()
                yield from filter(
                    None, (shlex.split(line.removeprefix("$ "), comments=True) for line in lines)
                )
        for code in re.findall(r"`((?:make|ponder|python -m) [^`]+)`", prose(text)):
            yield shlex.split(code)


@pytest.mark.parametrize("words", list(commands()), ids=lambda words: " ".join(words)[:60])
def test_commands_exist(words: list[str]) -> None:
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text()
        for word in words[1:]:
            assert re.search(rf"^{word.partition('=')[0]}( \?=|:)", makefile, re.M), word
    elif words[0] == "ponder":
        check_options("ponder.cli.app", words[1:])
    elif words[:2] == ["python", "-m"] and words[2].startswith("benchmarks."):
        if importlib.util.find_spec(f"{words[2]}.cli"):
            check_options(f"{words[2]}.cli", words[3:])
        assert importlib.util.find_spec(f"{words[2]}.__main__")
    elif words[:2] == ["python", "-m"] and words[2].startswith(("tests.", "docs.")):
        assert '__name__ == "__main__"' in inspect.getsource(importlib.import_module(words[2]))
    else:
        known = (
            [".venv/bin/python", "-m", "pytest"],
            ["python", "-m", "pytest"],
            ["pip", "install"],
            ["git", "clone"],
            ["cd"],
            ["curl"],
        )
        assert any(words[: len(start)] == start for start in known), words


def check_options(module: str, words: list[str]) -> None:
    """The command (where there are several) and the options are those of the module's `app`."""
    command: Any = typer.main.get_command(importlib.import_module(module).app)
    if words and not words[0].startswith("-") and hasattr(command, "resolve_command"):
        _, command, _ = command.resolve_command(typer.Context(command), words)
    options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    for word in words:
        assert not word.startswith("--") or word.partition("=")[0] in options, (
            f"{module} has no option {word}"
        )


# ---- Links, figures, tables, size ------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Return the anchors that MkDocs and GitHub both give to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page.read_text()), re.M)
    return {
        re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings
    }


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_figures(page: Path) -> None:
    text = prose(page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.is_file(), f"{target} is no file"
        assert not anchor or anchor in anchors(linked), f"{target} has no such heading"
    for said in re.findall(r"!\[([^\]]*)\]", text):
        assert len(said.split()) >= 3, f"a figure that is described by {said!r}"
    assert len(re.findall(r"^# \S", text, re.M)) == 1


def test_every_figure_is_shown() -> None:
    shown = set(re.findall(r"figures/([\w-]+\.svg)", "".join(page.read_text() for page in PAGES)))
    assert shown == {path.name for path in (DOCS / "figures").glob("*.svg")}


def test_all_tables_are_shown_and_have_rows() -> None:
    """That they are those of the results is tested with the numbers."""
    shown = [marker for page in PAGES for marker in BLOCK.finditer(page.read_text("utf-8"))]
    assert sorted(marker[1] for marker in shown) == sorted(tables.TABLES)
    for marker in shown:
        for drawn in re.findall(r"(?:^\|.*\n?)+", marker[0], re.M):
            assert len({row.count(" |") for row in drawn.splitlines()}) == 1
            assert len(drawn.splitlines()) > 2


def test_a_guide_has_one_table_of_results_at_most_and_evidence_three() -> None:
    """What decides stands in a guide; all other tables stand in the appendix."""
    for page in DOCS.glob("*.md"):
        shown = {marker[1] for marker in BLOCK.finditer(page.read_text("utf-8"))}
        most = 3 if page.name in ("pays.md", "palbert.md", "puzzles.md", "speed.md") else 1
        assert page.name == "appendix.md" or len(shown - set(tables.SAMPLES)) <= most, page.name


def test_every_page_stands_in_the_navigation() -> None:
    listed = re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(listed) == sorted(page.name for page in DOCS.glob("*.md"))
