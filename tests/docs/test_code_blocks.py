"""Runs every Python block of README.md and docs/, and checks the commands and links that they show."""

from __future__ import annotations

import importlib
import inspect
import random
import re
import shlex
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main

import ponder
from tests.docs.shown_code import Block, blocks, make_stand_ins, run, run_page
from tests.quick_exports import make_exports_quick

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(text: str) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.M | re.S)


# ---- Python --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(b.language == "python" for b in blocks(p.read_text()))], ids=name
)
def test_python_blocks(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registries: None) -> None:
    monkeypatch.chdir(tmp_path)
    if any(named in page.read_text() for named in ("albert-base-v2", "my-classifier")):
        make_stand_ins(tmp_path)
    if "ponder.export" in page.read_text():
        make_exports_quick()
    torch.manual_seed(0)
    random.seed(0)
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)  # where pickle looks for the classes of a page
    run_page(page, name(page), vars(main))


def test_a_wrong_result_is_noticed() -> None:
    run(Block("python", 1, "x = 1\nx + 1  # -> 2\nprint(x)\n# -> 1\n"), "page", {})
    for wrong in ("1 + 1  # -> 3", "print(1)  # -> 2", "print(1)", "\n# -> 2", "if True:\n    print(1)  # -> 2"):
        with pytest.raises(AssertionError):
            run(Block("python", 1, wrong + "\n"), "page", {})


# ---- Commands ------------------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command of a shell block, every `make …` or `python -m …` in running text, and every `ponder …`."""
    for page in PAGES:
        if page.name == "CHANGELOG.md":
            continue  # which also tells of commands that are gone
        text = page.read_text()
        for block in blocks(text):
            if block.language in ("bash", "console"):
                for line in block.text.replace("\\\n", " ").splitlines():
                    words = shlex.split(line.removeprefix("$ "), comments=True)
                    if words:
                        yield f"{name(page)}:{block.line}", words
            if block.language == "text":
                for line in re.findall(r"^ponder .*$", block.text, flags=re.M):
                    yield f"{name(page)}:{block.line}", shlex.split(line, comments=True)
        for code in re.findall(r"`((?:make|python -m) [^`]+)`", prose(text)):
            yield name(page), shlex.split(code)


COMMANDS = list(commands())


def test_there_are_commands() -> None:
    shown = [words for _, words in COMMANDS]
    assert ["make", "demo"] in shown
    assert ["make", "test"] in shown
    assert {"exits", "doctor", "predict", "export", "serve"} <= {words[1] for words in shown if words[0] == "ponder"}


@pytest.mark.parametrize(
    ("where", "words"), COMMANDS, ids=[f"{where}-{' '.join(words)[:60]}" for where, words in COMMANDS]
)
def test_commands_exist(where: str, words: list[str]) -> None:
    if words[0] == "make":
        check_make(words[1:])
    elif words[0] == "ponder":
        check_options("ponder.cli.app", words[1:])
    elif words[:2] == ["python", "-m"] and words[2].startswith("benchmarks."):
        check_benchmark(words[2], words[3:])
    elif words[:2] == ["python", "-m"] and words[2].startswith(("ponder.", "tests.")):
        assert '__name__ == "__main__"' in inspect.getsource(importlib.import_module(words[2])), f"{where}: {words}"
    elif words[0] == "torchrun":
        program = words.index("-m") + 1
        check_benchmark(words[program], words[program + 1 :])
    else:
        known = (["python", "-m", "pytest"], ["pip", "install"], ["git", "clone"], [".venv/bin/pre-commit", "install"])
        assert any(words[: len(start)] == start for start in known), f"{where}: {words}"


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.M)
    variables = set(re.findall(r"^([A-Z_]+) \?=", makefile, re.M))
    assert targets is not None
    for word in words:
        variable, assigned, value = word.partition("=")
        if not assigned:
            assert word in targets[1].split(), word
            assert re.search(rf"^{word}:", makefile, re.M), word
            continue
        assert variable in variables, word
        if variable == "ARGS":
            check_benchmark("benchmarks.glue", ["demo" if "demo" in words else "run", *shlex.split(value)])


def check_benchmark(module: str, words: list[str]) -> None:
    """The command and the options are those of the benchmark's `cli.app`."""
    check_options(f"{module}.cli", words)


def check_options(module: str, words: list[str]) -> None:
    """The command (where there are several) and the options are those of the module's `app`."""
    command: Any = typer.main.get_command(importlib.import_module(module).app)
    if not words or words[0] == "--help":
        return
    if hasattr(command, "commands"):
        assert words[0] in command.commands, f"{module} has no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    options = {option for parameter in command.params for option in parameter.opts}
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in options | {"--help"}, f"{module} has no option {word}"


def test_recipes_and_tasks_in_commands_exist() -> None:
    from benchmarks import tasks

    for _, words in COMMANDS:
        for word, following in zip(words, [*words[1:], ""], strict=True):
            if word.startswith("RECIPE=") or word == "--recipe":
                assert (word.partition("=")[2] or following) in ponder.recipes.names()
            if word.startswith("TASK=") or word == "--task":
                tasks.get(word.partition("=")[2] or following)


# ---- Links ---------------------------------------------------------------------------------------------------------


def slug(heading: str) -> str:
    """The anchor that MkDocs and GitHub both give to a heading."""
    return re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower())


def anchors(page: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", prose(page.read_text()), re.M)}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_internal_links(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.is_file(), f"{name(page)} links to {target}, which is no file"
        assert not anchor or anchor in anchors(linked), f"{name(page)} links to {target}, which has no such heading"


def test_pages_stand_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert f": {page.relative_to(ROOT / 'docs')}\n" in navigation, page


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_pictures_or_scripts_from_elsewhere(page: Path) -> None:
    assert not re.search(r"!\[[^\]]*\]\(https?:|<(script|img|iframe)\b", prose(page.read_text()))
