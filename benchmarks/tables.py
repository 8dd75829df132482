"""Tables of results as Markdown, and pages that hold them between two marks."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from ponder._utils.files import write_text
from ponder.errors import PonderError

__all__ = ["markdown_table", "spread", "write_between_marks"]

_BEGIN, _END = "<!-- results: written by the benchmark -->", "<!-- end of results -->"


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table.

    Example:
        >>> markdown_table(("depth", "solved"), [("8", "97.0%")])
        ['| depth | solved |', '| --- | --- |', '| 8 | 97.0% |']
    """
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]


def spread(values: Sequence[float], form: str) -> str:
    """The mean over seeds, and their sample standard deviation where there are several.

    Example:
        >>> spread([0.5, 0.75], "{:.0%}"), spread([0.5], "{:+.1f}")
        ('62% ± 18%', '+0.5')
    """
    mean = form.format(statistics.fmean(values))
    return mean if len(values) < 2 else f"{mean} ± {form.replace('+', '').format(statistics.stdev(values))}"


def write_between_marks(page: Path, text: str) -> None:
    """Replace what stands between the two marks of a Markdown page.

    Raises:
        PonderError: The page is not there, or has no marks.
    """
    before, begin, rest = (page.read_text(encoding="utf-8") if page.exists() else "").partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise PonderError(
            f"{page}: expected the lines {_BEGIN!r} and {_END!r}, between which results are written. "
            f"Add them where these belong."
        )
    write_text(page, f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}")
