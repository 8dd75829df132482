"""Whether the exits of a folder were fitted to texts or to pairs: the commands `exits` and `export` keep it there."""

from __future__ import annotations

from pathlib import Path

from ponder._utils.files import read_json

__all__ = ["EXITS_REPORT", "EXPORT_REPORT", "fitted_columns"]

EXITS_REPORT = "exits-report.json"
"""What `ponder exits` writes into its folder: among all else, the columns that it read."""
_MANIFEST, _EXITS = "export.json", "exits.json"
EXPORT_REPORT = "export-report.json"
"""What `ponder export` writes into its folder: among all else, those columns."""


def fitted_columns(folder: Path) -> tuple[str, ...]:
    """Names of the one or two columns that the exits of a folder were fitted to; empty where no file tells them."""
    for report in (folder / EXPORT_REPORT, folder / EXITS_REPORT, folder / _MANIFEST, folder / _EXITS):
        columns = read_json(report).get("columns") if report.is_file() else None
        if columns:
            return tuple(str(name) for name in columns)
    return ()
