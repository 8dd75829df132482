"""Who each row of a batch is: the caller's integers, or the positions."""

from __future__ import annotations

import torch
from torch import Tensor

from ponder.errors import ArgumentError

__all__ = ["as_row_ids"]


def as_row_ids(row_ids: Tensor | None, size: int, device: torch.device) -> Tensor:
    """Read row ids, `(batch,)` long; they are the positions where None."""
    if row_ids is None:
        return torch.arange(size, device=device)
    if not isinstance(row_ids, Tensor) or row_ids.shape != (size,) or row_ids.is_floating_point():
        got = f"{row_ids.dtype} {tuple(row_ids.shape)}" if isinstance(row_ids, Tensor) else type(row_ids).__name__
        raise ArgumentError("row_ids", expected=f"integers, shape ({size},)", got=got, remedy="One id for each row.")
    return row_ids.to(device=device, dtype=torch.long)
