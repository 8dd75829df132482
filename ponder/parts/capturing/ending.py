"""What follows the layers: found in a call that was watched, compared with that of another, and read for a state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ponder._utils.trees import leaves, map_leaves
from ponder.parts.capturing.notes import LayerCall, is_state
from ponder.parts.capturing.watching import LOST, Call, Mark, Tail, Watched

__all__ = ["Reading", "find_tail", "goes_alike", "numbers_apart"]


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
        return marks.get(id(leaf), LOST) if isinstance(leaf, Tensor) else leaf

    calls: list[tuple[str, Any, Any]] = []
    for call in watched.outermost([c for c in watched.calls if c.start > last.end]):
        made = (call.path, map_leaves(mark, call.args), map_leaves(mark, dict(call.kwargs)))
        if LOST in leaves(made):
            continue  # what it gives has no mark either
        for place, leaf in call.untouched():
            # Also of what a dropout hands on as it is: in training that is another tensor.
            marks[id(leaf)] = Mark("made", (len(calls), place))
        calls.append(made)
    return Tail(tuple(calls), tree_map(mark, watched.output))


def numbers_apart(before: Any, after: Any) -> tuple[float, float] | None:
    """The first two numbers that are not the same in the same place of two outputs; None where all are."""
    pairs = zip(leaves(before), leaves(after), strict=False)
    numbers = ((one, two) for one, two in pairs if isinstance(one, int | float) and isinstance(two, int | float))
    return next((pair for pair in numbers if pair[0] != pair[1]), None)


def goes_alike(layers: Sequence[LayerCall], tail: Tail | None, watched: Watched, *, reads_numbers: bool) -> bool:
    """Whether a call has the known layers, or some of them, hands on the same numbers, and ends in the same way.

    Args:
        layers: The calls that the layers consist of, in order.
        tail: What follows them; None where it is not read off a call.
        watched: The call.
        reads_numbers: Whether numbers that layers hand on are read.
    """
    calls = iter([call for call in watched.calls if call.path in {layer.path for layer in layers}])
    last, call = None, next(calls, None)
    for layer in layers:
        if call is None or call.path != layer.path:
            continue  # left out
        if reads_numbers and numbers_apart(layer.answer, call.output):
            return False
        last, call = call, next(calls, None)
    # None is called where chance, in training, left out all of them; a call of the model itself then says so.
    return last is None or tail is None or tail.is_that_of(find_tail(watched, last, layers[-1]))


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
