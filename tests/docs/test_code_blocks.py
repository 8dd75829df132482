"""Runs every Python block of README.md and docs/, and checks the commands and links that they show.

The blocks of a page share a namespace, in order, and run in an empty folder. What a page shows as a result is
asserted: `expression  # -> value`, or `# -> line` comments behind what prints.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import linecache
import random
import re
import shlex
import sys
import tokenize
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import typer.main

import benchmarks.graded.base as graded
import ponder
from ponder.integrations.transformers import adapters

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
ARROW = re.compile(r"#\s*->\s?(.*)$")


class Block(NamedTuple):
    """A fenced block: its language, the line of the page on which its text starts, and the text."""

    language: str
    line: int
    text: str


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(text: str) -> list[Block]:
    found = re.finditer(r"^( *)```([a-z]*)[^\n]*\n(.*?)^\1```$", text, re.M | re.S)
    return [Block(m[2], text.count("\n", 0, m.start(3)) + 1, m[3]) for m in found]


def prose(text: str) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.M | re.S)


# ---- Python --------------------------------------------------------------------------------------------------------


@pytest.fixture
def registries() -> Iterator[None]:
    """Names that a page registers are gone after it."""
    tables: list[dict[str, Any]] = [
        ponder.policies.base.registry._factories,
        ponder.priors.base.registry._factories,
        ponder.objectives.base.registry._factories,
        ponder.recipes.base.registry._factories,
        adapters._factories,
        graded._TASKS,
    ]
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(b.language == "python" for b in blocks(p.read_text()))], ids=name
)
def test_python_blocks(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registries: None) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    random.seed(0)
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)  # where pickle looks for the classes of a page
    namespace: dict[str, Any] = vars(main)
    for block in blocks(page.read_text()):
        if block.language == "python":
            run(block, name(page), namespace)


def run(block: Block, page: str, namespace: dict[str, Any]) -> None:
    source = "\n" * (block.line - 1) + block.text
    filename = f"<{page}:{block.line}>"  # in the linecache, for tracebacks and for dataclasses
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    shown = arrows(source)
    tree = ast.parse(source, filename)
    for statement in tree.body:
        run_statement(statement, shown, filename, page, namespace)
    assert not shown, f"{page}: results that belong to no statement, on lines {sorted(shown)}"


def run_statement(
    statement: ast.stmt, shown: dict[int, str], filename: str, page: str, namespace: dict[str, Any]
) -> None:
    """Run one statement and compare each result that is shown for it; a `with` is entered and its body taken singly."""
    if isinstance(statement, ast.With):
        body = statement.body
        with contextlib.ExitStack() as stack:
            for item in statement.items:
                assert item.optional_vars is None, f"{page}: `with … as` is not supported in shown code"
                stack.enter_context(evaluate(item.context_expr, filename, namespace))
            for inner in body:
                run_statement(inner, shown, filename, page, namespace)
        return
    first, last = statement.lineno, statement.end_lineno or statement.lineno
    expected = [shown.pop(line) for line in sorted(shown) if first <= line <= last]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        value = None
        if isinstance(statement, ast.Expr):
            value = evaluate(statement.value, filename, namespace)
        else:
            exec(compile(ast.Module([statement], []), filename, "exec"), namespace)
    got = out.getvalue().splitlines() if value is None else [repr(value)]
    if expected:
        assert got == expected, f"{page}:{first}: the page shows {expected}, and the code gives {got}"
    elif value is None:
        assert not got, f"{page}:{first}: prints {got}, which the page does not show"


def evaluate(expression: ast.expr, filename: str, namespace: dict[str, Any]) -> Any:
    return eval(compile(ast.Expression(expression), filename, "eval"), namespace)


def arrows(source: str) -> dict[int, str]:
    """The results that comments show, by line; a comment alone on its line belongs to the line above."""
    found: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        match = ARROW.search(token.string) if token.type == tokenize.COMMENT else None
        if match is not None:
            alone = not token.line[: token.start[1]].strip()
            found[token.start[0] - alone] = match[1].strip()
    return found


def test_a_wrong_result_is_noticed() -> None:
    run(Block("python", 1, "x = 1\nx + 1  # -> 2\nprint(x)\n# -> 1\n"), "page", {})
    for wrong in ("1 + 1  # -> 3", "print(1)  # -> 2", "print(1)", "\n# -> 2", "if True:\n    print(1)  # -> 2"):
        with pytest.raises(AssertionError):
            run(Block("python", 1, wrong + "\n"), "page", {})


# ---- Commands ------------------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command of a shell block, and every `make …` or `python -m …` in running text."""
    for page in PAGES:
        text = page.read_text()
        for block in blocks(text):
            if block.language in ("bash", "console"):
                for line in block.text.replace("\\\n", " ").splitlines():
                    words = shlex.split(line.removeprefix("$ "), comments=True)
                    if words:
                        yield f"{name(page)}:{block.line}", words
        for code in re.findall(r"`((?:make|python -m) [^`]+)`", prose(text)):
            yield name(page), shlex.split(code)


COMMANDS = list(commands())


def test_there_are_commands() -> None:
    shown = [words for _, words in COMMANDS]
    assert ["make", "demo"] in shown
    assert ["make", "test"] in shown


@pytest.mark.parametrize(
    ("where", "words"), COMMANDS, ids=[f"{where}-{' '.join(words)[:60]}" for where, words in COMMANDS]
)
def test_commands_exist(where: str, words: list[str]) -> None:
    if words[0] == "make":
        check_make(words[1:])
    elif words[:2] == ["python", "-m"] and words[2].startswith("benchmarks."):
        check_benchmark(words[2], words[3:])
    elif words[:2] == ["python", "-m"] and words[2].startswith("ponder."):
        assert '__name__ == "__main__"' in inspect.getsource(importlib.import_module(words[2])), f"{where}: {words}"
    elif words[0] == "torchrun":
        program = words.index("-m") + 1
        check_benchmark(words[program], words[program + 1 :])
    else:
        assert words[:2] in (["pip", "install"], ["git", "clone"], [".venv/bin/pre-commit", "install"]), (
            f"{where}: {words}"
        )


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
    """The command (where there are several) and the options are those of the benchmark's `cli.app`."""
    command: Any = typer.main.get_command(importlib.import_module(f"{module}.cli").app)
    if not words or words[0] == "--help":
        return
    if hasattr(command, "commands"):
        assert words[0] in command.commands, f"python -m {module} has no command {words[0]!r}"
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
