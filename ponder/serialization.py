"""Saving and loading a wrapped model: weights as safetensors, hyper-parameters as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from ponder._utils.files import make_folder, read_json, read_tensors, write_json, write_tensors
from ponder.errors import CheckpointError
from ponder.wrapper import PonderWrapper

__all__ = ["load", "save"]

_FORMAT = "ponder-model-1"
_WEIGHTS = "model.safetensors"
_SETTINGS = "ponder.json"
M = TypeVar("M", bound=PonderWrapper)


def save(model: PonderWrapper, folder: str | Path) -> None:
    """Write a wrapped model: `model.safetensors` and `ponder.json` (policy, prior, objective, schedule).

    Args:
        model: The model.
        folder: Made where it does not exist.

    Raises:
        ArgumentError: The folder cannot be written.
    """
    folder = make_folder(folder)
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
