"""Docstrings and help texts say what a thing is, for readers who have not seen the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OWNERLESS = re.compile(r"\A\s*Of |^ *[*`\w][\w*`., ()]*: Of |^ *(?:Returns|Yields):\n+ *Of ", re.M)
"""An owner without a thing, as in "temperature: Of the distillation."."""


def texts(source: str) -> Iterator[tuple[int, str]]:
    """The line and the text of every docstring, of attributes too, and of every `help=` of a command line."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(ast.Constant(str(text))):
                yield node.lineno, text
            case ast.keyword("help", ast.Constant(str(text)) | ast.JoinedStr([ast.Constant(str(text)), *_])):
                yield node.value.lineno, text


def ownerless(source: str) -> list[str]:
    """Every line of a text that names only an owner, with its number."""
    found = []
    for line, text in texts(source):
        for match in OWNERLESS.finditer(text):
            place = match.end()
            end = text.find("\n", place)
            shown = text[text.rfind("\n", 0, place) + 1 : None if end < 0 else end].strip()
            found.append(f"{line + text.count(chr(10), 0, place)}: {shown}")
    return found


@pytest.mark.parametrize("folder", ["ponder", "integrations", "benchmarks"])
def test_no_entry_names_only_an_owner(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    found = [f"{path.relative_to(ROOT)}:{one}" for path in files for one in ownerless(path.read_text("utf-8"))]
    assert not found, "say what it is, as in 'Seed of the draw.':\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('"""Of a module."""', "1: Of a module."),
        ('def f(x):\n    """Do.\n\n    Args:\n        x: Of f.\n    """', "5: x: Of f."),
        (
            'def f(*x, y):\n    """Do.\n\n    Args:\n        *x, y: Of f,\n            twice.\n    """',
            "5: *x, y: Of f,",
        ),
        ('def f():\n    """Do.\n\n    Returns:\n        Of each row, one.\n    """', "5: Of each row, one."),
        ('SEED = 0\n"""Of the draw."""', "2: Of the draw."),
        ('Option(\n    help="Of a round.",\n)', "2: Of a round."),
        ('Option(help=f"Of {NAMES}.")', "1: Of"),
    ],
)
def test_an_owner_without_a_thing_is_found(source: str, found: str) -> None:
    assert ownerless(source) == [found]


def test_things_with_an_owner_are_left_alone() -> None:
    assert not ownerless('def f(x):\n    """Of-course.\n\n    Args:\n        x: Seed. Of the draw, say.\n    """')
