"""Saving and loading a wrapped model: weights as safetensors, hyper-parameters as JSON, and both as one save.

The two files of a save cannot be replaced in one act, so only one of them is replaced: the weights get a name of their
own, made of their digest, and `ponder.json` names them. Whoever is killed between the two has changed nothing yet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ponder._utils.files import (
    digest_of,
    json_text,
    locked,
    make_folder,
    part_folder,
    put_in_place,
    read_json,
    read_tensors,
    remove_leftovers,
    unwritable,
    write_json,
    write_tensors,
)
from ponder.engine.certificates import policy_to_hand_on
from ponder.engine.model import check_model
from ponder.errors import ArgumentError, CheckpointError
from ponder.wrapper import PonderWrapper

__all__ = ["load", "save"]

_FORMAT = "ponder-model-2"
_FORMAT_1 = "ponder-model-1"  # version 0.1: the weights are always in model.safetensors
_WEIGHTS_1 = "model.safetensors"
_WEIGHTS = re.compile(r"model-[0-9a-f]{16}\.safetensors")
_SETTINGS = "ponder.json"
_ATTEMPTS = 20
M = TypeVar("M", bound=PonderWrapper)


def save(model: PonderWrapper, folder: str | Path) -> None:
    """Write a wrapped model: `ponder.json` (policy, prior, objective, schedule), and the weights that it names.

    A save is whole or has not happened, also where the process is killed, the disk is full, or several processes save
    into one folder: `ponder.json` is replaced last, in one act, and the weights of the save before go after that.

    Args:
        model: The model.
        folder: Made where it does not exist.

    Raises:
        ArgumentError: The folder cannot be written, or the model keeps what is no tensor of its own (extra state, an
            expanded buffer).

    Example:
        >>> import tempfile
        >>> model = PonderWrapper(nn.Linear(4, 4), num_steps=3, head=nn.Linear(4, 2), policy=policies.Confidence(0.9))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(model, folder)
        ...     again = load(PonderWrapper(nn.Linear(4, 4), num_steps=3, head=nn.Linear(4, 2)), folder)
        >>> again.policy
        Confidence(threshold=0.9)
    """
    check_model(model)
    settings = {"format": _FORMAT, **model.settings(), "policy": policy_to_hand_on(model).to_dict()}
    json_text(_SETTINGS, settings)  # refused before anything is made
    weights = _apart(_unshared(_tensors(model)))
    folder = make_folder(folder)
    with locked(folder) as alone:
        remove_leftovers(folder)
        before = _named_by(folder)
        name, digest = _write_weights(folder, weights)
        try:
            write_json(folder / _SETTINGS, {**settings, "weights": name, "digest": digest})
        except BaseException:
            if name != before:
                (folder / name).unlink(missing_ok=True)
            raise
        # Without the lock, other weights may be those of a save that is going on.
        others = [path.name for path in folder.iterdir() if _WEIGHTS.fullmatch(path.name)] if alone else []
        for old in {before, *others} - {name, None}:
            (folder / str(old)).unlink(missing_ok=True)


def load(model: M, folder: str | Path) -> M:
    """Read what `save` wrote into a model that was built in the same way, and return it.

    The policy, prior and objective become those that were saved.

    Raises:
        CheckpointError: A file is missing, truncated, foreign, of another save, or of a model of another shape; the
            model is then as it was before.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ponder.save(model, folder)
        ...     again = ponder.PonderWrapper(nn.Linear(8, 8), 4, head=nn.Linear(8, 3), lambda_head=ponder.LambdaHead(8))
        ...     same = ponder.load(again, folder)
        >>> same.policy, bool((same.eval()(inputs).outputs == model.eval()(inputs).outputs).all())
        (Confidence(threshold=0.9), True)
    """
    settings, weights, place = _read(Path(folder))
    own = _tensors(model)
    first = _first_names(own)
    shared = {name for name in own if first[name] != name}
    missing, foreign = sorted(own.keys() - weights.keys() - shared), sorted(weights.keys() - own.keys())
    other = sorted(k for k in own.keys() & weights.keys() if _form(own[k]) != _form(weights[k]))
    if missing or foreign or other:
        raise CheckpointError(
            f"{place}: of another model: missing {missing}, unknown {foreign}, other shape {other}. "
            "Build the model as it was when it was saved."
        )
    untied = [k for k in sorted(shared & weights.keys()) if not _equal(weights[k], weights[first[k]])]
    if untied:
        raise CheckpointError(
            f"{place}: of a model in which {', '.join(untied)} had weights of their own; got one that shares them with "
            f"{', '.join(first[k] for k in untied)}. Build the model as it was when it was saved."
        )
    model.apply_settings(settings)
    model.load_state_dict(weights, strict=False)
    model.take_saved_policy(model.policy)
    return model


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and bool(((one == other) | (one.isnan() & other.isnan())).all())


def _form(tensor: Tensor) -> tuple[object, ...]:
    """What the saved tensor must share with the model's own: its shape and its kind of numbers, not their precision."""
    return tuple(tensor.shape), tensor.is_floating_point(), tensor.is_complex()


def _write_weights(folder: Path, weights: Mapping[str, Tensor]) -> tuple[str, str]:
    """Write the weights under a name of their own, and tell that name and their digest."""
    try:
        with part_folder(folder / "model") as made:
            write_tensors(made / _WEIGHTS_1, weights, {"format": _FORMAT})
            digest = digest_of(made / _WEIGHTS_1)
            name = f"model-{digest[:16]}.safetensors"
            put_in_place(made / _WEIGHTS_1, folder / name)
    except OSError as error:
        raise unwritable(folder, error) from error
    return name, digest


def _named_by(folder: Path) -> str | None:
    """The weights of the save that lies in a folder, if any."""
    try:
        settings = read_json(folder / _SETTINGS)
    except CheckpointError:
        return None
    if settings.get("format") == _FORMAT_1:
        return _WEIGHTS_1
    name = settings.get("weights")
    return name if isinstance(name, str) and _WEIGHTS.fullmatch(name) else None


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], Path]:
    """The settings, the weights that belong to them, and where these lie."""
    for _ in range(_ATTEMPTS):
        settings = read_json(folder / _SETTINGS)
        if settings.get("format") == _FORMAT_1:
            return settings, read_tensors(folder / _WEIGHTS_1, _FORMAT_1)[0], folder / _WEIGHTS_1
        name, digest = settings.get("weights"), settings.get("digest")
        if settings.get("format") != _FORMAT or not isinstance(name, str) or not _WEIGHTS.fullmatch(name):
            raise CheckpointError(
                f"{folder / _SETTINGS}: not written by ponder.save (no format {_FORMAT!r} that names its weights)."
            )
        fault = "truncated, or not those that were saved with it"
        try:
            if digest_of(folder / name) == digest:
                return settings, read_tensors(folder / name, _FORMAT)[0], folder / name
        except CheckpointError as error:
            fault = f"not to be read ({error})"
        if read_json(folder / _SETTINGS) == settings:
            raise CheckpointError(f"{folder / name}: the weights that {_SETTINGS} names are {fault}. Save again.")
        # Another process has saved meanwhile, and removed what it replaced.
    raise CheckpointError(f"{folder}: other processes save there all the time. Load it when they are done.")


def _tensors(model: PonderWrapper) -> dict[str, Tensor]:
    """The state of a model, all of it tensors that can be saved and replaced."""
    state: dict[str, Any] = model.state_dict()
    for name, value in state.items():
        remedy = "Keep it as a buffer that is a clone: register_buffer(name, tensor.clone())."
        if not isinstance(value, Tensor):
            got = type(value).__name__
        elif is_lazy(value):
            got, remedy = "one that no batch has given a shape", "Run the model once on a batch first."
        elif value.is_meta:
            got, remedy = "a tensor on the meta device", "Give it memory first: model.to_empty(device='cpu')."
        elif value.layout is not torch.strided:
            got, remedy = f"a tensor of layout {value.layout}", "Keep it dense: tensor.to_dense()."
        elif any(size > 1 and not stride for size, stride in zip(value.shape, value.stride(), strict=True)):
            got = "an expanded tensor"
        else:
            continue
        raise ArgumentError(
            "model",
            expected="a state of tensors with memory of their own",
            got=f"{got} as {name!r}",
            remedy=remedy,
        )
    return state


def _first_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """For each name, the first under which the same tensor is known; its own where it is known once."""
    seen: dict[object, str] = {}
    first: dict[str, str] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride())) if tensor.numel() else name
        first[name] = seen.setdefault(key, name)
    return first


def _unshared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with each shared tensor once, under its first name."""
    first = _first_names(state)
    return {name: tensor for name, tensor in state.items() if first[name] == name}


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with a copy of what is a part of another tensor: safetensors refuses shared memory."""
    seen: set[int] = set()
    made: dict[str, Tensor] = {}
    for name, tensor in state.items():
        storage = tensor.untyped_storage().data_ptr()
        made[name] = tensor.clone() if storage in seen else tensor.contiguous()
        seen.add(storage)
    return made
