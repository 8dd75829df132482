"""The parameters of a model: their groups in an optimiser, and those that a stage trains.

A parameter belongs to the head, to the Lambda head (with the weights of a learned prior), or to the
encoder, which is all the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from torch import nn

from ponder.errors import ArgumentError
from ponder.loops import Loop
from ponder.model.heads import PerStep
from ponder.recipes import Stage
from ponder.wrapper import PonderWrapper

__all__ = ["ParameterGroup", "freeze", "parameter_groups"]

ParameterGroup: TypeAlias = dict[str, Any]
"""A group of parameters, as the optimisers of PyTorch take it."""


def parameter_groups(
    model: nn.Module,
    lr: float,
    lambda_lr: float | None = None,
    head_lr: float | None = None,
    weight_decay: float | None = None,
) -> list[ParameterGroup]:
    """Return parameter groups of the encoder, the heads and the Lambda head for an optimiser.

    New heads on a pretrained encoder learn best at a rate some twenty times that of the encoder;
    PALBERT trains the Lambda head with another one (Section 3.2).

    Args:
        model: A `PonderWrapper`, a `ponder.loops.Loop`, or any module that holds one.
        lr: Learning rate of all other parameters.
        lambda_lr: Learning rate of the Lambda head and of a learned prior; `lr` if None.
        head_lr: Learning rate of the heads; `lr` if None.
        weight_decay: Weight decay; if given, each group comes in two with this key: the weights,
            and, with 0, parameters of fewer than two dimensions (biases and norms).

    Returns:
        Groups with `params`, `lr` and `name` (``"model"``, ``"head"``, ``"lambda"``); a group
        without parameters is left out.

    Example:
        >>> model = PonderWrapper(
        ...     nn.Linear(4, 4), num_steps=3, head=nn.Linear(4, 2), lambda_head=LambdaHead(4)
        ... )
        >>> groups = ponder.parameter_groups(model, lr=1e-4, lambda_lr=5e-5)
        >>> sorted({group["lr"] for group in groups})
        [5e-05, 0.0001]
    """
    rates = {"model": lr, "head": head_lr, "lambda": lambda_lr}
    owner_of = _owners(model)
    by_owner: dict[str, list[nn.Parameter]] = {name: [] for name in rates}
    for weight in model.parameters():
        if weight.requires_grad:
            by_owner[owner_of.get(id(weight), "model")].append(weight)
    groups: list[ParameterGroup] = []
    for name, rate in rates.items():
        if rate is None:
            rate = lr
        weights = by_owner[name]
        if weight_decay is None:
            groups.append({"name": name, "lr": rate, "params": weights})
        else:
            groups += _decayed_and_spared({"name": name, "lr": rate}, weights, weight_decay)
    return [group for group in groups if group["params"]]


def _decayed_and_spared(
    settings: ParameterGroup, weights: Sequence[nn.Parameter], weight_decay: float
) -> list[ParameterGroup]:
    """Return the group of the weights that decay, and that of biases and norms, which do not."""
    decayed = [weight for weight in weights if weight.dim() > 1]
    spared = [weight for weight in weights if weight.dim() < 2]
    return [
        {**settings, "params": decayed, "weight_decay": weight_decay},
        {**settings, "params": spared, "weight_decay": 0.0},
    ]


def _owners(model: nn.Module) -> dict[int, str]:
    """Return the group of each parameter of a head, ``"head"`` or ``"lambda"``, by its id."""
    owners: dict[int, str] = {}
    for halting in model.modules():
        if isinstance(halting, PonderWrapper | Loop):
            owners |= {id(weight): "head" for weight in halting.head.parameters()}
            for part in _halting_parts(halting):
                owners |= {id(weight): "lambda" for weight in part.parameters()}
    return owners


def _halting_parts(model: PonderWrapper | Loop) -> list[nn.Module]:
    """Return the Lambda head and the weights of a learned prior, if there are such."""
    parts = (model.lambda_head, model.prior_weights)
    return [part for part in parts if part is not None]


def freeze(model: PonderWrapper, stage: Stage) -> None:
    """Freeze the parameters that the stage does not train.

    A parameter that a trained part shares with a frozen one is frozen too.
    """
    moving = _trained_weights(model, stage)
    if not moving:
        raise ArgumentError(
            "stage",
            expected=f"something that a stage with train={stage.train!r} may train",
            got="a model without such a part, or all of it frozen before",
            remedy="Early heads need head=ponder.PerStep([…]), a Lambda head "
            "lambda_head=ponder.LambdaHead(width); or call model.requires_grad_(True).",
        )
    for weight in model.parameters():
        if id(weight) not in moving:
            weight.requires_grad_(False)


def _trained_weights(model: PonderWrapper, stage: Stage) -> set[int]:
    """Return the identities of the parameters that a stage trains and that may learn."""
    if stage.train == "all":
        return _identities([model])
    early_heads: list[nn.Module] = []
    last_head = model.head
    if isinstance(model.head, PerStep):
        *early_heads, last_head = model.head.heads
    halting = _halting_parts(model)
    encoder = [model.stem, model.steps, model.readout, last_head]
    if stage.train == "early_heads":
        return _identities(early_heads) - _identities([*encoder, *halting])
    return _identities(halting) - _identities([*encoder, *early_heads])


def _identities(parts: Iterable[nn.Module | None]) -> set[int]:
    """Return the identities of the parameters of some parts that are not frozen."""
    identities: set[int] = set()
    for part in parts:
        if part is not None:
            identities |= {id(weight) for weight in part.parameters() if weight.requires_grad}
    return identities
