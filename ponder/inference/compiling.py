"""`compile_steps`: the steps of a model through `torch.compile`, once for all batches, lengths and depths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ponder._utils.trees import Tree, map_tensors
from ponder.engine.model import EarlyExitModel, check_model
from ponder.errors import ArgumentError

__all__ = ["compile_steps", "uncompile_steps"]


def compile_steps(model: EarlyExitModel, **options: Any) -> None:
    """Compile the steps of `model` in place, with the batch size and the length left open.

    A step that runs at several depths is compiled once, and nothing is compiled again as a batch shrinks and gets
    narrower. PyTorch compiles a batch of one row apart from larger ones, a length of one apart from longer ones, and a
    call with a mask apart from a call without; each at its first call. Gradients, `torch.no_grad` and
    `torch.inference_mode` have graphs of their own, and so have tensors that were made outside of inference mode;
    `predict` keeps to one kind. PyTorch keeps eight graphs of a function: where one process compiles several models,
    call `torch._dynamo.reset()` between them.

    Weights, names in the state dict and copies are as before; a copy, or a model read from a file, is not compiled.

    Args:
        model: The model; compiled again where it is already.
        options: Arguments of `torch.compile`: `mode`, `backend`, `options`, …; `dynamic` is True.

    Example:
        >>> model = PonderWrapper(nn.Linear(8, 8), num_steps=4, head=nn.Linear(8, 3)).eval()
        >>> compile_steps(model, backend="eager")
        >>> predict(model, torch.randn(5, 8)).exit_step
        tensor([4, 4, 4, 4, 4])
    """
    check_model(model)
    if "dynamic" in options:
        raise ArgumentError(
            "dynamic",
            expected="nothing: batches shrink, so sizes are always open",
            got=options["dynamic"],
            remedy="Leave it out.",
        )
    for step in model.steps.fns:
        # Where `Module.compile` puts its own; a state dict, a pickle and a copy do not see it.
        call = _outside_of_torch(step._call_impl) if _is_of_torch(step) else step._call_impl
        step._compiled_call_impl = _Regular(torch.compile(call, dynamic=True, **options))


def uncompile_steps(model: EarlyExitModel) -> None:
    """Run the steps of `model` as they were before `compile_steps`.

    Example:
        >>> compile_steps(model, backend="eager")
        >>> uncompile_steps(model)
    """
    check_model(model)
    for step in model.steps.fns:
        step._compiled_call_impl = None


class _Regular:
    """Calls a compiled step with tensors whose strides follow from their shape: others are compiled again.

    Args:
        call: The compiled step.
    """

    def __init__(self, call: Callable[..., Tree]) -> None:
        self.call = call

    def __call__(self, hidden: Tree, **context: Any) -> Tree:
        return self.call(map_tensors(_regular, hidden), **map_tensors(_regular, context))


def _is_of_torch(step: nn.Module) -> bool:
    """Whether a step is one of PyTorch's own modules, whose code is only compiled where other code calls it."""
    return type(step).forward.__module__.startswith("torch.")


def _outside_of_torch(call: Callable[..., Tree]) -> Callable[..., Tree]:
    return lambda hidden, **context: call(hidden, **context)


def _regular(tensor: Tensor) -> Tensor:
    """`tensor` with the strides of a new one; where a size is 1 there are many, and PyTorch would compile for each."""
    expected, size = [], 1
    for length in reversed(tensor.shape):
        expected.append(size)
        size *= max(length, 1)
    if tensor.stride() == tuple(reversed(expected)):
        return tensor
    return tensor.contiguous().flatten().view(tensor.shape)
