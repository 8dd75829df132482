"""Files, whole or not at all: tensors as safetensors, everything else as JSON or text. Nothing is ever unpickled."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ponder.errors import ArgumentError, CheckpointError, PonderError

if TYPE_CHECKING:
    from torch import Tensor

try:
    import fcntl
except ImportError:  # no POSIX system
    fcntl = None  # type: ignore[assignment]

_NO_LOCKS = {errno.EROFS, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_PART = re.compile(r"\..+\.(\d+)-[0-9a-f]{8}")  # what `part_folder` makes, and nobody else

__all__ = [
    "alone",
    "digest_of",
    "json_text",
    "locked",
    "make_folder",
    "move",
    "part_folder",
    "put_in_place",
    "read_json",
    "read_tensors",
    "remove_leftovers",
    "unwritable",
    "write_json",
    "write_tensors",
    "write_text",
]


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """Make a folder where it does not exist; an empty name, as of a variable that is not set, is none."""
    if not os.fspath(folder):
        remedy = "Name it; '.' is the working directory."
        raise ArgumentError("folder", expected="the name of a folder", got="an empty one", remedy=remedy)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(Path(folder), error) from error
    return Path(folder)


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all."""
    safetensors = _safetensors()
    from safetensors import SafetensorError

    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        _replace(Path(path), lambda part: safetensors.save_file(content, part, metadata=dict(metadata)))
    except SafetensorError as error:  # a full disk, in the words of that library
        raise unwritable(Path(path), OSError(str(error))) from error


def read_tensors(
    path: str | Path, file_format: str, required: Sequence[str] = ()
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file that `write_tensors` wrote with `file_format`."""
    _safetensors()
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (
        OSError,
        SafetensorError,
        ValueError,
        RuntimeError,
        AttributeError,
    ) as error:  # unknown types of numbers too
        raise CheckpointError(f"{path}: missing, truncated or no safetensors file ({error}).") from error
    lacking = [name for name in required if name not in tensors]
    if metadata.get("format") != file_format or lacking:
        raise CheckpointError(
            f"{path}: expected a file of the format {file_format!r}; got {metadata.get('format')!r}"
            + (f" without {lacking}." if lacking else ".")
        )
    return tensors, metadata


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json_text(path.name, data))


def json_text(name: str, data: Mapping[str, Any]) -> str:
    """What a JSON file of that name is to hold; refused where JSON has no such numbers."""
    try:
        return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        raise ArgumentError(
            "data",
            expected=f"finite numbers alone, as JSON has them, for {name}",
            got=f"NaN or infinity ({error})",
            remedy="Look at the fields of policy, prior, objective and stages.",
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    _replace(path, lambda part: part.write_text(text, encoding="utf-8", newline=""))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; NaN and infinity are no JSON, and numbers that overflow to infinity are none either."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number, parse_float=_finite)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: missing or no JSON ({error}).") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object; got {type(data).__name__}.")
    return data


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: missing or unreadable ({error}).") from error


@contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[bool]:
    """Keep other writers of this module out of `folder`; tells whether that was possible.

    Args:
        folder: The folder.
        shared: Whether the lock is one of readers, of whom many may hold it at a time.

    The lock is on the folder itself, so that no file stays behind, and the system opens it when its holder is killed.
    Some systems and network drives have no such locks: callers must be safe without, and may clean up less.
    """
    handle, held = None, False
    if fcntl is not None:
        try:
            handle = os.open(folder, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            held = True
        except OSError:
            held = False
    try:
        yield held
    finally:
        if handle is not None:
            os.close(handle)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep the file `path` for one holder; who comes meanwhile is refused at once, in this process and in others.

    The lock is on a hidden file beside it, which stays there, since `path` itself is another file after each writing;
    of a link, beside the file that it leads to. Where there are no such locks, as for `locked`, nobody is refused.

    Raises:
        PonderError: Somebody else holds it, or its lock is one that this user may not open.
    """
    real = Path(os.path.realpath(path))
    lock, handle = real.with_name(f".{real.name}.lock"), None
    try:
        try:
            if fcntl is not None:
                lock.parent.mkdir(parents=True, exist_ok=True)
                try:
                    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)  # network drives ask for the right to write
                except PermissionError:  # another user's, who may have left no more than the right to read
                    handle = os.open(lock, os.O_RDONLY)
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PonderError(f"{path}: another process keeps this file; each needs one of its own.") from error
        except OSError as error:
            if error.errno not in _NO_LOCKS and os.path.exists(lock):  # or who writes is told why that cannot be
                raise PonderError(
                    f"{path}: its lock {lock} cannot be taken ({error.strerror}). Let this user read and write it, or "
                    "choose another file."
                ) from error
        yield
    finally:
        if handle is not None:
            os.close(handle)


def move(source: Path, target: Path) -> None:
    """Rename a file or a folder; nothing happens where another process has just done so."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
    except FileNotFoundError:
        return
    except OSError as error:
        raise unwritable(target, error) from error


def remove_leftovers(folder: Path) -> None:
    """Remove the unfinished files and folders of writers that were killed; those of living processes stay."""
    for path in folder.glob(".*.*-*"):
        made = _PART.fullmatch(path.name)
        if made is None or _lives(int(made[1])):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


@contextmanager
def part_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` in which what will become it is made; its name tells the process that writes.

    A folder and not a file, since the libraries that write may make temporary files of their own.
    """
    folder = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put_in_place(part: Path, path: Path) -> None:
    """Give a finished file in a `part_folder` its name: on the disk first, with the rights that the umask leaves."""
    os.chmod(part, part.parent.stat().st_mode & 0o666)
    handle = os.open(part, os.O_RDWR)
    try:
        os.fsync(handle)  # or else a power failure could leave an empty file under the name
    finally:
        os.close(handle)
    os.replace(part, path)


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside `path` and rename, so that a reader never sees half a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part_folder(path) as folder:
            write(folder / path.name)
            put_in_place(folder / path.name, path)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> ArgumentError:
    """The error that says why a place cannot be written."""
    return ArgumentError(
        "folder",
        expected="a place that can be written",
        got=f"{path}: {error.strerror or error}",
        remedy="Choose another, or make room.",
    )


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise PonderError("saving and loading need safetensors: pip install 'ponder-torch[save]'.") from error
    return safetensors.torch
