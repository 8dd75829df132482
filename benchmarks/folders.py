"""Folders of a command line, checked before anything is done: those to read from, and those to write to."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ponder.errors import ArgumentError

__all__ = ["check_folder", "check_writable"]


def check_folder(option: str, folder: Path | None) -> None:
    """Refuse a folder to read from that is not there; `option` gave it."""
    if folder is not None and not folder.is_dir():
        raise ArgumentError(option, expected="a folder that is there", got=str(folder), remedy="Correct the path.")


def check_writable(folder: Path, option: str = "--out") -> None:
    """Refuse, before anything is trained, a folder that cannot be written to; `option` gave it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # it has no name, so a kill leaves nothing
    except OSError as error:
        raise ArgumentError(
            option,
            expected="a folder that can be written",
            got=f"{folder} ({error.strerror})",
            remedy="Choose another.",
        ) from error
