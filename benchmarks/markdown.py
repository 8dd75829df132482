"""Tables of results in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

__all__ = ["spread", "table"]


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    r"""Return a table in Markdown.

    Example:
        >>> print(table(("a", "b"), [(1, "x|y")]))
        | a | b |
        | --- | --- |
        | 1 | x\|y |
    """
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def spread(values: Sequence[float], form: str = "{:.1f}") -> str:
    """Return the median over seeds, with the lowest and the highest if there are several.

    Example:
        >>> spread([0.5, 0.75, 0.7], "{:.0%}"), spread([0.5], "{:+.1f}")
        ('70% (50%–75%)', '+0.5')
    """
    middle = form.format(statistics.median(values))
    if len(values) < 2:
        return middle
    return f"{middle} ({form.format(min(values))}–{form.format(max(values))})"
