"""Weights off 64-byte alignment, on purpose: ``PONDER_TESTS_UNALIGNED=1 python -m pytest``.

PyTorch allocates tensors at multiples of 64 bytes, and a file that is mapped into memory gives them
any address. Kernels then sum in another order, so two models of equal weights differ in the last
digit. With the switch every parameter is made at the next of a few odd offsets: no two copies of a
model lie alike.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

SWITCH = "PONDER_TESTS_UNALIGNED"
_LINE = 64
_OFFSETS = (16, 28, 40, 52, 8, 4, 56)
"""Bytes beyond a multiple of `_LINE`; seven, a prime, so that two copies of a model meet no offset twice."""


def move_weights_if_asked() -> None:
    """Patch `torch.nn.Parameter`, through which new, loaded, copied and unpickled weights come, if `SWITCH` is set."""
    if not os.environ.get(SWITCH):
        return
    import torch

    offsets = itertools.cycle(_OFFSETS)
    original = torch.nn.Parameter.__new__

    def new(cls: Any, data: Any = None, requires_grad: bool = True) -> Any:
        if _can_be_moved(data):
            data = _moved(data, next(offsets))
        return original(cls, data, requires_grad)

    torch.nn.Parameter.__new__ = new


def _can_be_moved(data: Any) -> bool:
    import torch

    plain = type(data) in (torch.Tensor, torch.nn.Parameter)
    return (
        plain
        and not torch.compiler.is_compiling()
        and data.device.type == "cpu"
        and data.numel() > 0
    )


def _moved(data: Any, offset: int) -> Any:
    """Return an equal tensor, `offset` bytes beyond a multiple of `_LINE`."""
    import torch

    size = data.numel() * data.element_size()
    memory = bytearray(size + 2 * _LINE)
    start = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
    aligned_to_item = offset // data.element_size() * data.element_size() or data.element_size()
    skipped = -start % _LINE + aligned_to_item
    moved = torch.frombuffer(memory, dtype=data.dtype, count=data.numel(), offset=skipped)
    with torch.no_grad():
        return moved.view(data.shape).copy_(data)
