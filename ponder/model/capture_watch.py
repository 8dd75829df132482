"""One watched call of a module: which modules ran, and with what; the lists of layers among them; what follows these."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import count, groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map

__all__ = [
    "HIDDEN",
    "LOST",
    "Call",
    "Event",
    "Given",
    "Mark",
    "Select",
    "Tail",
    "Watched",
    "find_tail",
    "layer_lists",
    "private_copy",
    "run",
    "watch",
]

Given = Mapping[str | int, Any]
"""Arguments of a call, by name or place."""
Select = Callable[[Any], Any]
"""From the output of a module to the tensor that is read."""


@dataclass(frozen=True)
class Mark:
    """A tensor of a call, by where it comes from.

    Args:
        call: The number of the call behind the layers that made it; −1 for what the last layer gave.
        leaf: Its place among the leaves of that call's output.
    """

    call: int
    leaf: int


HIDDEN, LOST = Mark(-1, 0), Mark(-2, 0)


@dataclass(frozen=True)
class Call:
    """The arguments of a module's call, without their tensors.

    Args:
        spec: The structure of ``(args, kwargs)``.
        leaves: Its leaves, None where a tensor is.
        noted: Places of tensors that the stem made, each with its number among them.
        state: Places of tensors that were made later, each with its origin.
        path: The name of the module.
    """

    spec: TreeSpec
    leaves: tuple[Any, ...]
    noted: tuple[tuple[int, int], ...] = ()
    state: tuple[tuple[int, Any], ...] = ()
    path: str = ""


@dataclass(frozen=True)
class Tail:
    """The modules that follow the layers, one after the other, with nothing of the module's own code in between.

    Args:
        calls: The calls.
        output: The module's output, with marks in the place of tensors.
    """

    calls: tuple[Call, ...]
    output: Any

    def leaf(self, select: Select) -> Mark | None:
        """The one tensor of the output that `select` takes; None where it computes something of several."""
        try:
            found = select(self.output)
        except Exception:
            return None
        return found if isinstance(found, Mark) else None

    def gives(self, select: Select) -> bool:
        """Whether all that `select` reads is made by these modules."""
        found = self.leaf(select)
        return LOST not in (tree_leaves(self.output) if found is None else [found])


@dataclass(eq=False)
class Event:
    """One call of one module within the call of the whole."""

    path: str
    start: int
    given: tuple[Any, Any]
    output: Any = None
    end: int = -1


@dataclass(eq=False)
class Watched:
    """A call of a module, and the calls within it in the order in which they began."""

    module: nn.Module
    output: Any = None
    events: list[Event] = field(default_factory=list)

    def outermost(self, events: Iterable[Event]) -> list[Event]:
        """Those of `events`, in order, that are within no other of them."""
        found: list[Event] = []
        for event in events:
            if not found or event.start > found[-1].end:
                found.append(event)
        return found


def private_copy(module: nn.Module, *, training: bool = False) -> nn.Module:
    """A copy of the module in one mode that has the module's own parameters, and buffers of its own."""
    twin = copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})
    return twin.train(training)


def run(module: Callable[..., Any], given: Given) -> Any:
    """Call the module."""
    places = sorted(key for key in given if isinstance(key, int))
    return module(*[given[key] for key in places], **{k: v for k, v in given.items() if isinstance(k, str)})


def watch(module: nn.Module, given: Given) -> Watched:
    """Call a private copy, which serves for this alone, and note what its modules are called with."""
    watched, clock = Watched(module), count()
    for path, part in module.named_modules():
        if path:
            part.__dict__["forward"] = partial(_noted, watched.events, clock, path, part.forward)
    watched.output = run(module, given)
    return watched


def _noted(events: list[Event], clock: Any, path: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    event = Event(path, next(clock), (args, kwargs))
    events.append(event)
    event.output = forward(*args, **kwargs)
    event.end = next(clock)
    return event.output


def layer_lists(watched: Watched, name: str | None = None) -> list[tuple[str, list[Event]]]:
    """Lists of modules that were called one after the other, with these calls; the one with most parameters first.

    Of an `nn.Sequential`, or a list of different modules, neighbours of one class are a list of their own.

    Args:
        watched: The call.
        name: The name of the list, where only that is meant.
    """
    known = {id(part): path for path, part in watched.module.named_modules()}
    found: list[tuple[int, str, list[Event]]] = []
    for box_path, box in watched.module.named_modules():
        if not isinstance(box, nn.ModuleList | nn.Sequential) or name not in (None, box_path):
            continue
        children = list(box._modules.values())
        alike = [list(group) for _, group in groupby(children, key=type)]
        for layers in [children, *(alike if len(alike) > 1 else [])]:
            order = [known[id(layer)] for layer in layers]
            events = watched.outermost(event for event in watched.events if event.path in set(order))
            rounds = len(events) // max(len(order), 1)
            if len(events) > 1 and [event.path for event in events] == order * rounds:
                size = sum(p.numel() for p in {id(p): p for layer in layers for p in layer.parameters()}.values())
                found.append((size, box_path, events))
    found.sort(key=lambda item: -item[0])
    return [(path, events) for _, path, events in found]


def find_tail(watched: Watched, last: Event, hidden: int) -> Tail:
    """What follows the layers as a chain of calls; tensors that are made in another way have no mark.

    Args:
        watched: The call.
        last: The call of the last layer in it.
        hidden: The place of the hidden state among the leaves of its output.
    """
    marks = {id(tree_leaves(last.output)[hidden]): HIDDEN}
    calls: list[Call] = []
    for event in watched.outermost(event for event in watched.events if event.start > last.end):
        leaves, spec = tree_flatten(event.given)
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        if not all(id(leaves[place]) in marks for place in places):
            continue
        state = tuple((place, marks[id(leaves[place])]) for place in places)
        plain = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        for place, leaf in enumerate(tree_leaves(event.output)):
            if isinstance(leaf, Tensor):  # also what a dropout hands on as it is: in training it does not
                marks[id(leaf)] = Mark(len(calls), place)
        calls.append(Call(spec, plain, state=state, path=event.path))
    output = tree_map(lambda leaf: marks.get(id(leaf), LOST) if isinstance(leaf, Tensor) else leaf, watched.output)
    return Tail(tuple(calls), output)
