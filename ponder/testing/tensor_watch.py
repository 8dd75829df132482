"""What a plug-in does with tensors while it decides: NaN that is compared, tensors made on the wrong device.

Both are function modes of PyTorch (`torch.overrides.TorchFunctionMode`): they see every call of a PyTorch function
and change none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ponder._utils.trees import tensors

__all__ = ["DeviceWatch", "NanWatch"]

_COMPARISONS = frozenset(
    {
        *("lt", "le", "gt", "ge", "less", "less_equal", "greater", "greater_equal"),
        *("max", "min", "amax", "amin", "argmax", "argmin", "topk", "sort", "argsort"),
        *("sign", "sgn", "signbit", "isclose", "heaviside", "bucketize", "searchsorted", "long", "int"),
        *("item", "tolist", "numpy", "__array__", "__float__"),  # what is done with it then is not seen
    }
)
_CONSTRUCTORS = frozenset(
    {
        *("tensor", "as_tensor", "asarray", "scalar_tensor", "empty", "zeros", "ones", "full", "eye"),
        *("arange", "linspace", "logspace", "rand", "randint", "randn", "randperm", "normal", "from_numpy"),
    }
)
_ON_THE_HOST = frozenset({"numpy", "__array__"})
_MOVES = frozenset({"type_as", "copy_"})


class NanWatch(TorchFunctionMode):
    """Collects the comparisons that were given NaN, whose answer is False whatever was meant, and NaN taken out."""

    def __init__(self) -> None:
        super().__init__()
        self.compared: list[str] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called by PyTorch for every operation; see the class."""
        name = _name(func)
        given = [t for _, t in tensors((args, kwargs)) if t.is_floating_point()] if name in _COMPARISONS else []
        if any(bool(t.isnan().any()) for t in given):
            self.compared.append(name)
        return func(*args, **(kwargs or {}))


class DeviceWatch(TorchFunctionMode):
    """Collects tensors that were made without the batch's device and then used with the batch's tensors.

    A tensor is such where a constructor was given no device, or a literal one. Numbers, `(…)` without dimensions, may
    be used with tensors of any device. What is moved with `to` is no longer such.
    """

    def __init__(self) -> None:
        super().__init__()
        self.leaks: list[str] = []
        self._made: dict[int, tuple[Tensor, str]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called by PyTorch for every operation; see the class."""
        name, kwargs = _name(func), dict(kwargs or {})
        result = func(*args, **kwargs)
        if name in _CONSTRUCTORS and not isinstance(kwargs.get("device"), torch.device):
            if name not in ("as_tensor", "asarray") or not isinstance(args[0], Tensor):
                self._mark(result, f"torch.{name}")
            return result
        if name == "cpu" or _moves_to_literal(name, args, kwargs):
            self._mark(result, f"Tensor.{name}")
            return result
        given = [tensor for _, tensor in tensors((args, kwargs)) if tensor.dim()]
        if name in _ON_THE_HOST:
            self.leaks.extend(f"Tensor.{name}" for tensor in given if self.maker(tensor) is None)
            return result
        makers = [maker for tensor in given if (maker := self.maker(tensor)) is not None]
        if not makers:
            return result
        if _moves(name, args, kwargs):
            self._made.pop(id(result), None)  # where nothing had to be moved it is the same tensor
            return result
        if len(makers) == len(given):
            self._mark(result, makers[0])  # made of nothing but such tensors
        elif name != "__getitem__" or self.maker(args[0]) is not None:  # an index may lie on the CPU
            self.leaks.append(makers[0])
        return result

    def maker(self, tensor: Tensor) -> str | None:
        """The constructor that `tensor` comes from, where it has not got the batch's device."""
        found = self._made.get(id(tensor))
        return None if found is None else found[1]

    def _mark(self, result: Any, maker: str) -> None:
        for _, tensor in tensors(result):
            if tensor.dim():
                self._made[id(tensor)] = (tensor, maker)  # holding the tensor keeps its id from being used again


def _moves(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    to_device = name == "to" and any(
        isinstance(value, torch.device | Tensor) for value in (*args[1:], *kwargs.values())
    )
    return to_device or name in _MOVES


def _moves_to_literal(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return name == "to" and any(isinstance(value, str) for value in (*args[1:], *kwargs.values()))


def _name(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", "")
