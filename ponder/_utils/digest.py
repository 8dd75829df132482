"""The digest of a model's weights, by which a certificate is tied to the model that it is about."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterable

from torch import Tensor, nn

__all__ = ["digest_of_weights"]


def digest_of_weights(modules: Iterable[nn.Module | None]) -> str | None:
    """Return the SHA-256 of all weights and buffers in their order, whatever their device and names.

    Args:
        modules: The modules; None is skipped.

    Returns:
        64 hexadecimal digits; None where a weight has no bytes to read (on the meta device, packed
        by quantisation).
    """
    digest = hashlib.sha256()
    for module in modules:
        for tensor in [] if module is None else module.state_dict().values():
            if not isinstance(tensor, Tensor) or tensor.is_meta or tensor.is_quantized:
                return None
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            own = tensor.detach().cpu().contiguous()
            if (
                own.numel()
            ):  # the bytes where they lie: no copy, and no NumPy, which has no bfloat16
                digest.update(
                    (ctypes.c_char * (own.numel() * own.element_size())).from_address(
                        own.data_ptr()
                    )
                )
    return digest.hexdigest()
