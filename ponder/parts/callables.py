"""Callables as parts of a model: whatever modules they hold become modules of the model, or the callable is refused.

A step, stem, readout or head may be any callable. One that calls a module which the model does not own would leave its
weights out of `parameters()`, its mode out of `eval()` and its values out of files, without a word.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from ponder.errors import ArgumentError

__all__ = ["FunctionModule", "as_module", "check_owned"]


class FunctionModule(nn.Module):
    """A callable as a module, which owns the modules that the callable holds.

    Args:
        fn: A function, a `functools.partial`, an object with `__call__`, or a method of a module, which another part
            of the same model must own (see `check_owned`). An object with a true attribute ``borrows_modules`` says
            the same of what it holds.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        super().__init__()
        self.fn = fn
        owner = getattr(fn, "__self__", fn)
        if not isinstance(owner, nn.Module) and not getattr(owner, "borrows_modules", False):
            self.held = nn.ModuleList(dict.fromkeys(_held_by(fn if owner is fn else vars(owner))))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the callable gives."""
        return self.fn(*args, **kwargs)

    def extra_repr(self) -> str:
        """The name of the callable."""
        return getattr(self.fn, "__qualname__", type(self.fn).__qualname__)


def as_module(argument: str, fn: Callable[..., Any]) -> nn.Module:
    """A callable as a module: itself where it is one, and the module where it is the `forward` of one.

    Args:
        argument: What the callable is, for the message.
        fn: The callable.

    Raises:
        ArgumentError: A function that uses modules: a copy of the model would go on calling those of the original.
    """
    if isinstance(fn, nn.Module):
        return fn
    if isinstance(fn, types.MethodType) and isinstance(fn.__self__, nn.Module) and fn.__name__ == "forward":
        return fn.__self__
    if isinstance(fn, types.FunctionType):
        for module in _used_by(fn):
            raise _refusal(argument, f"the function {fn.__qualname__}", module)
    return FunctionModule(fn)


def check_owned(model: nn.Module) -> None:
    """Refuse callables of `model` that are methods of a module which no part of `model` owns."""
    owned = {id(module) for module in model.modules()}
    for name, part in model.named_modules():
        method = part.fn if isinstance(part, FunctionModule) else None
        owner = getattr(method, "__self__", None)
        if method is not None and isinstance(owner, nn.Module) and id(owner) not in owned:
            raise _refusal(name.split(".")[0], f"the method {method.__qualname__}", owner)


def _held_by(value: Any) -> Iterator[nn.Module]:
    """The modules in a partial, in a container, or in the attributes of an object."""
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, functools.partial):
        yield from _held_by((value.func, value.args, value.keywords))
    elif isinstance(value, Mapping):
        yield from _held_by(tuple(value.values()))
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _held_by(item)
    elif not isinstance(value, type | types.FunctionType | types.ModuleType) and callable(value):
        yield from _held_by(tuple(getattr(value, "__dict__", {}).values()))


def _used_by(fn: types.FunctionType) -> Iterator[nn.Module]:
    """The modules that a function closes over, takes as defaults, or names among the globals of its file."""
    for cell in fn.__closure__ or ():
        try:
            yield from _held_by(cell.cell_contents)
        except ValueError:  # a name that is not bound yet
            continue
    yield from _held_by((fn.__defaults__ or (), fn.__kwdefaults__ or {}))
    for name in _names(fn.__code__):
        value = fn.__globals__.get(name)
        if isinstance(value, nn.Module):
            yield value


def _names(code: types.CodeType) -> set[str]:
    """The global names that code uses, and that functions inside it use."""
    inside = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*(_names(constant) for constant in inside))


def _refusal(argument: str, what: str, module: nn.Module) -> ArgumentError:
    kind = type(module).__name__
    return ArgumentError(
        argument,
        expected="a module, or a callable that uses no module: only modules that the model owns are trained, switched "
        "to evaluation mode, moved and saved with it",
        got=f"{what}, which uses a {kind}",
        remedy=f"Pass the {kind} itself, functools.partial(module, …), or an nn.Module whose forward does this.",
    )
