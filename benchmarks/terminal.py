"""What a terminal, a pipe or a log is shown: tables that fit without a cut, and no bars where nobody looks."""

from __future__ import annotations

import itertools
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence

__all__ = ["hide_bars", "is_watched", "print_table", "table_lines"]

_GAP = "  "
_NUMBER = re.compile(r"[-+×≤≥]? ?\d[\d.,]*%?([ –±].*)?|—|–|")


def is_watched() -> bool:
    """Whether the standard error is a terminal: where it is not, a bar would be hundreds of lines."""
    return sys.stderr.isatty()


def hide_bars() -> None:
    """No bars and notes of Transformers and `datasets`: they would stand between ours, or fill a log."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", grouped: bool = False
) -> None:
    """Print `table_lines` to the standard output, as wide as the terminal; 80 columns in a pipe.

    Args:
        columns: Their names.
        rows: Cells, one for each column.
        title: The line above.
        grouped: The first column is a heading of the rows that share it.
    """
    lines = table_lines(columns, rows, shutil.get_terminal_size((80, 24)).columns, grouped=grouped)
    print("\n".join([*(["", title] if title else []), *lines]), flush=True)


def table_lines(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int = 80, *, grouped: bool = False
) -> list[str]:
    r"""A table in plain text: numbers to the right, cells broken between words where it would be too wide, none cut.

    Args:
        columns: Their names.
        rows: Cells, one for each column.
        width: Width of the terminal. It is passed only where the longest words of all columns together are wider.
        grouped: The first column is a heading of the rows that share it.

    Example:
        >>> print("\n".join(table_lines(("case", "seconds"), [("one", "1.50"), ("another", "12.25")])))
        case     seconds
        ───────  ───────
        one         1.50
        another    12.25
    """
    if grouped:
        found = itertools.groupby(rows, key=lambda row: row[0])
        groups = [(name, [list(row[1:]) for row in members]) for name, members in found]
        columns = columns[1:]
    else:
        groups = [("", [list(row) for row in rows])]
    every = [row for _, members in groups for row in members]
    cells = [[name, *(row[place] for row in every)] for place, name in enumerate(columns)]
    widths = _widths(cells, width)
    numbers = [all(_NUMBER.fullmatch(cell) for cell in column[1:]) for column in cells]

    def lines(row: Sequence[str]) -> list[str]:
        parts = [_broken(cell, size) for cell, size in zip(row, widths, strict=True)]
        return [
            _GAP.join(
                part.rjust(size) if number else part.ljust(size)
                for part, size, number in zip(line, widths, numbers, strict=True)
            ).rstrip()
            for line in itertools.zip_longest(*parts, fillvalue="")
        ]

    made = [*lines(columns), _GAP.join("─" * size for size in widths)]
    for place, (name, members) in enumerate(groups):
        if grouped:
            made += ([""] if place else []) + _broken(name, width)
        made += [line for row in members for line in lines(row)]
    return made


def _tied(text: str) -> str:
    """The text with signs tied to the number that follows."""
    return re.sub(r"([±≤≥]) ", "\\1\u00a0", text)


def _broken(text: str, size: int) -> list[str]:
    lines = textwrap.wrap(_tied(text), size, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\u00a0", " ") for line in lines]


def _widths(cells: Sequence[Sequence[str]], width: int) -> list[int]:
    """Widths of the columns: as wide as their cells, the widest ones narrowed first, none below its longest word."""
    widths = [max(map(len, column)) for column in cells]
    least = [max(len(word) for cell in column for word in _tied(cell).split(" ")) for column in cells]
    while sum(widths) + len(_GAP) * (len(widths) - 1) > width:
        wide = [place for place, size in enumerate(widths) if size > least[place]]
        if not wide:
            break
        widths[max(wide, key=lambda place: widths[place])] -= 1
    return widths
