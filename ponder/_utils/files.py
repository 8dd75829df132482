"""Files, whole or not at all: one safetensors file with settings in its metadata, replaced in one act."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from ponder._utils.arrays import namespace
from ponder.errors import CheckpointError, PonderError

__all__ = ["read_tensors", "replace_text", "write_tensors"]


def write_tensors(path: str | Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Write tensors, all of torch or all of NumPy, to a safetensors file."""
    torch = any(namespace(tensor).__name__ == "torch" for tensor in tensors.values())
    if torch:  # each in memory of its own, as safetensors asks
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    library = _safetensors("safetensors.torch" if torch else "safetensors.numpy")
    _replace(Path(path), library.save(dict(tensors), metadata))


def read_tensors(path: str | Path, framework: Literal["np", "pt"] = "np") -> tuple[dict[str, Any], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file.

    Args:
        path: The file.
        framework: Whether to give arrays of NumPy or, by "pt", tensors of torch.

    Raises:
        CheckpointError: The file is missing, truncated or of another format.
    """
    safetensors = _safetensors("safetensors")
    try:
        with safetensors.safe_open(str(path), framework=framework) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: missing, truncated or no safetensors file ({error}).") from error


def replace_text(path: str | Path, text: str) -> None:
    """Write a text file."""
    _replace(Path(path), text.encode())


def _replace(path: Path, content: bytes) -> None:
    """Write beside `path`, flush to the disk, and rename: a reader sees the old file or the new one."""
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


def _safetensors(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise PonderError("Saving and loading need safetensors: pip install 'ponder-torch[save]'.") from error
