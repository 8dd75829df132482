"""The stem, the steps and the readout of a captured module.

The stem reads each call (`ponder.model.readings`) and puts into the context what the layers are to
be called with. A step calls its layer with that and the hidden state, for the rows that remain. The
readout runs the modules that follow the layers, one after the other; if code of the module's own
stands there, it replays the module's forward, in which the layers return the hidden state.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_unflatten

from ponder._utils.trees import Shared, Tree, unwrap
from ponder.model.padding import REAL, Along, hidden_key
from ponder.model.readings import LayerContract, Reading, Select, read_call
from ponder.model.readouts import ReadoutCall, identity
from ponder.model.twins import (
    Arguments,
    NamedArguments,
    Slot,
    WatchedCall,
    arguments_of,
    first_tensor_or_slot,
    private_copy,
    refusal,
)

__all__ = ["CapturedReadout", "CapturedStem", "CapturedStep", "KnownKind", "has_size"]


Flags: TypeAlias = dict[str, object]
"""The mode of a module under "", and of each argument its plain value, or its type."""


@dataclass(frozen=True)
class KnownKind:
    """A kind of call: its mode, types and plain values, and how its layers are called."""

    flags: Flags
    reading: Reading


class CapturedStem(nn.Module):
    """The stem of a captured module, which registers it and learns each new kind of call.

    Args:
        module: The module.
        example: The arguments of a call.
        layers: The calls of the layers in it.
    """

    def __init__(
        self, module: nn.Module, example: Arguments, layers: Sequence[WatchedCall]
    ) -> None:
        super().__init__()
        self.module = module
        self.contract = LayerContract.read(module, layers)
        self.first = next(name for name, value in example.items() if isinstance(value, Tensor))
        """The argument that is called `inputs` in a wrapper."""
        rows = len(example[self.first])
        self.constants = {
            name: value for name, value in example.items() if not isinstance(value, Tensor)
        }
        """Arguments of every call."""
        self.without_rows = {name for name, value in example.items() if not has_size(value, rows)}
        self.mask = next((name for name in REAL if has_size(example.get(name), rows)), "")
        """The argument that is a mask of known meaning; empty if there is none."""
        self.argument_names = tuple(inspect.signature(module.forward).parameters)
        self.selects: list[Select] = [first_tensor_or_slot]
        """The parts of the output that readouts return."""
        self.kinds: list[KnownKind] = []
        self.lengths: dict[str, Along] = {}
        """The lengths of the tensors in the context of the steps."""
        self._learned = 0  # numbers the kinds, whose tensors must have different names

    def __getstate__(self) -> NamedArguments:
        """Leave kinds behind: a copy learns them again."""
        return {**self.__dict__, "kinds": []}

    def forward(self, inputs: Tree, **context: Any) -> tuple[Tree, NamedArguments]:
        """Return h_0 and the context of the steps.

        The context holds the masks of known meaning, the tensors that layers read with the
        state, under ``"captured"`` how they are called, and all arguments again if a readout will
        replay the module's own forward.
        """
        if isinstance(inputs, Mapping | tuple):
            named = arguments_of(self.module, inputs)
        else:
            named = {self.first: inputs}
        merged = {**self.constants, **named, **context}
        arguments = {name: value for name, value in merged.items() if value is not None}
        reading, kind = self._read(arguments)
        of_steps: NamedArguments = {name: arguments[name] for name in REAL if name in arguments}
        of_steps["captured"] = Shared(kind)
        tensors = reading.tensors.copy()
        hidden: Tree = tensors.pop("hidden")
        of_steps |= _marked(tensors, tensors.keys() - kind.shared)
        if kind.replays:
            again = _marked(arguments, self.names_with_rows(arguments))
            of_steps |= {f"given_{name}": value for name, value in again.items()}
        if len(self.contract.handed) > 1:
            hidden = {"hidden": hidden}
        return hidden, of_steps

    def names_with_rows(self, arguments: Arguments) -> list[str]:
        """Return the names of the tensors that have the rows of the batch."""
        sizes = {
            name: value.shape[0]
            for name, value in arguments.items()
            if isinstance(value, Tensor) and value.dim() and name not in self.without_rows
        }
        return [name for name, size in sizes.items() if size == next(iter(sizes.values()))]

    def _read(self, arguments: Arguments) -> tuple[Reading, Reading]:
        """Return the reading of a call, and that of its kind, which is learned if it is new."""
        flags = self._flags_of(arguments)
        for known in self.kinds:
            if known.flags == flags:
                reading = read_call(self, self.module, arguments, known.reading)
                if reading.fits(known.reading):
                    return reading, known.reading
        kind = self._learn(arguments)
        reading = read_call(self, self.module, arguments, kind)
        if not reading.fits(kind):
            raise refusal("layers that are called in another way each time")
        self.kinds.append(KnownKind(flags, kind))
        return reading, kind

    def _flags_of(self, arguments: Arguments) -> Flags:
        """Return what distinguishes kinds of calls before they run: mode, types, plain values."""
        flags: Flags = {"": self.module.training}
        for name, value in arguments.items():
            if isinstance(value, Tensor):
                flags[name] = Tensor
            elif isinstance(value, bool | int | str):
                flags[name] = value
            else:
                flags[name] = type(value)
        return flags

    def _learn(self, arguments: Arguments) -> Reading:
        """Learn a kind of call from one, and from another with one row more."""
        names = self.names_with_rows(arguments)
        rows = len(arguments[names[0]])
        longer = {name: torch.cat([arguments[name], arguments[name][:1]]) for name in names}
        module = private_copy(self.module, training=self.module.training)
        with _random_state_kept(arguments):
            name = f"noted{self._learned}"
            kind = read_call(self, module, arguments, None, name)
            other = read_call(self, module, {**arguments, **longer}, None, name)
            self._check_buffers(module)
            if [call.path for call in kind.calls] != self.contract.order or not other.fits(kind):
                raise refusal(
                    "layers that are not called in order, or in another way with one row more"
                )
            kind.shared = _names_without_rows(kind, other, rows)
            self._learned += 1
            if self.mask in arguments and arguments[self.mask].dim() == 2:
                self._learn_lengths(kind, module, arguments)
        # They belong to one call, and would keep its memory.
        kind.tensors = {}
        kind.handed = {}
        return kind

    def _check_buffers(self, module: nn.Module) -> None:
        """Refuse a module whose forward changed buffers around the layers: it may run twice."""
        first_layer = self.contract.order[0]
        changed = [
            name
            for name, buffer in module.named_buffers()
            if not torch.equal(buffer, self.module.get_buffer(name))
        ]
        around = [name for name in changed if first_layer.startswith(name[: name.rfind(".") + 1])]
        if around:
            got = f"buffers that its forward changes: {around}"
            raise refusal(got, "Keep them in a module: it may run twice.")

    def _learn_lengths(self, kind: Reading, module: nn.Module, arguments: Arguments) -> None:
        """Learn which dimensions of tensors are as long as the mask, and their value at padding.

        The call runs once more with sequences one position shorter (or one longer, if they have a
        single position), whose last positions are the same. If its layers are called in another
        way, rows of several lengths do not share a batch, and nothing is learned.
        """
        mask = arguments[self.mask]
        length = mask.shape[1]
        long = {name: value for name, value in arguments.items() if has_size(value, length, 1)}
        resized = {name: _other_length(value) for name, value in long.items()}
        other = read_call(self, module, {**arguments, **resized}, kind)
        if not other.fits(kind):
            return
        ends_in_padding = (mask[:, -1] != 0) != bool(REAL[self.mask])
        for name, tensor in kind.tensors.items():
            dims = _dims_of_length(tensor, other.tensors[name], length)
            if not dims:
                continue
            if name in kind.shared:
                self.lengths[name] = Along(dims)
            else:
                fill = _fill_of(tensor, tensor[ends_in_padding], dims[-1])
                self.lengths[name] = Along(dims, fill)
        if kind.replays:
            self.lengths |= {f"given_{name}": Along() for name in long}


@contextmanager
def _random_state_kept(arguments: Arguments) -> Iterator[None]:
    """Run a block, after which the states of the random number generators are as before it."""
    devices = {
        value.device for value in arguments.values() if isinstance(value, Tensor) and value.is_cuda
    }
    with torch.random.fork_rng(devices=list(devices)):
        yield


def _names_without_rows(kind: Reading, other: Reading, rows: int) -> set[str]:
    """Return the names of the tensors whose shape is the same in a call with one row more."""
    shared: set[str] = set()
    longer = {**other.handed, **other.tensors}
    for name, tensor in {**kind.handed, **kind.tensors}.items():
        shape = tuple(tensor.shape)
        longer_shape = tuple(longer[name].shape)
        if shape == longer_shape:
            shared.add(name)
        elif shape[0] != rows or longer_shape != (rows + 1, *shape[1:]):
            got = f"a shape of {shape}, and {longer_shape} with a row more"
            raise refusal(f"layers without the batch first: {got}")
    return shared


def _marked(values: Arguments, with_rows: Collection[str]) -> NamedArguments:
    """Return values as context of the steps: those without rows are marked as shared."""
    marked: NamedArguments = {}
    for name, value in values.items():
        marked[name] = value if name in with_rows else Shared(value)
    return marked


def _other_length(tensor: Tensor) -> Tensor:
    """Return `(rows, length, …)` without its first position; a single position comes twice."""
    if tensor.shape[1] > 1:
        return tensor[:, 1:]
    return torch.cat([tensor, tensor], 1)


def _dims_of_length(tensor: Tensor, other: Tensor, length: int) -> tuple[int, ...]:
    """Return the dimensions that have the length, and another size in a call of another length."""
    dims: list[int] = []
    for dim, (size, other_size) in enumerate(zip(tensor.shape, other.shape, strict=True)):
        if size == length and other_size != length:
            dims.append(dim)
    return tuple(dims)


def _fill_of(tensor: Tensor, padded: Tensor, dim: int) -> float | Callable[[Tensor], float]:
    """Return the value of a tensor at padding: the one at the ends of rows that end in it, or 0."""
    values = padded.select(dim, -1).unique().tolist()
    if len(values) != 1:
        return 0
    fill: float = values[0]
    if fill == hidden_key(tensor):
        # The lowest number of a dtype depends on the dtype, which autocast changes.
        return hidden_key
    return fill


class CapturedStep(nn.Module):
    """One layer as a step, counted from 0. It registers nothing: the stem has the weights."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, hidden: Tree, *, captured: Reading, **context: Any) -> Tree:
        """Run the layer and return the state after it."""
        call = captured.calls[self.number]
        if isinstance(hidden, Tensor):
            values = {**context, "hidden": hidden}
        else:
            values = {**context, **unwrap(hidden)}
        leaves = list(call.leaves)
        for place, leaf in enumerate(leaves):  # in line, since every step does it
            if isinstance(leaf, Slot):
                leaves[place] = values[leaf.key]
        args, kwargs = tree_unflatten(leaves, call.spec)
        output = captured.stem.module.get_submodule(call.path)(*args, **kwargs)
        if isinstance(output, Tensor):
            return output
        returned = tree_leaves(output)
        handed = captured.stem.contract.handed
        if len(handed) == 1:
            return returned[handed["hidden"]]
        state = {name: returned[place] for name, place in handed.items()}
        return _marked(state, state.keys() - captured.shared)


class CapturedReadout(ReadoutCall):
    """A part of the module's own output as features.

    Args:
        select: A function from the output to a tensor.
    """

    def __init__(self, select: Select) -> None:
        nn.Module.__init__(self)
        self.select = select

    def bind(self, context: Arguments) -> Callable[[Tree], Tensor]:
        """Return the features of hidden states in this context, as if they were the last ones."""
        kind: Reading = context["captured"]
        paths = kind.following[self.select]
        if paths == () and len(kind.stem.contract.handed) == 1:
            return identity

        def read(hidden: Tree) -> Tree:
            value = hidden
            if not isinstance(hidden, Tensor):
                value = hidden["hidden"]
            if paths is None:
                return self.select(kind.replay(value, context))
            for path in paths:
                value = kind.stem.module.get_submodule(path)(value)
            return value

        return read


def has_size(value: object, size: int, dim: int = 0) -> bool:
    """Whether a value is a tensor of this size along a dimension."""
    return isinstance(value, Tensor) and value.shape[dim : dim + 1] == (size,)
