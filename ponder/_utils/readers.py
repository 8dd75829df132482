"""Readers of folders: the function that reads a folder is chosen by the name of a file in it.

A module that reads folders must not import the modules above it that write them. So readers are
entry points of a group: those of this library are in its `pyproject.toml`, and another package may
declare more in its own.

    [project.entry-points."ponder.stages"]
    "my-format.json" = "my_package.reading:read_stage"
"""

from __future__ import annotations

from functools import cache
from importlib import metadata
from pathlib import Path

from ponder.errors import CheckpointError

__all__ = ["RANKERS", "STAGES", "read_folder"]

RANKERS = "ponder.rankers"
"""Readers of folders that order candidates."""
STAGES = "ponder.stages"
"""Readers of folders that can be a stage of a cascade."""


def read_folder(kind: str, folder: Path) -> object:
    """Read a folder by its reader, whose module is imported now.

    Args:
        kind: The group of entry points: `STAGES` or `RANKERS`.
        folder: The folder.

    Raises:
        CheckpointError: The folder holds no file of a reader.
    """
    readers = _readers(kind)
    for name, reader in readers.items():
        if (folder / name).is_file():
            return reader.load()(folder)
    files = ", ".join(readers) or "no reader, since the package is not installed"
    raise CheckpointError(
        f"{folder}: expected the folder of a model or an export; got none of {files}."
    )


@cache
def _readers(kind: str) -> dict[str, metadata.EntryPoint]:
    """Return readers by file name; config.json is last, since several kinds of folder hold one."""
    points = {point.name: point for point in metadata.entry_points(group=kind)}
    names = sorted(points, key=lambda name: (name == "config.json", name))
    return {name: points[name] for name in names}
