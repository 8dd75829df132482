"""The digest of a model's weights, which ties a certificate to the model that it is about."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterable

from torch import Tensor, nn

__all__ = ["digest_of_weights"]


def digest_of_weights(modules: Iterable[nn.Module | None]) -> str | None:
    """Return the SHA-256 of all weights and buffers in their order.

    It does not depend on their device or their names.

    Args:
        modules: The modules; entries that are None are skipped.

    Returns:
        64 hexadecimal digits; None if a weight has no bytes to read (on the meta device, or packed
        by quantisation).
    """
    digest = hashlib.sha256()
    for module in modules:
        if module is None:
            continue
        for tensor in module.state_dict().values():
            if not isinstance(tensor, Tensor) or tensor.is_meta or tensor.is_quantized:
                return None
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            _update_with_bytes(digest, tensor.detach().cpu().contiguous())
    return digest.hexdigest()


def _update_with_bytes(digest: hashlib._Hash, tensor: Tensor) -> None:
    """Add the bytes of a contiguous tensor, read in place, since NumPy has no bfloat16."""
    if tensor.numel():
        size = tensor.numel() * tensor.element_size()
        digest.update((ctypes.c_char * size).from_address(tensor.data_ptr()))
