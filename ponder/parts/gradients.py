"""Gradient rescaling: how much each step's head moves what lies before it, its own weights learning as always."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["equilibrium", "rescaled_gradient"]


class _Rescaled(torch.autograd.Function):
    """The identity, whose gradient is multiplied."""

    generate_vmap_rule = True

    @staticmethod
    def forward(tensor: Tensor, scale: float) -> Tensor:
        """Give `tensor` as it is."""
        return tensor.view_as(tensor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        """Keep the factor."""
        _, ctx.scale = inputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Multiply the gradient."""
        return gradients[0] * ctx.scale, None


def rescaled_gradient(tensor: Tensor, scale: float) -> Tensor:
    """`tensor`, bit for bit, whose gradient is multiplied by `scale` on its way back.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> rescaled_gradient(x, 0.25).sum().backward()
        >>> x.grad
        tensor([0.2500, 0.2500])
    """
    if scale == 1.0:
        return tensor
    made: Tensor = _Rescaled.apply(tensor, scale)  # type: ignore[no-untyped-call]
    return made


def equilibrium(num_steps: int) -> tuple[float, ...]:
    """Scales under which the early steps get hardly a larger gradient for having more heads behind them.

    The head of step n teaches what lies before it with the weight 1 / (N − n + 1). Step n hears N − n + 1 heads: with
    the same pull of each, N − n + 1 times that of one without the scales, and 1 + 1/2 + … + 1/(N − n + 1) times with
    them, 3.1 instead of 12 for the first of 12 steps. After the gradient equilibrium of Li et al. 2019, "Improved
    Techniques for Training Adaptive Deep Networks" (arXiv 1908.06294), which also rescales between the steps, and so
    makes all equal; here only where a head reads, which leaves the steps as they are.

    Example:
        >>> equilibrium(4)
        (0.25, 0.3333333333333333, 0.5, 1.0)
    """
    return tuple(1.0 / (num_steps - step + 1) for step in range(1, num_steps + 1))
