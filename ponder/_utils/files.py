"""Files and folders, whole or not at all: what is written takes the place of the old by renaming.

`replace_bytes` replaces one file. `replaced_folder` is for what needs several: they are written
beside the old ones, which are renamed before the new ones are.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

from ponder.errors import CheckpointError, PonderError

__all__ = ["ABOUT", "INDEXES", "reading", "replace_bytes", "replace_text", "replaced_folder"]

ABOUT = ("ponder.json", "report.html")
"""What a command says of the model in a folder: it goes when another model takes the place."""
INDEXES = ("config.json", "export.json", "cascade.json", "rerank.json", "student.safetensors")
"""Files by which readers know what a folder is; they refuse a folder without any."""
_README = "README.md"


@contextmanager
def reading(path: str | Path, noun: str) -> Iterator[None]:
    """Turn what damaged contents raise inside the block into an error that names the file.

    Args:
        path: The file or folder that is read.
        noun: What it is, for the message.
    """
    try:
        yield
    except (PonderError, OSError, ImportError):
        raise  # it says already what is wrong, or it is not about the contents
    except Exception as error:  # libraries that read them have classes of their own
        raise CheckpointError(
            f"{path}: a damaged {noun} ({error!r:.300}). Write it again."
        ) from error


def replace_text(path: str | Path, text: str) -> None:
    """Replace a text file in one act; see `replace_bytes`."""
    replace_bytes(path, text.encode())


def replace_bytes(path: str | Path, content: bytes) -> None:
    """Replace a file in one act: a reader sees the old content or the new one.

    The content is written to a file beside it, flushed to the disk, and renamed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def replaced_folder(folder: str | Path, owned: Collection[str]) -> Iterator[Path]:
    """Yield a new folder, whose entries take the place of those of `folder` when the block ends.

    1. The new entries are written into a hidden folder inside `folder`, so on its file system, and
       flushed to the disk. If the block raises, the old ones stay.
    2. The old entries are renamed into the hidden folder, their index first.
    3. The new ones are renamed to their place, the index last.
    4. The hidden folder is removed.

    After a kill at any point, readers find the old folder or the new one, or, between 2 and 3,
    refuse one without an index; both are in the hidden folder then. As `folder` itself stays where
    it is, it may be a mount point or the working directory.

    The folder that is yielded has the name of `folder` and its README, at which writers of model
    cards look, and nothing else. Parts of it may be replaced in turn.

    Args:
        folder: The folder; it need not exist.
        owned: Patterns of the names that belong to what is written. Other entries of an older
            folder are kept, unless the new one has them too.

    Example:
        >>> from pathlib import Path
        >>> from ponder._utils.files import replaced_folder
        >>> for words in ("old", "new"):
        ...     with replaced_folder("saved", owned=["export.json"]) as new:
        ...         _ = (new / "export.json").write_text(words)
        >>> Path("saved/export.json").read_text()
        'new'
    """
    place = Path(folder).resolve()
    if place.exists() and not place.is_dir():
        raise NotADirectoryError(f"{folder} is a file; name a folder.")
    is_new = not place.exists()
    hidden = place / f".{secrets.token_hex(4)}"
    new = hidden / "new" / place.name
    new.mkdir(parents=True)
    try:
        if (place / _README).is_file():
            shutil.copy2(place / _README, new)
        yield new
        _flush(new)
    except BaseException:
        shutil.rmtree(hidden)
        if is_new:
            place.rmdir()
        raise
    _exchange(new, place, hidden, owned)
    shutil.rmtree(hidden, ignore_errors=True)


def _exchange(new: Path, place: Path, hidden: Path, owned: Collection[str]) -> None:
    """Rename the old entries of a folder into a hidden one, and the new ones to their place."""
    old = hidden / "old"
    old.mkdir()
    replaced: list[Path] = []
    for entry in place.iterdir():
        is_owned = any(fnmatchcase(entry.name, pattern) for pattern in owned)
        if entry != hidden and (is_owned or (new / entry.name).exists()):
            replaced.append(entry)
    for entry in sorted(replaced, key=_is_index, reverse=True):
        os.replace(entry, old / entry.name)
    for entry in sorted(new.iterdir(), key=_is_index):
        os.replace(entry, place / entry.name)


def _is_index(path: Path) -> bool:
    return path.name in INDEXES


def _flush(folder: Path) -> None:
    """Flush the files of a folder to the disk, so that they are there before they are renamed."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file, suppress(OSError):  # read-only files of some systems
                os.fsync(file.fileno())
