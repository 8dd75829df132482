"""Copies of a module that share its weights: private ones, watched ones, and twins with stubs.

A *twin* is a shallow copy of the modules that contain the layers. In it, *stubs* take the places of
the layers and of the modules beside them: a stub has its module's attributes, but its forward is a
function of ours, which may call the module, or answer with something else. The module itself is
never patched.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ponder._utils.trees import Tree
from ponder.errors import ArgumentError

__all__ = [
    "Answer",
    "Arguments",
    "Example",
    "NamedArguments",
    "PositionalArguments",
    "Stubs",
    "WatchedCall",
    "arguments_of",
    "first_tensor_or_slot",
    "make_stubs",
    "make_twin",
    "private_copy",
    "refusal",
    "watch",
]

Arguments: TypeAlias = Mapping[str, Any]
"""Arguments of a call, by their names."""
NamedArguments: TypeAlias = dict[str, Any]
"""Arguments of a call that are being put together."""
PositionalArguments: TypeAlias = tuple[Any, ...]
"""Arguments of a call by position."""
Example: TypeAlias = Any
"""What a module is called with: a tensor, a tuple of arguments by position, or a dict by name."""
Stubs = str | dict[str, Any]
"""The path of the module that a stub replaces, or the stubs inside of a module, by name."""

_NO_HOOKS = {
    f"_{kind}_hooks": OrderedDict[int, Any]()
    for kind in ("forward", "forward_pre", "backward", "backward_pre")
}


class Answer(Protocol):
    """The function that answers for the stubs of a twin."""

    def __call__(self, path: str, part: nn.Module, *args: Any, **kwargs: Any) -> Tree:
        """Return the output of `part`, which lies at `path`, for these arguments."""


@dataclass(frozen=True)
class WatchedCall:
    """A call of a module inside of another: its path, its arguments, and its output."""

    path: str
    args: tuple[Any, ...]
    kwargs: Arguments
    output: Any


def refusal(got: str, remedy: str = "") -> ArgumentError:
    """Return the error for a module, or a call of it, that cannot be read layer by layer."""
    expected = "a list of layers, called one after the other, each with what the one before gave"
    if not remedy:
        remedy = "Capture it with an example like the inputs, or pass stem, steps and readout."
    return ArgumentError("module", expected=expected, got=got, remedy=remedy)


def arguments_of(module: nn.Module, example: Example) -> NamedArguments:
    """Return the arguments of a call of a module by their names, without those that are None.

    Args:
        module: The module.
        example: Its only argument, a tuple of arguments by position, a dict of arguments by name,
            or a tuple whose last item is such a dict.
    """
    if not isinstance(example, Mapping):
        names = list(inspect.signature(module.forward).parameters)
        values = list(example) if isinstance(example, tuple) else [example]
        named: NamedArguments = {}
        if len(values) > 1 and isinstance(values[-1], Mapping) and values[-1].keys() <= set(names):
            named = values.pop()
        example = {**dict(zip(names, values, strict=False)), **named}
    return {name: value for name, value in example.items() if value is not None}


def first_tensor_or_slot(output: Tree) -> Tree:
    """Return the first tensor of a module's output (or the first slot, in a read call)."""
    return next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor | Slot))


@dataclass(frozen=True)
class Slot:
    """The place of a tensor in a value.

    Args:
        key: In the arguments of a layer, the name of the tensor; in a layer's output, whether it is
            the hidden state; in the module's output, the paths of the modules that make it of the
            last hidden state.
    """

    key: Any


def private_copy(module: nn.Module, *, training: bool = False) -> nn.Module:
    """Copy a module into one mode: its parameters are shared, its buffers are not."""
    shared = {id(parameter): parameter for parameter in module.parameters()}
    return copy.deepcopy(module, shared).train(training)


def watch(module: nn.Module, arguments: Arguments) -> tuple[list[WatchedCall], Tree]:
    """Return the calls of a module's parts, in the order in which they ended, and its output.

    The module is changed: pass a private copy that is used for nothing else.
    """
    calls: list[WatchedCall] = []

    def noted(path: str, forward: Callable[..., Tree], *args: Any, **kwargs: Any) -> Tree:
        output = forward(*args, **kwargs)
        calls.append(WatchedCall(path, args, kwargs, output))
        return output

    for path, part in module.named_modules():
        part.__dict__["forward"] = partial(noted, path, part.forward)
    output = module(**arguments)
    return calls, output


def make_stubs(part: nn.Module, layers: Mapping[int, str], path: str = "") -> Stubs:
    """Return the stubs of a module: its layers, the modules beside them, and those that hold them.

    Args:
        part: The module.
        layers: The paths of the layers by their identities: a layer with several names has one
            path.
        path: The path of `part`.
    """
    if id(part) in layers:
        return layers[id(part)]
    if not any(id(inner) in layers for inner in part.modules()):
        return path
    return {
        name: make_stubs(inner, layers, f"{path}.{name}".lstrip("."))
        for name, inner in part._modules.items()
        if inner
    }


def make_twin(part: nn.Module, stubs: Stubs, answer: Answer) -> nn.Module:
    """Return a shallow copy of a module, in which `answer` is the forward of the stubs."""
    twin: nn.Module = object.__new__(type(part))
    twin.__dict__.update(part.__dict__)
    if isinstance(stubs, str):
        # Hooks and checkpoints belong to the module, which `answer` may call.
        forward = partial(answer, stubs, part)
        twin.__dict__.update(_NO_HOOKS, forward=forward, gradient_checkpointing=False)
    else:
        modules = twin.__dict__["_modules"] = dict(part._modules)
        for name, below in stubs.items():
            modules[name] = make_twin(modules[name], below, answer)
    return twin
