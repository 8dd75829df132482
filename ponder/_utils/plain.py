"""Hyper-parameter objects are plain data: what learns belongs to the model."""

from __future__ import annotations

from torch import Tensor, nn

from ponder._utils.registry import Plugin
from ponder.errors import ArgumentTypeError

__all__ = ["check_holds_no_weights"]


def check_holds_no_weights(argument: str, plugin: object, model: nn.Module) -> None:
    """Refuse an objective or a prior that keeps parameters to itself: no optimizer would find them.

    Args:
        argument: What it is called in the message.
        plugin: The object.
        model: The model, whose own parameters are found.

    Raises:
        ArgumentTypeError: One of its attributes is a module or a tensor that learns.
    """
    for name, value in vars(plugin).items():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, Plugin):
                check_holds_no_weights(argument, each, model)
            held = [*each.parameters()] if isinstance(each, nn.Module) else [each] if isinstance(each, Tensor) else []
            learn = [tensor for tensor in held if tensor.requires_grad]
            if learn and not {id(tensor) for tensor in learn} <= {id(tensor) for tensor in model.parameters()}:
                raise ArgumentTypeError(
                    argument,
                    expected="numbers and names: no optimizer finds parameters in it, nor any checkpoint",
                    got=f"{type(plugin).__name__}.{name}, which holds parameters",
                    remedy="Keep them in the model; a teacher is frozen: teacher.requires_grad_(False). A prior that "
                    "learns has a module of them.",
                )
