"""Tables of results in Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

__all__ = ["mark", "spread", "table"]


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    r"""Return a table in Markdown.

    Example:
        >>> print(table(("a", "b"), [(1, "x|y")]))
        | a | b |
        | --- | --- |
        | 1 | x\|y |
    """
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def mark(values: Sequence[float | None]) -> list[str]:
    """Return a column as it is printed, its best value bold and its second underlined: ties share a mark.

    Example:
        >>> mark([56.61, 58.1, 56.58, None])
        ['<u>56.6</u>', '**58.1**', '<u>56.6</u>', '–']
    """
    printed = ["–" if value is None or math.isnan(value) else f"{round(value, 1) + 0.0:.1f}" for value in values]
    ranks = sorted({float(text) for text in printed if text != "–"})[::-1]
    form = {f"{ranks[0]:.1f}": "**{}**", f"{ranks[1]:.1f}": "<u>{}</u>"} if len(ranks) > 1 else {}
    return [form.get(text, "{}").format(text) for text in printed]


def spread(values: Sequence[float], form: str = "{:.1f}") -> str:
    """Return the median over seeds, with the lowest and the highest where there are several.

    Example:
        >>> spread([0.5, 0.75, 0.7], "{:.0%}"), spread([0.5], "{:+.1f}")
        ('70% (50%–75%)', '+0.5')
    """
    middle = form.format(statistics.median(values))
    return middle if len(values) < 2 else f"{middle} ({form.format(min(values))}–{form.format(max(values))})"
