"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["markdown_table"]


def markdown_table(columns: Sequence[object], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table; a pipe in a cell is escaped, and the end of a line becomes a space.

    Example:
        >>> markdown_table(("depth", "solved"), [(8, "97.0%")])
        ['| depth | solved |', '| --- | --- |', '| 8 | 97.0% |']
    """
    return [f"| {' | '.join(map(_cell, line))} |" for line in (columns, ["---"] * len(columns), *rows)]


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", r"\|")
