"""Whether a model's folder is still the one that was read: by the digests of its files."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

from ponder._utils.files import digest_of
from ponder.errors import CheckpointError

__all__ = ["FolderWatch", "digests_of"]

_Stamp = tuple[str, int, int, int]


def digests_of(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file in a folder, by name; hidden files and folders are left out.

    Raises:
        CheckpointError: The folder or one of its files cannot be read.
    """
    return {path.name: digest_of(path) for path in _files(folder)}


class FolderWatch:
    """Looks whether the files of a folder are those that were read.

    Files are hashed again only where their sizes, times or inodes differ from those of the last look.

    Args:
        folder: The folder.
        digests: What `digests_of` gave when the model was read. Files that came later are none of the model's.
        written: A file that the service itself writes, which is no part of the model wherever it lies; None for none.
    """

    def __init__(self, folder: Path, digests: Mapping[str, str], written: Path | None = None) -> None:
        own = None if written is None else written.resolve()
        self._folder = folder
        self._digests = {name: digest for name, digest in digests.items() if (folder / name).resolve() != own}
        self._stamps: list[_Stamp] | None = None
        self._changed = False
        self._lock = threading.Lock()

    def changed(self) -> bool:
        """Whether a file has another content than the one that was read, or is gone."""
        with self._lock:
            try:
                stamps = [_stamp(self._folder / name) for name in sorted(self._digests)]
                if stamps != self._stamps:
                    found = {name: digest_of(self._folder / name) for name in self._digests}
                    self._changed, self._stamps = found != self._digests, stamps
            except (OSError, CheckpointError):
                self._changed, self._stamps = True, None
            return self._changed


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise CheckpointError(f"{folder}: expected a folder that can be read ({error.strerror or error}).") from error


def _stamp(path: Path) -> _Stamp:
    found = path.stat()
    return path.name, found.st_size, found.st_mtime_ns, found.st_ino
