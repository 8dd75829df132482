"""What follows the layers: found in a call that was watched, compared with that of another, and read for a state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ponder._utils.trees import leaves, map_leaves
from ponder.parts.capturing.notes import LayerCall, is_state
from ponder.parts.capturing.watching import Call, Mark, Watched

__all__ = ["Reading", "Tail", "find_tail", "goes_alike"]

_LOST = Mark("lost", None)  # a tensor of which no call of a module tells where it came from


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
        return _LOST not in leaves(reads(self.output))

    def is_that_of(self, other: Tail) -> bool:
        """Whether another call ended in the same way, as far as it is known how this one did."""
        pairs = zip(leaves(self.output), leaves(other.output), strict=False)
        return _same_leaves(self.calls, other.calls) and all(
            mark == after for mark, after in pairs if isinstance(mark, Mark) and mark != _LOST
        )


def find_tail(watched: Watched, last: Call, layer: LayerCall) -> Tail:
    """What follows the layers as a chain of calls.

    Args:
        watched: The call of the module.
        last: The call in it with which the layers end.
        layer: What is known of that call.
    """
    state = layer.hidden_in(last.output)
    marks = {id(leaf): Mark("state", "hidden") for _, leaf in last.untouched() if leaf is state}

    def mark(leaf: Any) -> Any:
        return marks.get(id(leaf), _LOST) if isinstance(leaf, Tensor) else leaf

    calls: list[tuple[str, Any, Any]] = []
    for call in watched.outermost([c for c in watched.calls if c.start > last.end]):
        made = (call.path, map_leaves(mark, call.args), map_leaves(mark, dict(call.kwargs)))
        if _LOST in leaves(made):
            continue  # what it gives has no mark either
        for place, leaf in call.untouched():
            marks.setdefault(id(leaf), Mark("made", (len(calls), place)))
        calls.append(made)
    return Tail(tuple(calls), tree_map(mark, watched.output))


def goes_alike(layers: Sequence[LayerCall], tail: Tail | None, watched: Watched) -> bool:
    """Whether a call has the known layers, or some of them, hands on the same numbers, and ends in the same way.

    Args:
        layers: The calls that the layers consist of, in order.
        tail: What follows them; None where it is not read off a call.
        watched: The call.
    """
    calls = iter([call for call in watched.calls if call.path in {layer.path for layer in layers}])
    last, call = None, next(calls, None)
    for layer in layers:
        if call is None or call.path != layer.path:
            continue  # left out
        if not _same_leaves(layer.answer, call.output, (int, float)):
            return False
        last, call = call, next(calls, None)
    return last is not None and (tail is None or tail.is_that_of(find_tail(watched, last, layers[-1])))


@dataclass(eq=False)
class Reading:
    """One reading of the tail for a hidden state: its modules are called where their answers are needed, once each."""

    module: nn.Module
    tail: Tail
    hidden: Tensor
    made: dict[int, list[Any]] = field(default_factory=dict)

    def value(self, leaf: Any) -> Any:
        """What a mark stands for."""
        if not isinstance(leaf, Mark):
            return leaf
        if is_state(leaf):
            return self.hidden
        number, place = leaf.key
        if number not in self.made:
            path, args, kwargs = self.tail.calls[number]
            module = self.module.get_submodule(path)
            answer = module(*map_leaves(self.value, args), **map_leaves(self.value, kwargs))
            self.made[number] = list(leaves(answer))
        return self.made[number][place]


def _same_leaves(one: Any, other: Any, kinds: tuple[type, ...] = (Mark, str, bool, int, float, type(None))) -> bool:
    """Whether two trees have the same leaves of some kinds, marks and plain values; others are not compared."""
    before, after = list(leaves(one)), list(leaves(other))
    return len(before) == len(after) and all(
        mine == theirs for mine, theirs in zip(before, after, strict=True) if isinstance(mine, kinds)
    )
