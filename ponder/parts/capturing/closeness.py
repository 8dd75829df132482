"""When two tensors are the same, but for rounding."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["close"]

_HIDDEN = -5e3
"""Below it are scores that were hidden by adding a number to them: -1e4 is the smallest that is in use."""


def close(mine: Tensor, own: Tensor) -> bool:
    """Whether two tensors are the same but for rounding, in the precision that they have.

    How much rounding is, is told by the entries that differ: what a mask put there is the same in both, and its large
    numbers would hide any difference. Nor do numbers tell to which a mask was added; they are measured by themselves.
    """
    if mine.shape != own.shape:
        return False
    tolerance = 1e-4 if mine.dtype in (torch.float32, torch.float64) else 0.05
    if not own.is_floating_point():
        return torch.allclose(mine, own, rtol=0, atol=tolerance)
    differ = (mine != own) & ~(mine.isnan() & own.isnan())
    mine, own = mine[differ], own[differ]
    shown = own[own > _HIDDEN].abs()
    scale = max(float(shown.max()), 1.0) if shown.numel() else 1.0
    apart = (mine - own).abs()
    return bool((apart.isfinite() & (apart <= tolerance * own.abs().clamp(min=scale))).all())
