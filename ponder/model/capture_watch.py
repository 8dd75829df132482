"""One watched call of a module: the modules that ran, in their order, and the lists of layers among them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count, groupby
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

Given = Mapping[str | int, Any]  # arguments of a call, by name or place


@dataclass(frozen=True)
class Mark:
    """Origin of a tensor: ``"noted"`` by the stem, ``"state"`` from a layer, ``"made"`` behind the layers."""

    kind: str
    key: Any


HIDDEN, LOST = Mark("state", "hidden"), Mark("lost", None)


@dataclass(frozen=True)
class Template:
    """A nested value, such as the arguments of a call, with marks for its tensors; `path` is the module called."""

    spec: TreeSpec
    leaves: tuple[Any, ...]
    marks: tuple[tuple[int, Mark], ...]
    path: str = ""

    @classmethod
    def of(cls, value: Any, mark: Callable[[Any], Mark], path: str = "") -> Template:
        """Mark the tensors of a value."""
        return cls.flat(*tree_flatten(value), mark, path)

    @classmethod
    def flat(cls, leaves: list[Any], spec: TreeSpec, mark: Callable[[Any], Mark], path: str = "") -> Template:
        """Mark the tensors of a value that was taken apart."""
        marks = tuple([(place, mark(leaf)) for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor | Mark)])
        for place, _ in marks:
            leaves[place] = None
        return cls(spec, tuple(leaves), marks, path)

    def fill(self, tensor: Callable[..., Any], *args: Any) -> Any:
        """Return the value with `tensor(mark, *args)` in the place of each mark."""
        leaves = list(self.leaves)
        for place, mark in self.marks:
            leaves[place] = tensor(mark, *args)
        return tree_unflatten(leaves, self.spec)

    def __reduce__(self) -> tuple[Any, ...]:  # a TreeSpec is not copied without a warning
        return Template.of, (self.fill(_itself), _itself, self.path)


def _itself(mark: Any) -> Any:
    return mark


@dataclass(eq=False)
class Event:
    """One call of one module within the call of the whole."""

    path: str
    start: int
    given: tuple[Any, Any]
    output: Any = None
    end: int = -1


def private_copy(module: nn.Module, *, training: bool = False) -> nn.Module:
    """Copy a module into one mode: its parameters are shared, its buffers are not, and no layer is dropped."""
    twin = copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()}).train(training)
    for part in twin.modules():
        for own in (part.__dict__, getattr(part.__dict__.get("config"), "__dict__", {})):
            own.update({"layerdrop": 0.0} if "layerdrop" in own else {})
    return twin


def run(module: Callable[..., Any], given: Given) -> Any:
    """Call a module."""
    named: dict[Any, Any] = dict(given)
    places = 0
    while places in named:
        places += 1
    return module(*map(named.pop, range(places)), **named)


def watch(module: nn.Module, given: Given) -> tuple[list[Event], Any]:
    """Call a private copy that serves for this alone; return the calls of its modules as they began, and its output."""
    events: list[Event] = []
    clock = count()

    def noted(path: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        events.append(event := Event(path, next(clock), (args, kwargs)))
        event.output = forward(*args, **kwargs)
        event.end = next(clock)
        return event.output

    for path, part in module.named_modules():
        if path:
            part.__dict__["forward"] = partial(noted, path, part.forward)
    return events, run(module, given)


def outermost(events: Iterable[Event]) -> list[Event]:
    """Return those of `events`, in order, that are within no other of them."""
    found: list[Event] = []
    for event in events:
        if not found or event.start > found[-1].end:
            found.append(event)
    return found


def layer_lists(module: nn.Module, events: list[Event], name: str | None = None) -> list[tuple[str, list[str]]]:
    """Find lists of modules that were called one after the other; the one with most parameters comes first.

    Neighbours of one class in an `nn.Sequential`, or in a list of several classes, are a list of their own.
    Each has its name, and the paths of its modules in the order of their calls; `name` asks for one alone.
    """
    known = {id(part): path for path, part in module.named_modules()}
    found = []
    for path, box in module.named_modules():
        if not isinstance(box, nn.ModuleList | nn.Sequential) or name not in (None, path):
            continue
        children = list(box._modules.values())
        alike = [list(group) for _, group in groupby(children, key=type)]
        whole = name is not None or isinstance(box, nn.ModuleList) or len(alike) == 1
        for layers in [*([children] if whole else []), *(alike if len(alike) > 1 else [])]:
            order = [known[id(layer)] for layer in layers]
            calls = [call.path for call in outermost(event for event in events if event.path in order)]
            if len(calls) > 1 and calls == order * (len(calls) // len(order)):
                weights = {id(weight): weight.numel() for layer in layers for weight in layer.parameters()}
                found.append((sum(weights.values()), path, calls))
    return [(path, calls) for _, path, calls in sorted(found, key=lambda item: -item[0])]
