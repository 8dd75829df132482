"""Tables of the problems, from results alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.anything.problems import PROBLEMS
from benchmarks.files import DataError, is_intact, read_json

__all__ = ["COLUMNS", "COMMITTED", "FORMAT", "RIVALS", "results", "rivals", "saved"]

FORMAT = "ponder-anything-1"
COMMITTED = Path(__file__).parents[1] / "results" / "anything"
COLUMNS = (
    "problem",
    "members",
    "fewer at 1%",
    "other answers",
    "fewer at 2%",
    "other answers",
    "seconds at 2%",
    "broken at 1%, 2%",
)
RIVALS = (
    "problem",
    "level",
    "ours",
    "same number for all",
    "margin",
    "Beta rule",
    "pruning",
)
Results = Sequence[Mapping[str, Any]]


def results(folder: Path = COMMITTED) -> Results:
    """Return the results of a folder in the order of the problems.

    Raises:
        DataError: If a result is of another format, or was edited.
    """
    found = dict[str, Mapping[str, Any]]()
    for path in sorted(folder.glob("*.json")):
        result = read_json(path)
        if result.get("format") != FORMAT or not is_intact(result):
            raise DataError(f"{path}: expected a result as it was written, of the format {FORMAT}.")
        found[result["problem"]] = result
    return [found[name] for name in PROBLEMS if name in found]


def saved(found: Results) -> Iterator[tuple[str, ...]]:
    """Yield what each problem saves, under `COLUMNS`."""
    for result in found:
        of_levels = [cell for level in (0.01, 0.02) for cell in _ours(result, level)]
        redraws = result["redraws"]["levels"]
        broken = ", ".join(f"{each['broken']} of {each['draws']:,}" for each in redraws)
        seconds = "–"
        if result["timed"] is not None:
            seconds = f"×{result['timed']['seconds']:.1f} of ×{result['timed']['fewer']:.1f}"
        yield result["problem"], str(result["members"]), *of_levels, seconds, broken


def _ours(result: Mapping[str, Any], level: float) -> tuple[str, str]:
    way = _way(result, "ours", level)
    assert way is not None
    if not way["met"]:
        return "no promise", "–"
    return f"×{way['fewer']:.1f}", f"{way['other']:.2%}"


def rivals(found: Results) -> Iterator[tuple[str, ...]]:
    """Yield how many times fewer members each way asks, under `RIVALS`."""
    for result in found:
        for level in (0.01, 0.02):
            cells = [_way(result, way, level) for way in RIVALS[2:]]
            shown = ["–" if cell is None else f"×{cell['fewer']:.1f}" for cell in cells]
            yield result["problem"], f"{level:.0%}", *shown
        published = [each for each in result["ways"] if each["level"] is None]
        by_way = {each["way"].partition(",")[0]: each for each in published}
        cells = [by_way.get(way) for way in RIVALS[2:]]
        shown = [
            "–" if cell is None else f"×{cell['fewer']:.1f}, {cell['other']:.1%} other"
            for cell in cells
        ]
        if published:
            yield result["problem"], "as published", *shown


def _way(result: Mapping[str, Any], way: str, level: float) -> Mapping[str, Any] | None:
    for each in result["ways"]:
        if each["way"] == way and each["level"] == level:
            return each  # type: ignore[no-any-return]
    return None
