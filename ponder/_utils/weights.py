"""The digest of a model's weights, by which what was said of one is not taken for another."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["digest_of_weights"]


def digest_of_weights(parts: Iterable[nn.Module | None]) -> str | None:
    """The SHA-256 of all weights and buffers that would be saved, in their order, whatever device and names they have.

    Args:
        parts: The modules; None is left out.

    Returns:
        64 hexadecimal digits; None where the bytes of a weight cannot be read (one on the meta device, or quantised).
    """
    digest = hashlib.sha256()
    for part in parts:
        for tensor in [] if part is None else part.state_dict().values():
            if not isinstance(tensor, Tensor):
                return None
            # A subclass (of a quantised or a distributed tensor) keeps its numbers in ways of its own.
            plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
            if not plain or tensor.is_meta or tensor.is_quantized:
                return None
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            own = tensor.detach().cpu().contiguous()
            if own.numel():  # read where it lies: NumPy, which would do so, may not be there
                digest.update((ctypes.c_char * (own.numel() * own.element_size())).from_address(own.data_ptr()))
    return digest.hexdigest()
