"""Files: weights and trajectories as safetensors, hyper-parameters as JSON. Nothing is ever unpickled."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from ponder.errors import ArgumentError, CheckpointError, PonderError

if TYPE_CHECKING:
    from ponder.wrapper import PonderWrapper

__all__ = ["load", "read_json", "read_tensors", "save", "write_json", "write_tensors", "write_text"]

_FORMAT = "ponder-model-1"
_WEIGHTS = "model.safetensors"
_SETTINGS = "ponder.json"
M = TypeVar("M", bound="PonderWrapper")


def save(model: PonderWrapper, folder: str | Path) -> None:
    """Write a wrapped model: `model.safetensors` and `ponder.json` (policy, prior, objective, schedule).

    Args:
        model: The model.
        folder: Made where it does not exist.

    Raises:
        ArgumentError: The folder cannot be written.
    """
    folder = _make_folder(folder)
    write_json(folder / _SETTINGS, {"format": _FORMAT, **model.settings()})
    weights = {name: tensor.contiguous() for name, tensor in _unshared(model.state_dict()).items()}
    write_tensors(folder / _WEIGHTS, weights, {"format": _FORMAT})


def load(model: M, folder: str | Path) -> M:
    """Read what `save` wrote into a model that was built in the same way, and return it.

    The policy, prior and objective become those that were saved.

    Raises:
        CheckpointError: A file is missing, truncated, foreign, or of a model of another shape; the model is then
            as it was before.
    """
    folder = Path(folder)
    settings = read_json(folder / _SETTINGS)
    if settings.get("format") != _FORMAT:
        raise CheckpointError(f"{folder / _SETTINGS}: not written by ponder.save (no format {_FORMAT!r}).")
    weights, _ = read_tensors(folder / _WEIGHTS, _FORMAT)
    own = model.state_dict()
    shared = own.keys() - _unshared(own).keys()
    missing, foreign = sorted(own.keys() - weights.keys() - shared), sorted(weights.keys() - own.keys())
    other = sorted(k for k in own.keys() & weights.keys() if own[k].shape != weights[k].shape)
    if missing or foreign or other:
        raise CheckpointError(
            f"{folder / _WEIGHTS}: of another model: missing {missing}, unknown {foreign}, other shape {other}. "
            "Build the model as it was when it was saved."
        )
    model.apply_settings(settings)
    model.load_state_dict(weights, strict=False)
    return model


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


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside `path` and rename, so that a reader never sees half a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        try:
            write(Path(name))
            os.chmod(name, 0o644)
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def _make_folder(folder: str | Path) -> Path:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(Path(folder), error) from error
    return Path(folder)


def _unwritable(path: Path, error: OSError) -> ArgumentError:
    return ArgumentError(
        "folder",
        expected="a place that can be written",
        got=f"{path}: {error.strerror or error}",
        remedy="Choose another, or make room.",
    )


def _unshared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with each shared tensor once, under its first name (safetensors refuses shared memory)."""
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    kept: dict[str, Tensor] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
        if key not in seen or not tensor.numel():
            kept[name] = tensor
        seen.add(key)
    return kept


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise PonderError("saving and loading need safetensors: pip install 'ponder-torch[save]'.") from error
    return safetensors.torch
