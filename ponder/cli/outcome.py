"""`Outcome`: the result of a command.

`ponder.cli.show` prints it, and `ponder.cli.report` makes a page of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DataTable", "Outcome", "usage_of"]


@dataclass(frozen=True)
class DataTable:
    """A table with named columns.

    Args:
        title: Its heading on the page.
        columns: Names of the columns.
        rows: A cell for each column.
        note: A sentence below the heading.
        marked: The row that is highlighted, from 0.
        printed: Whether the screen shows the table too.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    marked: int | None = None
    printed: bool = False


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of a command.

    Args:
        facts: Plain values for machines, and for the card of the folder; NaN becomes null.
        sentences: The promise or the verdict first, then remarks.
        rows: Names and values of a small table.
        figure: The figure of the page, or None.
        tables: Further tables for the page, and some for the screen.
        title: Title of the page; no page is written without one.
        usage: Uses of the folder: a purpose and a command each.
    """

    facts: Mapping[str, object]
    sentences: Sequence[str]
    rows: Sequence[tuple[str, str]] = ()
    figure: Figure | None = None
    tables: Sequence[DataTable] = ()
    title: str = ""
    usage: Sequence[tuple[str, str]] = field(default_factory=tuple)


def usage_of(folder: Path, *, torch: bool = True, ranks: bool = False) -> list[tuple[str, str]]:
    """Return uses of a folder: a purpose and a command each.

    Args:
        folder: The folder.
        torch: Whether its model runs in PyTorch, so that it can be exported.
        ranks: Whether it ranks the candidates of queries.
    """
    what = "queries" if ranks else "texts"
    suffix = "jsonl" if ranks else "csv"
    answers = "predict(queries)" if ranks else "predict(texts).labels"
    file = f"new.{suffix}"
    commands = [
        (f"A file of {what}", f"ponder predict {folder} --texts {file} --out answers.{suffix}"),
        ("Over HTTP", f"ponder serve {folder}"),
        (f"Does the promise hold on new {what}?", f"ponder check {folder} --texts {file}"),
        ("In Python", f'ponder.open("{folder}").{answers}'),
    ]
    if torch:
        commands.append(("Without PyTorch", f"ponder export {folder} --out EXPORT"))
    return commands
