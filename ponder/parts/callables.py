"""Callables as parts of a model: whatever modules they hold become modules of the model, or the callable is refused.

A step, stem, readout or head may be any callable. One that calls a module which the model does not own would leave its
weights out of `parameters()`, its mode out of `eval()` and its values out of files, without a word.
"""

from __future__ import annotations

import dis
import functools
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ponder.errors import ArgumentError, ArgumentTypeError

__all__ = ["FunctionModule", "as_module", "modules_of", "warn_of_loss"]


class FunctionModule(nn.Module):
    """A callable as a module, which owns the modules that the callable holds.

    Args:
        fn: A function, a `functools.partial`, or an object with `__call__`. An object with a true attribute
            ``borrows_modules`` says that another part of the same model owns what it holds.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        super().__init__()
        self.fn = fn
        if not _borrows(fn):
            self.held = nn.ModuleList(modules_of(fn))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the callable."""
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
        ArgumentTypeError: It cannot be called.
        ArgumentError: It uses modules or parameters which the model could not own: a function's closure, defaults and
            globals are not copied, moved or saved with a model.
    """
    if isinstance(fn, nn.Module):
        return fn
    if not callable(fn):
        raise ArgumentTypeError(
            argument, expected="a module or a function", got=repr(fn), remedy="Pass the function itself, not its name."
        )
    owner = getattr(fn, "__self__", None)
    if isinstance(owner, nn.Module) and fn in (owner.forward, owner.__call__):
        return owner  # other methods of a module are callables that hold it
    if not _borrows(fn):
        for found in _reached_from(fn):
            if found.function is not None or isinstance(found.value, nn.Parameter):
                what = getattr(found.function or fn, "__qualname__", type(fn).__qualname__)
                kind = "the function" if found.function is not None else "the callable"
                raise _refusal(argument, f"{kind} {what}", found.value)
    return FunctionModule(fn)


def modules_of(fn: Callable[..., Any]) -> list[nn.Module]:
    """The modules that a callable uses, each once, in the order in which a reader would find them.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> modules_of(lambda inputs: layer(inputs).tanh())
        [Linear(in_features=2, out_features=2, bias=True)]
    """
    return [found.value for found in _reached_from(fn) if isinstance(found.value, nn.Module)]


def warn_of_loss(function: Callable[..., Any], model: nn.Module) -> None:
    """Warn of a loss with weights that learn: an optimiser of the model does not find them, nor do its files.

    Args:
        function: The loss. A method of a module is that module's affair: it may own the model.
        model: The model, whose own weights it may use.
    """
    if isinstance(getattr(function, "__self__", None), nn.Module):
        return
    own = {id(weight) for weight in model.parameters()}
    for found in _reached_from(function):
        weights = found.value.parameters() if isinstance(found.value, nn.Module) else [found.value]
        if any(weight.requires_grad and id(weight) not in own for weight in weights):
            warnings.warn(
                f"task: the loss uses a {type(found.value).__name__} whose weights learn, and that is no part of the "
                "model: neither ponder.fit nor the model's files know them. Let the head give what the loss compares, "
                "or train and keep these yourself.",
                stacklevel=5,
            )
            return


@dataclass(frozen=True)
class _Found:
    """A module or a parameter that a callable reaches, and the function by which it does, if any."""

    value: nn.Module | nn.Parameter
    function: types.FunctionType | None


def _borrows(fn: Callable[..., Any]) -> bool:
    return bool(getattr(getattr(fn, "__self__", fn), "borrows_modules", False))


def _reached_from(fn: Callable[..., Any]) -> Iterator[_Found]:
    """Every module and parameter that a callable can reach, in the order in which a reader would find them."""
    waiting: list[tuple[Any, types.FunctionType | None]] = [(fn, None)]
    seen: set[int] = set()
    kept: list[Any] = []  # what is looked at stays alive, or another object could get its identity
    while waiting:
        value, function = waiting.pop(0)
        if id(value) in seen:
            continue
        seen.add(id(value))
        kept.append(value)
        if isinstance(value, nn.Module | nn.Parameter):
            yield _Found(value, function)
        elif isinstance(value, types.FunctionType):
            waiting[:0] = [(item, value) for item in _used_by(value)]
        else:
            waiting[:0] = [(item, function) for item in _inside(value)]


def _inside(value: Any) -> Iterable[Any]:
    """What a partial, a method, a container or an object is made of."""
    if isinstance(value, functools.partial):
        return (value.func, *value.args, *value.keywords.values())
    if isinstance(value, types.MethodType):
        return (value.__func__, value.__self__)
    if isinstance(value, Mapping):
        return tuple(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(value)
    if isinstance(value, type | types.ModuleType | Tensor) or type(value).__module__.partition(".")[0] == "torch":
        return ()
    own = tuple(getattr(value, "__dict__", {}).values())
    kinds = [vars(kind) for kind in type(value).__mro__[:-1]]
    slots = [name for kind in kinds for name in _names(kind.get("__slots__", ()))]
    held = (getattr(value, name, None) for name in slots if name not in ("__dict__", "__weakref__"))
    of_class = (each for kind in kinds for each in kind.values() if isinstance(each, nn.Module | nn.Parameter))
    return (*own, *held, *of_class)


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _used_by(fn: types.FunctionType) -> Iterator[Any]:
    """What a function closes over, takes as defaults, and names among the globals of its file.

    Of those globals, functions of the same file are followed, since they may use modules in turn, and so is what
    they read of objects of classes of that file.
    """
    for cell in fn.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a name that is not bound yet
            continue
    yield from fn.__defaults__ or ()
    yield from (fn.__kwdefaults__ or {}).values()
    for name in _global_names(fn.__code__):
        value = fn.__globals__.get(name)
        known = isinstance(value, nn.Module | nn.Parameter | functools.partial | list | tuple | Mapping)
        if known or (isinstance(value, types.FunctionType) and value.__module__ == fn.__module__):
            yield value
        elif not isinstance(value, type) and type(value).__module__ == fn.__module__:
            read = _names_in(fn.__code__)  # of what the object holds, that alone is used
            yield value if callable(value) else [each for key, each in vars(value).items() if key in read]


@functools.lru_cache(maxsize=1024)
def _global_names(code: types.CodeType) -> set[str]:
    """The global names that code reads, and that functions inside it read; names of attributes are none."""
    own = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    inside = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return own.union(*(_global_names(constant) for constant in inside))


def _names_in(code: types.CodeType) -> set[str]:
    """All names that code, and functions inside it, reads, those of attributes included."""
    inside = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return {*code.co_names}.union(*(_names_in(constant) for constant in inside))


def _refusal(argument: str, what: str, value: nn.Module | nn.Parameter) -> ArgumentError:
    kind = type(value).__name__
    instead = "Pass an nn.Module that has it, and whose forward does this."
    if isinstance(value, nn.Module):
        instead = f"Pass the {kind} itself, functools.partial(module, …), or an nn.Module whose forward does this."
    return ArgumentError(
        argument,
        expected="a module, or a callable that uses no module: only modules that the model owns are trained, switched "
        "to evaluation mode, moved and saved with it",
        got=f"{what}, which uses a {kind}",
        remedy=instead,
    )
