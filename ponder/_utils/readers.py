"""Readers of folders: the function that reads a folder, by the name of a file that it holds.

A room that reads folders cannot name the rooms above it that wrote them. It names a kind of reader,
and the readers are entry points: those of this library are in its `pyproject.toml`, and another
package may declare more in its own.

    [project.entry-points."ponder.stages"]
    "my-format.json" = "my_package.reading:read_stage"
"""

from __future__ import annotations

from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from ponder.errors import CheckpointError

__all__ = ["RANKERS", "STAGES", "read_folder"]

RANKERS = "ponder.rankers"
"""Readers of folders that order candidates."""
STAGES = "ponder.stages"
"""Readers of folders that can be a stage of a cascade."""


def read_folder(kind: str, folder: Path) -> Any:
    """Return what the reader of a folder makes of it; its module is loaded now.

    Args:
        kind: The group of entry points: `STAGES` or `RANKERS`.
        folder: The folder.

    Raises:
        CheckpointError: The folder holds no file of a reader.
    """
    readers = _readers(kind)
    name = next((name for name in readers if (folder / name).is_file()), None)
    if name is None:
        files = ", ".join(readers) or "no reader, since the package is not installed"
        raise CheckpointError(
            f"{folder}: expected the folder of a model or an export; got none of {files}."
        )
    return readers[name].load()(folder)


@cache
def _readers(kind: str) -> dict[str, metadata.EntryPoint]:
    """Return readers by file name; config.json is last, since folders of several kinds hold one."""
    points = {point.name: point for point in metadata.entry_points(group=kind)}
    names = sorted(points, key=lambda name: (name == "config.json", name))
    return {name: points[name] for name in names}
