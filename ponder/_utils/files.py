"""Files, whole or not at all: one safetensors file with settings in its metadata, replaced in one act."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ponder._utils.arrays import namespace
from ponder._utils.checks import library
from ponder.errors import CheckpointError

__all__ = ["read_json", "read_tensors", "replace_text", "write_json", "write_tensors"]

_NEEDS = "a saved file", "save"


def write_tensors(
    path: str | Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]
) -> None:
    """Write tensors, all of torch or all of NumPy, to a safetensors file."""
    torch = any(namespace(tensor).__name__ == "torch" for tensor in tensors.values())
    if torch:  # each in memory of its own, as safetensors asks
        tensors = {
            name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()
        }
    safetensors = library("safetensors.torch" if torch else "safetensors.numpy", *_NEEDS)
    _replace(Path(path), safetensors.save(dict(tensors), metadata))


def read_tensors(
    path: str | Path, framework: Literal["np", "pt"] = "np"
) -> tuple[dict[str, Any], dict[str, str]]:
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
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{path}: missing, truncated or no safetensors file ({error})."
        ) from error


def write_json(path: str | Path, kind: str, data: Mapping[str, Any]) -> None:
    """Write a JSON object, with the version of what it is as its `format`."""
    replace_text(path, json.dumps({"format": kind, **data}, indent=1, ensure_ascii=False) + "\n")


def read_json(path: str | Path, kind: str, noun: str) -> dict[str, Any]:
    """Read what `write_json` wrote, without the format; `noun` says in errors what is read.

    Raises:
        CheckpointError: The file is missing, no JSON, or of another format.
    """
    try:
        data: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        if (found := data.pop("format")) != kind:
            raise ValueError(f"the format {found}")
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: no {noun} of this version, {kind} ({error!r}).") from error
    return data


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
