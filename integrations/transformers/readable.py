"""Whether what is saved can be read again: a configuration has to make the model that it is saved with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoModel

from ponder.errors import ArgumentError
from ponder.integrations.transformers.adapter import layer_of
from ponder.integrations.transformers.configuration import PonderConfig, fields_of
from ponder.integrations.transformers.encoders import encoder_of
from ponder.integrations.transformers.heads import Heads

__all__ = ["check_encoder", "check_heads", "check_made_again"]


def check_encoder(model: Any, state_dict: Mapping[str, Any] | None) -> None:
    """Refuse an encoder that is not made again from its configuration, or whose layers are not those of the steps.

    Args:
        model: A model of this package.
        state_dict: The weights to be saved, where they are not the model's own.

    Raises:
        ArgumentError: It is of a class of its owner's, say, its parts were exchanged, or it holds adapters of peft.
    """
    prefix, saved = f"{model.base_model_prefix}.", None
    if state_dict is not None:
        saved = {name.removeprefix(prefix): state_dict[name] for name in state_dict if name.startswith(prefix)}
    remedy = (
        "Merge adapters, and put the change into encoder.config, such as num_hidden_layers of a shorter encoder. "
        "What no configuration says is kept by torch.save(model.state_dict(), …) alone."
    )
    if type(model.encoder.config) not in MODEL_MAPPING:
        raise ArgumentError(
            "encoder",
            expected="a model that its configuration makes again, to be read from a folder",
            got=f"one of a {type(model.encoder.config).__name__}, which AutoModel does not know",
            remedy=remedy,
        )
    check_made_again(
        "encoder",
        model.encoder,
        lambda: encoder_of(
            AutoModel.from_config(
                PonderConfig(encoder=fields_of(model.encoder)).encoder_config(), trust_remote_code=False
            )
        ),
        remedy,
        may_lack="pooler",
        state=saved,
    )
    layers = {id(module) for module in model.encoder.modules()}
    if gone := [n for n, step in enumerate(model.ponder.steps.fns, 1) if layer_of(step) not in (None, *layers)]:
        raise ArgumentError(
            "encoder",
            expected="the layers that the steps run",
            got=f"others in the place of those of steps {gone}",
            remedy="Change layers before from_encoder, which makes the steps of them.",
        )


def check_heads(model: Any) -> None:
    """Refuse heads that the recipe does not make again: weights of the same names would be read into others."""
    inside, recipe = model.ponder, model.recipe
    remedy = (
        "Build the model with from_encoder and a ponder.recipes.Recipe that makes these heads. Others are kept by "
        "torch.save(model.state_dict(), …) alone."
    )
    check_made_again(
        "head",
        Heads(inside.head, inside.lambda_head),
        lambda: Heads(*model.make_heads(recipe, inside.num_steps)),
        remedy,
    )
    own = getattr(inside.lambda_head, "initial", None)
    if recipe.lambda_head is not None and own != recipe.lambda_head.initial:
        raise ArgumentError(
            "lambda_head",
            expected=f"initial={recipe.lambda_head.initial!r}, as the recipe makes it, to be read from a folder",
            got=f"initial={own!r}",
            remedy=remedy,
        )


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
