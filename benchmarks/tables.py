"""What tables of results are made of, and pages that hold them between two marks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from ponder._utils.files import write_text
from ponder.errors import PonderError

__all__ = ["check_marks", "mark", "spread", "write_between_marks"]

_BEGIN, _END = "<!-- results: written by the benchmark -->", "<!-- end of results -->"


def mark(values: Iterable[float | None], competing: Sequence[bool] | None = None) -> list[str]:
    """A column with its best value bold and its second underlined, as they are printed: ties share a mark.

    Example:
        >>> mark([56.61, 58.1, 56.58, None])
        ['<u>56.6</u>', '**58.1**', '<u>56.6</u>', '–']
    """
    printed = ["–" if value is None or math.isnan(value) else f"{round(value, 1) + 0.0:.1f}" for value in values]
    places = [True] * len(printed) if competing is None else competing
    ranks = sorted({float(text) for text, can in zip(printed, places, strict=True) if can and text != "–"})[::-1]
    form = {f"{ranks[0]:.1f}": "**{}**", f"{ranks[1]:.1f}": "<u>{}</u>"} if len(ranks) > 1 else {}
    return [form.get(t, "{}").format(t) if can else t for t, can in zip(printed, places, strict=True)]


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
    before, after = _around_marks(page)
    write_text(page, f"{before}{_BEGIN}\n\n{text.strip()}\n\n{_END}{after}")


def check_marks(*pages: Path | None) -> None:
    """Refuse, before anything is measured, pages that `write_between_marks` could not write into; None is no page."""
    for page in pages:
        if page is not None:
            _around_marks(page)


def _around_marks(page: Path) -> tuple[str, str]:
    """What stands before the two marks of a page, and what behind them."""
    before, begin, rest = (page.read_text(encoding="utf-8") if page.exists() else "").partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise PonderError(
            f"{page}: expected the lines {_BEGIN!r} and {_END!r}, between which results are written. "
            f"Add them where these belong."
        )
    return before, after
