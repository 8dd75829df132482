"""Watching one forward pass: which modules ran and with what, and which of them are the layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ponder._utils.trees import leaves, tensors
from ponder.errors import ArgumentError
from ponder.parts.capturing.modes import Mode, mode_now, other_mode
from ponder.parts.capturing.twin import watched_copy

__all__ = [
    "LOST",
    "Asked",
    "Call",
    "Layers",
    "Mark",
    "Tail",
    "Watched",
    "find_layers",
    "same_call",
    "version_of",
    "watch",
    "widened",
]


class Asked(TorchDispatchMode):
    """While it is entered, counts what Python asks of tensors ("is any hidden?"), and answers one question otherwise.

    Args:
        otherwise: Which question, counted from 0; None for none.
    """

    def __init__(self, otherwise: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.otherwise, self.questions = otherwise, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        if func is not torch.ops.aten._local_scalar_dense.default or not isinstance(answer, bool):
            return answer
        self.questions += 1
        return answer != (self.questions - 1 == self.otherwise)


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


_Found = tuple[str, nn.Module, list[tuple["Call", ...]]]
"""A list of layers: its path, the list itself, and the calls of its entries."""


@dataclass(eq=False)
class Call:
    """One call of a module: where it stands among the others, its arguments and its answer.

    Its mode is told where the module's own code set another than that of the call of the whole.
    """

    path: str
    start: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    mode: Mode | None = None
    output: Any = None
    end: int = -1
    versions: tuple[int, ...] = ()

    def close(self, output: Any, end: int) -> None:
        """Note the answer, and the versions of its tensors, which tell whether they are written into later."""
        self.output, self.end = output, end
        self.versions = tuple(version_of(leaf) for leaf in leaves(output))

    def untouched(self) -> Iterator[tuple[int, Tensor]]:
        """The tensors of the answer, with their places, that nobody wrote into since."""
        for place, (leaf, version) in enumerate(zip(leaves(self.output), self.versions, strict=True)):
            if isinstance(leaf, Tensor) and version_of(leaf) == version:
                yield place, leaf


@dataclass
class Watched:
    """A forward pass: its calls in the order in which they began, and what came out."""

    calls: list[Call] = field(default_factory=list)
    output: Any = None

    def outermost(self, calls: Sequence[Call]) -> list[Call]:
        """The calls among `calls` that were not made inside another one of them."""
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
        """The paths of the modules that each layer calls."""
        return tuple(tuple(call.path for call in layer) for layer in self.calls)


LOST = Mark("lost", None)  # a tensor of which no call of a module tells where it came from

_TOLD = (Mark, str, bool, int, float, type(None))


@dataclass(frozen=True)
class Tail:
    """What follows the layers: calls of modules on one another's answers.

    Args:
        calls: Path, arguments with marks, and keyword arguments with marks.
        output: The module's output, with marks in the place of its tensors; one of them stands for what code of the
            module's own made of them.
    """

    calls: tuple[tuple[str, Any, Any], ...]
    output: Any

    def gives(self, reads: Callable[[Any], Any]) -> bool:
        """Whether `reads` of the output is made by these calls alone."""
        return LOST not in leaves(reads(self.output))

    def is_that_of(self, other: Tail) -> bool:
        """Whether another call ended in the same way, as far as it is known how this one did."""
        before, after = list(leaves(self.calls)), list(leaves(other.calls))
        told = [(one, two) for one, two in zip(before, after, strict=False) if isinstance(one, _TOLD)]
        pairs = zip(leaves(self.output), leaves(other.output), strict=False)
        made = [(one, two) for one, two in pairs if isinstance(one, Mark) and one != LOST]
        return len(before) == len(after) and all(one == two for one, two in told + made)


def watch(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, with_gradients: bool = False
) -> Watched:
    """Run `module` once, and note every call of its submodules; `module` is not changed."""
    watched, clock = Watched(), iter(range(1 << 62))

    def note(path: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = Call(path, next(clock), args, kwargs, other_mode(mode))
        watched.calls.append(call)
        call.close(forward(*args, **kwargs), next(clock))
        return call.output

    with torch.set_grad_enabled(with_gradients):
        mode = mode_now(tensors((args, dict(kwargs)))[0][1])
        watched.output = watched_copy(module, note)(*args, **kwargs)
    return watched


def find_layers(module: nn.Module, watched: Watched, name: str | None, count: int | None) -> list[Layers]:
    """The lists of layers that the watched call ran one after the other, the likeliest first.

    That is the one with most weights. Where a length is expected, it is one of that length, if there are such, of those
    side by side that call most modules: what an encoder has of as many convolutions may weigh more than its layers.
    Other lists of the same length follow, the last to end first: where a forward goes through several lists side by
    side, a layer ends there.

    Args:
        module: The module.
        watched: A call of it.
        name: The name of the list, `"encoder.layer"`, say; found where None.
        count: How many layers there should be, where the caller knows.

    Raises:
        ArgumentError: There is none.
    """
    boxes = [(path, box) for path, box in module.named_modules() if isinstance(box, nn.ModuleList | nn.Sequential)]
    dicts = [(path, box) for path, box in module.named_modules() if isinstance(box, nn.ModuleDict)]
    found = _called(boxes, name, watched) or _called(dicts, name, watched)
    if not found:
        lists = ", ".join(repr(path) for path, _ in boxes + dicts if path) or "none"
        some = "Name the list of layers by capture(…, layers='encoder.layer'), say"
        none = "Keep the layers in an nn.ModuleList, nn.Sequential or nn.ModuleDict"
        raise ArgumentError(
            "module",
            expected=f"a list of layers{'' if name is None else f' at {name!r}'} that are called one after the other",
            got=f"lists in the module: {lists}",
            remedy=f"{none if lists == 'none' else some}, or give PonderWrapper the stem and the steps yourself.",
        )

    def beside(item: _Found) -> list[_Found]:
        alike = [other for other in found if len(other[2]) == len(item[2])]
        return [other for other in alike if other[0].rpartition(".")[0] == item[0].rpartition(".")[0]]

    def likely(item: _Found) -> tuple[bool, bool, int, int]:
        busiest = max(_duration(runs) for _, _, runs in beside(item)) if len(item[2]) == count else 0
        return len(item[2]) == count, _alike(item[1]), busiest, sum(p.numel() for p in item[1].parameters())

    best = max(found, key=likely)
    _check_whole(best, boxes, name, watched)
    others = sorted((item for item in beside(best) if item is not best), key=lambda item: -item[2][-1][-1].end)
    return [Layers(path, tuple(runs)) for path, _, runs in [best, *others]]


def widened(watched: Watched, layers: Layers) -> Layers:
    """`layers`, each with the calls of other modules since the layer before."""
    cuts = [layer[-1] for layer in layers.calls]
    around = [call for call in watched.calls if any(call.start < cut.start and call.end > cut.end for cut in cuts)]
    calls = watched.outermost([call for call in watched.calls if call not in around])
    wide = []
    for before, cut in pairwise(cuts):
        wide.append(tuple(call for call in calls if before.end < call.start <= cut.start))
    sizes = {len(layer) for layer in wide}
    opening = [call for call in calls if call.start <= cuts[0].start]
    first = tuple(opening[-sizes.pop() :]) if len(sizes) == 1 else layers.calls[0]
    return Layers(layers.name, (first, *wide))


def same_call(watched: Watched, of: Watched, call: Call) -> Call | None:
    """The call in `watched` that is what `call` is in `of`: the first of that module, say; None where none is."""
    before, after = ([each for each in there.calls if each.path == call.path] for there in (of, watched))
    return after[before.index(call)] if len(before) == len(after) else None


def version_of(leaf: Any) -> int:
    """How often a tensor was written into; not counted in inference mode, nor while a module is traced."""
    if torch.compiler.is_compiling():
        return 0
    return leaf._version if isinstance(leaf, Tensor) and not leaf.is_inference() else 0


def _called(boxes: Sequence[tuple[str, nn.Module]], name: str | None, watched: Watched) -> list[_Found]:
    """Those of `boxes`, or the one called `name`, whose entries were called one after the other."""
    found = [(path, box, _runs(path, watched)) for path, box in boxes if name is None or path == name]
    return [(path, box, runs) for path, box, runs in found if _all_called(path, box, runs)]


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
    called, there = ({id(box._modules[name]) for name in names} for names in (entries, box._modules))
    if len(runs) < 2 or called != there:  # the same module may stand in several entries
        return False
    return not nested or len(set(entries)) == len(entries)


def _check_whole(best: _Found, boxes: Sequence[tuple[str, nn.Module]], name: str | None, watched: Watched) -> None:
    """Refuse a list in one of several layers, the lesser part of what ran, where the list of these is not whole.

    The layers behind it would be the tail of every exit, and nothing would be saved.
    """
    path, length = best[0], best[2][-1][-1].end - best[2][0][0].start  # in calls that begin or end
    for outer, box in boxes if name is None else ():
        if not path.startswith(f"{outer}." if outer else "") or outer == path:
            continue
        runs, depth = _runs(outer, watched), len(outer.split(".")) if outer else 0
        called = {run[0].path.split(".")[depth] for run in runs}
        left_out = [entry for entry in box._modules if entry not in called]
        if len(called) > 1 and left_out and _alike(box) and 2 * length < _duration(runs):
            raise ArgumentError(
                "module",
                expected=f"layers in {outer!r} that are all called, one after the other",
                got=f"{', '.join(left_out)} of it that the call left out",
                remedy=f"Remove from the list what never runs; or say layers={path!r}, if these are the layers meant.",
            )


def _duration(runs: Sequence[tuple[Call, ...]]) -> int:
    """How long runs take, in calls that begin or end."""
    return sum(run[-1].end - run[0].start for run in runs)


def _alike(box: nn.Module) -> bool:
    return len({type(child) for child in box.children()}) == 1
