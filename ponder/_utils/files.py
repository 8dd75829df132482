"""Files, whole or not at all: tensors as safetensors, everything else as JSON or text. Nothing is ever unpickled."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ponder.errors import ArgumentError, CheckpointError, PonderError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "make_folder",
    "move",
    "read_json",
    "read_tensors",
    "remove_leftovers",
    "write_json",
    "write_tensors",
    "write_text",
]


def make_folder(folder: str | Path) -> Path:
    """Make a folder where it does not exist."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(Path(folder), error) from error
    return Path(folder)


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all."""
    safetensors = _safetensors()
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    _replace(Path(path), lambda part: safetensors.save_file(content, part, metadata=dict(metadata)))


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
    except (OSError, SafetensorError) as error:
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
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    _replace(path, lambda part: part.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: missing or no JSON ({error}).") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object; got {type(data).__name__}.")
    return data


def move(source: Path, target: Path) -> None:
    """Rename a file or a folder; nothing happens where another process has just done so."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unwritable(target, error) from error


def remove_leftovers(folder: Path) -> None:
    """Remove the unfinished files of writers in this module that were killed; those of living processes stay."""
    for path in folder.glob(".*.*-*"):
        process = path.name.rpartition("-")[0].rpartition(".")[2]
        if process.isdecimal() and not _lives(int(process)):
            path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside `path` and rename, so that a reader never sees half a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.{os.getpid()}-", dir=path.parent)
        os.close(handle)
        try:
            write(Path(name))
            os.chmod(name, 0o644)
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> ArgumentError:
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
