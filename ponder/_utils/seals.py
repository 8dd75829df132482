"""Seals: is this what was certified? Settings with digests of all that was saved with them.

`write_sealed` writes settings with the digests of the files beside them, the parts, and of the
settings themselves, so that a threshold that is edited is seen as a graph is that was exchanged.
`read_sealed` reads them, and says which parts have changed; a promise is dropped then. The file is
JSON or, with tensors, a safetensors file with the settings in its metadata; nothing is ever
unpickled. A seal is not a signature: anyone who can write the file can seal it.

There are two digests: `digest_of_path` of files, and `digest_of_tensors` of the weights that
answer, which stands in the certificate itself.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ponder._utils.arrays import namespace
from ponder._utils.checks import library
from ponder._utils.files import replace_bytes
from ponder.errors import CheckpointError

__all__ = [
    "Sealed",
    "changed_parts",
    "digest_of_json",
    "digest_of_path",
    "digest_of_tensors",
    "is_sealed",
    "read_sealed",
    "seal",
    "write_sealed",
]

_FIELD = "digests"
_SETTINGS = "settings"
_UNSEALED = ("format", "transformers_version", "evaluations")
"""Settings that decide no answer."""
_OF_CALLS = ("padding", "truncation")
"""Settings of a tokenizer's file that each call overwrites."""


@dataclass(frozen=True, eq=False)
class Sealed:
    """A file as it was read.

    Args:
        settings: The settings, without what `write_sealed` added.
        tensors: The tensors by name; empty for JSON.
        changed: Returns the names of the parts that have changed since the file was written. It
            reads all of them.
    """

    settings: dict[str, Any]
    tensors: dict[str, Any]
    changed: Callable[[], list[str]]


def write_sealed(
    path: str | Path,
    kind: str,
    settings: Mapping[str, object],
    tensors: Mapping[str, Any] | None = None,
    parts: Iterable[str] = (),
) -> None:
    """Replace a file of settings in one act: a reader sees the old content or the new one.

    Args:
        path: The file. Its folder is made if it does not exist.
        kind: What it is, with its version.
        settings: The settings, in plain JSON.
        tensors: Tensors of torch or arrays of NumPy, for a safetensors file.
        parts: Names of the files and folders beside it that belong to it.

    Example:
        >>> from pathlib import Path
        >>> from ponder._utils.seals import read_sealed, write_sealed
        >>> write_sealed("choice.json", "choice-1", {"threshold": 0.9})
        >>> made = read_sealed("choice.json", "choice-1", "choice")
        >>> made.settings, made.changed()
        ({'threshold': 0.9}, [])
        >>> text = Path("choice.json").read_text()
        >>> _ = Path("choice.json").write_text(text.replace("0.9", "0.5"))
        >>> read_sealed("choice.json", "choice-1", "choice").changed()
        ['settings']
    """
    digests = {name: digest_of_path(Path(path).parent / name) for name in parts}
    data = seal(settings, digests)
    if tensors is None:
        text = json.dumps({"format": kind, **data}, indent=1, ensure_ascii=False) + "\n"
        replace_bytes(path, text.encode())
        return
    metadata = {"format": kind, _SETTINGS: json.dumps(data, allow_nan=False)}
    replace_bytes(path, _as_safetensors(tensors, metadata))


def _as_safetensors(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """Return tensors, all of torch or all of NumPy, as a safetensors file."""
    home = "safetensors.numpy"
    contiguous = dict(tensors)
    for name, tensor in contiguous.items():
        if namespace(tensor).__name__ == "torch":
            home = "safetensors.torch"
            # Each in memory of its own, as safetensors asks.
            contiguous[name] = tensor.detach().cpu().contiguous().clone()
    content: bytes = library(home, "a saved file", "torch").save(contiguous, dict(metadata))
    return content


def read_sealed(
    path: str | Path, kind: str, noun: str, tensors: Literal["np", "pt"] | None = None
) -> Sealed:
    """Read what `write_sealed` wrote.

    Args:
        path: The file.
        kind: What it must be.
        noun: What it is, in errors.
        tensors: None for JSON; for a safetensors file whether its tensors are to be arrays of NumPy
            or, by "pt", tensors of torch.

    Raises:
        CheckpointError: The file is missing, truncated, damaged or of another format.
    """
    arrays: dict[str, Any] = {}
    try:
        if tensors is None:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            written = data.pop("format")
        else:
            arrays, metadata = _read_safetensors(path, tensors)
            written = metadata.get("format")
            data = json.loads(metadata.get(_SETTINGS, "{}"))
        if written != kind:
            raise ValueError(f"the format {written}")
        settings = {name: value for name, value in data.items() if name != _FIELD}
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: no {noun} of this version, {kind} ({error!r}).") from error
    folder = Path(path).parent
    return Sealed(settings, arrays, lambda: changed_parts(data, lambda name: folder / name))


def is_sealed(path: str | Path, kind: str) -> bool:
    """Return whether a file is JSON of a kind that `write_sealed` wrote."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and data.get("format") == kind


def _read_safetensors(
    path: str | Path, framework: Literal["np", "pt"]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file."""
    safetensors = library("safetensors", "a saved file", "torch")
    try:
        with safetensors.safe_open(str(path), framework=framework) as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{path}: missing, truncated or no safetensors file ({error})."
        ) from error


def seal(settings: Mapping[str, object], digests: Mapping[str, str]) -> dict[str, object]:
    """Return settings with the digests of the parts, by their names, and of themselves."""
    of_settings = digest_of_json({**settings, _FIELD: dict(digests)})
    return {**settings, _FIELD: {**digests, _SETTINGS: of_settings}}


def changed_parts(data: Mapping[str, object], locate: Callable[[str], Path | None]) -> list[str]:
    """Return the names of the parts that have changed since they were sealed.

    Args:
        data: The settings that `seal` returned, as they were read.
        locate: A function from the name of a part to its path; None if it is missing.
    """
    sealed = data.get(_FIELD)
    digests: dict[str, object] = {}
    if isinstance(sealed, Mapping):
        digests.update(sealed)
    of_settings = digests.pop(_SETTINGS, None)
    changed: list[str] = []
    for name, digest in digests.items():
        path = locate(name)
        if path is None or not path.exists() or digest_of_path(path) != digest:
            changed.append(name)
    if digest_of_json({**data, _FIELD: digests}) != of_settings:
        changed.append(_SETTINGS)
    return changed


def digest_of_path(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of the files in a folder.

    Of JSON that of its contents, not of its layout. Hidden files are left out.
    """
    if path.is_dir():
        files: dict[str, str] = {}
        for each in sorted(path.iterdir()):
            if not each.name.startswith("."):
                files[each.name] = digest_of_path(each)
        return digest_of_json(files)
    if path.suffix != ".json":
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: no JSON ({error}).") from error
    if isinstance(data, dict):
        data = {name: value for name, value in data.items() if name not in _OF_CALLS}
    return digest_of_json(data)


def digest_of_json(data: object) -> str:
    """Return the SHA-256 of JSON data, without fields that decide no answer."""
    if isinstance(data, Mapping):
        data = {name: value for name, value in data.items() if name not in _UNSEALED}
    text = json.dumps(data, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of_tensors(tensors: Iterable[Any]) -> str | None:
    """Return the SHA-256 of tensors in their order, wherever they are and whatever their names.

    Args:
        tensors: Tensors of torch or arrays of NumPy.

    Returns:
        64 hexadecimal digits; None if a tensor has no bytes to read (on the meta device, or packed
        by quantisation).
    """
    digest = hashlib.sha256()
    for tensor in tensors:
        if isinstance(tensor, np.ndarray):
            digest.update(f"{tensor.dtype} {tensor.shape}".encode())
            digest.update(tensor.tobytes())
            continue
        if namespace(tensor).__name__ != "torch" or tensor.is_meta or tensor.is_quantized:
            return None
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        _update_with_bytes(digest, tensor.detach().cpu().contiguous())
    return digest.hexdigest()


def _update_with_bytes(digest: hashlib._Hash, tensor: Any) -> None:
    """Add the bytes of a contiguous tensor, read in place, since NumPy has no bfloat16."""
    if tensor.numel():
        size = tensor.numel() * tensor.element_size()
        digest.update((ctypes.c_char * size).from_address(tensor.data_ptr()))
