"""Counting the FLOPs of a call: `torch.utils.flop_counter`, and the fused operators that it would count as nothing.

A FLOP is one multiplication or one addition, so that an (m, k) by (k, n) product is 2mnk. Matrix products,
convolutions, attention and recurrent layers are counted; what works element by element (activations, norms, softmax,
embeddings) is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

__all__ = ["Flops", "counted"]


@dataclass
class Flops:
    """How many floating-point operations were counted.

    Args:
        total: Their number; a multiplication and the addition that follows it are two.
    """

    total: int = 0


@contextmanager
def counted() -> Iterator[Flops]:
    """Count what runs inside; the total is known at the end.

    Example:
        >>> with counted() as flops:
        ...     product = torch.randn(3, 4) @ torch.randn(4, 5)
        >>> flops.total
        120
    """
    flops = Flops()
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a whole layer as one operator, which nobody can count
    try:
        with FlopCounterMode(display=False, custom_mapping=_MISSING) as counter:
            yield flops
        flops.total = int(counter.get_total_flops())
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _product(left: torch.Size, right: torch.Size, *_: Any, **__: Any) -> int:
    """The FLOPs of a product of a matrix, or a vector, with a vector."""
    return 2 * left.numel()


def _product_and_sum(_: torch.Size, left: torch.Size, right: torch.Size, *__: Any, **___: Any) -> int:
    return 2 * left.numel()


def _products_and_sum(_: torch.Size, left: torch.Size, right: torch.Size, *__: Any, **___: Any) -> int:
    return 2 * left.numel() * right[-1]


def _bilinear(left: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    """The FLOPs of `torch.nn.Bilinear`: all weights in every row; the smaller product after that is left out."""
    return 2 * left[0] * weight.numel()


def _recurrent(sequence: torch.Size, of_input: torch.Size, of_hidden: torch.Size, *_: Any, **__: Any) -> int:
    """The FLOPs of a recurrent layer: two products at every position, with the gates' weights `(gates · width, …)`."""
    return 2 * sequence[:-1].numel() * (of_input.numel() + of_hidden.numel())


_MISSING: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_fused_attention_overrideable: _attention,
    torch.ops.aten.mv: _product,
    torch.ops.aten.dot: _product,
    torch.ops.aten.addmv: _product_and_sum,
    torch.ops.aten.addbmm: _products_and_sum,
    torch.ops.aten._trilinear: _bilinear,
    torch.ops.aten.mkldnn_rnn_layer: _recurrent,
}
