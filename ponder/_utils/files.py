"""Files and folders, whole or not at all: what is written takes the place of the old in one act.

`write_tensors`, `write_json` and `replace_text` replace one file. `replaced_folder` is for what
needs several: they are written into a new folder beside the old one, and the two are exchanged by
one call of the system.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from ponder._utils.arrays import Host, namespace
from ponder._utils.checks import library
from ponder.errors import CheckpointError, PonderError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "ABOUT",
    "digest_of_files",
    "read_json",
    "read_tensors",
    "replace_text",
    "replaced_folder",
    "write_json",
    "write_tensors",
]

ABOUT = ("ponder.json", "report.html")
"""What a command says of the model in a folder: it goes when another model takes the place."""
_README = "README.md"
_NEEDS = "a saved file", "torch"
# AT_FDCWD and RENAME_EXCHANGE of Linux.
_HERE = -100
_EXCHANGE = 2


def write_tensors(
    path: str | Path,
    tensors: Mapping[str, Tensor] | Mapping[str, Host],
    metadata: Mapping[str, str],
) -> None:
    """Write tensors, all of torch or all of NumPy, to a safetensors file."""
    home = "safetensors.numpy"
    contiguous: dict[str, Any] = dict(tensors)
    for name, tensor in contiguous.items():
        if namespace(tensor).__name__ == "torch":
            home = "safetensors.torch"
            # Each in memory of its own, as safetensors asks.
            contiguous[name] = tensor.detach().cpu().contiguous().clone()
    safetensors = library(home, *_NEEDS)
    _replace(Path(path), safetensors.save(contiguous, metadata))


@overload
def read_tensors(
    path: str | Path, framework: Literal["np"] = "np"
) -> tuple[dict[str, Host], dict[str, str]]: ...
@overload
def read_tensors(
    path: str | Path, framework: Literal["pt"]
) -> tuple[dict[str, Tensor], dict[str, str]]: ...
def read_tensors(
    path: str | Path, framework: Literal["np", "pt"] = "np"
) -> tuple[dict[str, Host] | dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file.

    Args:
        path: The file.
        framework: Whether to give arrays of NumPy or, by "pt", tensors of torch.

    Raises:
        CheckpointError: The file is missing, truncated or of another format.
    """
    safetensors = library("safetensors", *_NEEDS)
    try:
        with safetensors.safe_open(str(path), framework=framework) as file:
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
            return tensors, file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{path}: missing, truncated or no safetensors file ({error})."
        ) from error


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


def write_json(path: str | Path, kind: str, data: Mapping[str, object]) -> None:
    """Write a JSON object, with the version of what it is as its `format`."""
    replace_text(path, json.dumps({"format": kind, **data}, indent=1, ensure_ascii=False) + "\n")


def read_json(path: str | Path, kind: str, noun: str) -> dict[str, Any]:
    """Read what `write_json` wrote, without the format; `noun` says in errors what is read.

    Raises:
        CheckpointError: The file is missing, no JSON, or of another format.
    """
    try:
        data: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        written = data.pop("format")
        if written != kind:
            raise ValueError(f"the format {written}")
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: no {noun} of this version, {kind} ({error!r}).") from error
    return data


def replace_text(path: str | Path, text: str) -> None:
    """Write a text file."""
    _replace(Path(path), text.encode())


def _replace(path: Path, content: bytes) -> None:
    """Replace a file in one act: a reader sees the old content or the new one.

    The content is written to a file beside it, flushed to the disk, and renamed.
    """
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
def replaced_folder(
    folder: str | Path, indexes: Sequence[str], owned: Collection[str]
) -> Iterator[Path]:
    """Yield a new folder, which takes the place of `folder` as a whole when the block ends.

    The new folder is written beside the old one, flushed to the disk, and exchanged with it:
    whoever reads, or finds the folder after a kill at any point, sees the old one or the new one.
    If the block raises, the old one stays.

    On systems that cannot exchange two folders, the old one is renamed first, so that for a moment
    it is missing. If the folder cannot be renamed (a mount point, the working directory, a parent
    that is read-only), its entries are replaced one by one, the indexes taken away first and given
    back last: after a kill readers refuse the folder.

    The folder that is yielded has the name of `folder` and its README, at which writers of model
    cards look, and nothing else. Parts of it may be replaced as a whole in turn.

    Args:
        folder: The folder; it need not exist.
        indexes: Names of the files without any of which readers refuse the folder.
        owned: Patterns of the names that belong to what is written. Other entries of an older
            folder are kept, unless the new one has them too.

    Example:
        >>> from pathlib import Path
        >>> from ponder._utils.files import replaced_folder
        >>> for words in ("old", "new"):
        ...     with replaced_folder("saved", ["index.json"], owned=["index.json"]) as new:
        ...         _ = (new / "index.json").write_text(words)
        >>> Path("saved/index.json").read_text()
        'new'
    """
    place = Path(folder).resolve()
    if place.exists() and not place.is_dir():
        raise NotADirectoryError(f"{folder} is a file; name a folder.")
    new = _empty_beside(place)
    try:
        if (place / _README).is_file():
            shutil.copy2(place / _README, new)
        yield new
        for entry in _kept(place, new, owned):
            _copy(entry, new / entry.name)
        _flush(new)
        if not _take_place(new, place):
            _replace_entries(new, place, indexes, owned)
        # Other processes may have written beside it meanwhile, as those of a distributed training.
        for entry in _kept(new, place, owned):
            os.rename(entry, place / entry.name)
    finally:
        shutil.rmtree(new.parent, ignore_errors=True)


def _kept(old: Path, new: Path, owned: Collection[str]) -> list[Path]:
    """Return the entries of an old folder that are not replaced, and that the new one lacks."""
    kept: list[Path] = []
    if old.is_dir():
        for entry in old.iterdir():
            is_replaced = _matches(entry, owned) or (new / entry.name).exists()
            if entry != new.parent and not is_replaced:
                kept.append(entry)
    return kept


def _matches(entry: Path, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(entry.name, each) for each in patterns)


def digest_of_files(folder: str | Path) -> str:
    """Return the SHA-256 of the names and contents of all files in a folder, in hexadecimal."""
    digest = hashlib.sha256()
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    for path in sorted(files):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def _empty_beside(place: Path) -> Path:
    """Make an empty folder of the name of another, in a hidden one beside it.

    If its parent is read-only, the hidden one is inside it.
    """
    name = f".{place.name}.{secrets.token_hex(4)}"
    hidden = place.parent / name
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        hidden.mkdir()
    except OSError:
        if not place.is_dir():
            raise
        hidden = place / name
        hidden.mkdir()
    new = hidden / place.name
    new.mkdir()
    return new


def _copy(source: Path, target: Path) -> None:
    """Copy a file or a folder, by links where the file system has these."""
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True, copy_function=_link)
    else:
        _link(source, target)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _flush(folder: Path) -> None:
    """Flush the files of a folder to the disk, so that they are there before it is renamed."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file, suppress(OSError):  # read-only files of some systems
                os.fsync(file.fileno())


def _take_place(new: Path, place: Path) -> bool:
    """Move the folder `new` to `place` by renaming, and return whether that was possible.

    A folder that was at `place` is at `new` afterwards.
    """
    if place.is_dir() and Path.cwd().is_relative_to(place):
        return False  # the process would go on in the folder that is removed
    try:
        os.rename(new, place)  # there was none, or an empty one
        return True
    except OSError:
        if _exchanged(new, place):
            return True
    old = new.with_name(f"{new.name}.old")
    try:
        os.rename(place, old)
    except OSError:
        return False
    os.rename(new, place)
    os.rename(old, new)
    return True


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two folders in one act, which only Linux offers; return whether it did."""
    if os.name != "posix":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    return bool(rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)


def _replace_entries(
    new: Path, place: Path, indexes: Sequence[str], owned: Collection[str]
) -> None:
    """Replace the entries of a folder one by one; between, it has no index."""
    place.mkdir(exist_ok=True)
    for name in indexes:
        (place / name).unlink(missing_ok=True)
    for entry in place.iterdir():
        if entry != new.parent and _matches(entry, owned):
            _remove(entry)
    for entry in sorted(new.iterdir(), key=lambda path: path.name in indexes):
        _remove(place / entry.name)
        os.replace(entry, place / entry.name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
