"""The precision of statistics: hazards and losses are computed in float32 at least, whatever the model runs in."""

import torch
from torch import Tensor

__all__ = ["at_least_float32"]


def at_least_float32(tensor: Tensor) -> Tensor:
    """`tensor` in float64 if it is, else in float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
