"""Parameter groups: the Lambda head may learn at its own rate (PALBERT paper, Section 3.2)."""

from __future__ import annotations

from typing import Any

from torch import nn

from ponder.errors import ArgumentError
from ponder.parts.heads import LAMBDA_HEADS
from ponder.priors import PriorWeights

__all__ = ["parameter_groups"]


def parameter_groups(model: nn.Module, lr: float, lambda_lr: float | None = None) -> list[dict[str, Any]]:
    """Groups for a `torch.optim` optimiser: the trainable parameters, and those of Lambda heads and learned priors.

    Args:
        model: A `PonderWrapper`, or any module that holds one.
        lr: Learning rate of all but the Lambda head.
        lambda_lr: Learning rate of the Lambda head and of a learned prior; `lr` where None.

    Returns:
        Groups with `params`, `lr` and `name` (``"model"``, ``"lambda"``); a group without parameters is left out.
    """
    for argument, rate in (("lr", lr), ("lambda_lr", lr if lambda_lr is None else lambda_lr)):
        if not 0.0 <= rate < float("inf"):
            raise ArgumentError(argument, expected="a number ≥ 0", got=rate, remedy=f"Pass {argument}=2e-5, say.")
    heads = [module for module in model.modules() if isinstance(module, (*LAMBDA_HEADS, PriorWeights))]
    in_heads = {id(parameter) for head in heads for parameter in head.parameters()}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"name": "model", "params": [p for p in trainable if id(p) not in in_heads], "lr": lr},
        {
            "name": "lambda",
            "params": [p for p in trainable if id(p) in in_heads],
            "lr": lr if lambda_lr is None else lambda_lr,
        },
    ]
    return [group for group in groups if group["params"]]
