"""Whether what is saved can be read again: a configuration has to make the model that it is saved with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ponder.errors import ArgumentError

__all__ = ["check_made_again"]


def check_made_again(
    name: str,
    model: nn.Module,
    make: Callable[[], nn.Module],
    remedy: str,
    *,
    may_lack: str = "",
    state: Mapping[str, Any] | None = None,
) -> None:
    """Refuse a model that its configuration does not make again: what is read would be another, or nothing.

    Compared are the classes of all modules, and the names and shapes of all weights. Hooks, and functions that were put
    on single modules, are no part of what PyTorch saves.

    Args:
        name: What is saved, for the message.
        model: The model.
        make: A function that makes it from its configuration; it is called on the meta device, without memory.
        remedy: What to do, full sentences.
        may_lack: A part that a model may have been built without: its weights are then not read.
        state: The weights that are saved, where the model holds others, as one that is spread over processes does; its
            modules are then no longer those that it was made of.

    Raises:
        ArgumentError: It differs from what was made.
    """
    try:
        with torch.device("meta"):
            made = make()
    except Exception:  # a class that cannot be made without memory
        return
    own, theirs = (
        {key: tuple(getattr(weight, "shape", ())) for key, weight in each.items()}
        for each in (model.state_dict() if state is None else state, made.state_dict())
    )
    lacked = {key for key in theirs.keys() - own.keys() if may_lack in key.split(".")}
    other = [key for key in {**own, **theirs} if own.get(key) != theirs.get(key) and key not in lacked]
    if state is None:
        known = {path: _class_of(module) for path, module in made.named_modules()}
        other += [path for path, module in model.named_modules() if known.get(path) != _class_of(module)]
    if other:
        raise ArgumentError(
            name,
            expected="a model that its configuration makes again, to be read from a folder",
            got=f"a {type(model).__name__}, for which a {type(made).__name__} would be read; {len(other)} of its "
            f"weights or modules differ, {next(filter(None, other), 'its own class')} among them",
            remedy=remedy,
        )


def _class_of(module: nn.Module) -> tuple[str, str]:
    """The class by its name: parametrised modules have one each; what FSDP makes of a class is that class."""
    made = next(kind for kind in type(module).__mro__ if not kind.__module__.startswith("torch.distributed"))
    return made.__module__, made.__qualname__
