"""bfloat16 on a CPU without instructions for it: the same rounding, with products in float32."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["FloatProducts", "products_in_float32", "quick_products"]

_PRODUCTS = frozenset(
    {F.linear, torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__, F.scaled_dot_product_attention}
)


def products_in_float32() -> bool:
    """Whether this is an x86 CPU on which products of bfloat16 are far slower than those of float32."""
    if torch.accelerator.is_available() or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return not torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def quick_products(bf16: bool) -> AbstractContextManager[Any]:
    """For the length of a block: `FloatProducts` where bfloat16 is asked for and slow here, or else nothing."""
    return FloatProducts() if bf16 and products_in_float32() else nullcontext()


class FloatProducts(TorchFunctionMode):
    """Under autocast to bfloat16 on a CPU, products of factors rounded to it are computed in float32, and rounded.

    That is what instructions for bfloat16 do, which sum in float32; only the order of the sums may be another. What
    comes back to the factors is rounded as well.

    Example:
        >>> left, right = torch.randn(4, 8), torch.randn(8, 3)
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     slow = left @ right
        ...     with FloatProducts():
        ...         quick = left @ right
        >>> quick.dtype, bool(torch.isclose(quick, slow, rtol=0.01, atol=0.01).all())
        (torch.bfloat16, True)
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call `func`; see the class."""
        named = kwargs or {}
        rounds = func in _PRODUCTS and torch.is_autocast_enabled("cpu")
        if not rounds or not _to_be_rounded([*args, *named.values()]):
            return func(*args, **named)
        with torch.autocast("cpu", enabled=False):
            rounded = {name: _rounded(value) for name, value in named.items()}
            return func(*[_rounded(value) for value in args], **rounded).bfloat16()


def _to_be_rounded(values: Sequence[Any]) -> bool:
    """Whether autocast would round these arguments to bfloat16: neither integers nor float64."""
    numbers = [value for value in values if isinstance(value, Tensor) and value.dtype != torch.bool]
    known = (torch.float32, torch.float16, torch.bfloat16)
    return torch.get_autocast_dtype("cpu") == torch.bfloat16 and all(value.dtype in known for value in numbers)


def _rounded(value: Any) -> Any:
    """A tensor as float32 whose numbers are those of bfloat16; anything else as it is."""
    return value.bfloat16().float() if isinstance(value, Tensor) and value.is_floating_point() else value
