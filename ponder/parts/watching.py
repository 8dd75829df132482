"""Watching one forward pass: which modules ran and with what, which of them are the layers, and what follows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ponder.errors import ArgumentError
from ponder.parts.twin import watched_copy

__all__ = ["Call", "Layers", "Mark", "Tail", "Watched", "find_layers", "find_tail", "leaves", "map_leaves", "watch"]


@dataclass(frozen=True)
class Mark:
    """Stands for a tensor in a tree of arguments.

    Args:
        kind: ``"state"``, something that one layer hands to the next; ``"noted"``, a tensor that the modules before
            the layers made; ``"made"``, what a call of the tail gave.
        key: Which one.
    """

    kind: str
    key: Any


@dataclass
class Call:
    """One call of a module: where it stands among the others, its arguments and its answer."""

    path: str
    start: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any = None
    end: int = -1


@dataclass
class Watched:
    """A forward pass: its calls in the order in which they began, and what came out."""

    calls: list[Call] = field(default_factory=list)
    output: Any = None

    def outermost(self, calls: Sequence[Call]) -> list[Call]:
        """Those of `calls` that were not made inside another one of them."""
        kept: list[Call] = []
        for call in calls:
            if not kept or call.start > kept[-1].end:
                kept.append(call)
        return kept


@dataclass(frozen=True)
class Layers:
    """The layers of a module: for each, the calls that it consists of, nearly always one."""

    name: str
    calls: tuple[tuple[Call, ...], ...]

    @property
    def paths(self) -> tuple[tuple[str, ...], ...]:
        """By layer, the paths of the modules it calls."""
        return tuple(tuple(call.path for call in layer) for layer in self.calls)


@dataclass(frozen=True)
class Tail:
    """What follows the layers, where it is nothing but calls of modules on one another's answers.

    Args:
        calls: Path, arguments with marks, and keyword arguments with marks.
        output: The module's output, with marks in the place of its tensors.
    """

    calls: tuple[tuple[str, Any, Any], ...]
    output: Any


def watch(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Watched:
    """Run `module` once, without gradients, and note every call of its submodules; `module` is not changed."""
    watched, clock = Watched(), iter(range(1 << 62))

    def note(path: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = Call(path, next(clock), args, kwargs)
        watched.calls.append(call)
        call.output = forward(*args, **kwargs)
        call.end = next(clock)
        return call.output

    with torch.no_grad():
        watched.output = watched_copy(module, note)(*args, **kwargs)
    return watched


def find_layers(module: nn.Module, watched: Watched, name: str | None, count: int | None) -> Layers:
    """The list of layers that the watched call ran one after the other: of several, the one with most weights.

    Args:
        module: The module.
        watched: A call of it.
        name: Where the list is, `"encoder.layer"`; found where None.
        count: How many layers there must be, where the caller knows.

    Raises:
        ArgumentError: There is none.
    """
    boxes = [(path, box) for path, box in module.named_modules() if isinstance(box, nn.ModuleList | nn.Sequential)]
    found = [(path, box, _runs(path, watched)) for path, box in boxes if name is None or path == name]
    found = [(path, box, runs) for path, box, runs in found if _all_called(path, box, runs)]
    right = [item for item in found if count is None or len(item[2]) == count]
    if not right:
        lists = ", ".join(f"{path or 'the module itself'} ({len(runs)})" for path, _, runs in found) or "none"
        wanted = "a list of layers" if count is None else f"a list of {count} layers"
        raise ArgumentError(
            "module",
            expected=f"{wanted}{'' if name is None else f' at {name!r}'} that are called one after the other",
            got=f"lists called so: {lists}",
            remedy="Name the list of layers by capture(…, layers='encoder.layer'), say, or give PonderWrapper the stem "
            "and the steps yourself.",
        )
    path, _, runs = max(right, key=lambda item: (_alike(item[1]), sum(p.numel() for p in item[1].parameters())))
    return Layers(path, tuple(runs))


def find_tail(watched: Watched, layers: Layers, hidden: Callable[[Any], Tensor]) -> Tail | None:
    """What follows the layers as a chain of calls; None where code of the module's own stands between them.

    Args:
        watched: The call.
        layers: Its layers.
        hidden: From a layer's output to the hidden state in it.
    """
    last = layers.calls[-1][-1]
    marks: dict[int, Mark] = {id(hidden(last.output)): Mark("state", "hidden")}

    def mark(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in marks:
            raise _NoChainError
        return marks[id(leaf)]

    calls = []
    try:
        for call in watched.outermost([c for c in watched.calls if c.start > last.end]):
            try:
                made = (call.path, map_leaves(mark, call.args), map_leaves(mark, dict(call.kwargs)))
            except _NoChainError:
                continue  # it counts only where the output needs it, which then has no mark
            for number, leaf in enumerate(leaves(call.output)):
                if isinstance(leaf, Tensor):
                    marks.setdefault(id(leaf), Mark("made", (len(calls), number)))
            calls.append(made)
        return Tail(tuple(calls), tree_map(mark, watched.output))
    except _NoChainError:
        return None


def map_leaves(change: Callable[[Any], Any], tree: Any) -> Any:
    """`tree` with `change` of its leaves; tuples, lists and dicts are nodes."""
    kind = type(tree)
    if kind is tuple:
        return tuple([map_leaves(change, value) for value in tree])
    if kind is dict:
        return {key: map_leaves(change, value) for key, value in tree.items()}
    if kind is list:
        return [map_leaves(change, value) for value in tree]
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return kind(*(map_leaves(change, value) for value in tree))
    if isinstance(tree, dict):
        return kind(**{key: map_leaves(change, value) for key, value in tree.items()})
    return change(tree)


def leaves(tree: Any) -> Iterator[Any]:
    """The leaves of `tree`, in the order of `map_leaves`."""
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, list | tuple):
        yield tree
        return
    for value in tree:
        yield from leaves(value)


class _NoChainError(Exception):
    """A tensor came from somewhere else."""


def _runs(path: str, watched: Watched) -> list[tuple[Call, ...]]:
    """The calls of what stands in the list at `path`, by entry: one of the entry itself, or those inside it."""
    prefix = f"{path}." if path else ""
    depth = prefix.count(".")
    calls = watched.outermost([call for call in watched.calls if call.path != path and call.path.startswith(prefix)])
    runs: list[tuple[Call, ...]] = []
    for entry, group in groupby(calls, key=lambda call: call.path.split(".")[depth]):
        found = list(group)
        runs += [(call,) for call in found] if found[0].path == prefix + entry else [tuple(found)]
    return runs


def _all_called(path: str, box: nn.Module, runs: Sequence[tuple[Call, ...]]) -> bool:
    """Whether two runs or more are there, all entries took part, and entries of several modules were run once each."""
    depth = len(path.split(".")) if path else 0
    entries = [run[0].path.split(".")[depth] for run in runs]
    nested = any(len(run[0].path.split(".")) > depth + 1 for run in runs)
    if len(runs) < 2 or set(entries) != set(box._modules):
        return False
    return not nested or len(set(entries)) == len(entries)


def _alike(box: nn.Module) -> bool:
    return len({type(child) for child in box.children()}) == 1
