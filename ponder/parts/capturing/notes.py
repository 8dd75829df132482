"""What one forward of a module with stubs in the place of its layers tells: with what each of them is called."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ponder._utils.trees import leaves, map_leaves
from ponder.errors import PonderError
from ponder.parts.capturing.modes import Mode, other_mode
from ponder.parts.capturing.watching import Mark, version_of

__all__ = [
    "CodeBetweenError",
    "EnoughError",
    "LayerCall",
    "Notes",
    "first_floating",
    "is_state",
    "told_otherwise",
]

_HIDDEN = Mark("state", "hidden")


@dataclass(frozen=True)
class LayerCall:
    """One call of a module that is a layer or a part of one.

    Args:
        layer: Which layer, counted from 0.
        path: The module.
        answer: What it answers, with marks in the place of tensors: the hidden state, and what else it hands on.
        last: Whether the layer ends with it.
    """

    layer: int
    path: str
    answer: Any
    last: bool

    def hidden_in(self, output: Any) -> Tensor:
        """The hidden state in what the call gave."""
        first = self.answer[0] if isinstance(self.answer, tuple) else None
        if isinstance(first, Mark) and first.key == "hidden":  # nearly always
            leaf: Tensor = output[0]
            return leaf
        pairs = zip(leaves(self.answer), leaves(output), strict=True)
        found: Tensor = next(leaf for mark, leaf in pairs if isinstance(mark, Mark) and mark.key == "hidden")
        return found


@dataclass(eq=False)
class Notes:
    """What one forward with stubs gathers: the arguments of the layers, and the answers of the modules before them.

    Args:
        module: The module.
        layers: The calls that its layers consist of, in order.
        only_first: Whether the first of them tells all that is asked.
        mode: That of the call; layers that the module's own code calls in another are noted with theirs.
    """

    module: nn.Module
    layers: tuple[LayerCall, ...]
    only_first: bool
    mode: Mode
    tensors: list[Tensor] = field(default_factory=list)
    calls: list[Any] = field(default_factory=list)
    reads: list[frozenset[str]] = field(default_factory=list)
    modes: dict[int, Mode] = field(default_factory=dict)
    before: dict[str, list[Any]] = field(default_factory=dict)
    hidden: Any = None
    _slots: dict[int, Mark] = field(default_factory=dict)
    _state: dict[int, Mark] = field(default_factory=dict)

    @property
    def arguments(self) -> list[Any]:
        """What the layers are called with, one after the other."""
        return list(leaves(self.calls))

    @property
    def ran(self) -> frozenset[int]:
        """The layers, or parts of them, that were called."""
        return frozenset(number for number, call in enumerate(self.calls) if call is not None)

    def tensors_in(self, other: Notes) -> list[Tensor] | None:
        """The tensors that `other` has in the places of these; None where not all of them have one."""
        calls, others = _both(self, other)
        mine, theirs = list(leaves((calls, self.before))), list(leaves((others, other.before)))
        found = {
            mark.key: other.tensors[there.key]
            for mark, there in zip(mine, theirs, strict=False)
            if _is_noted(mark) and _is_noted(there)
        }
        if len(mine) != len(theirs) or len(found) != len(self.tensors):
            return None
        return [found[slot] for slot in range(len(found))]

    def mark(self, leaf: Any) -> Any:
        """Put a mark in the place of a tensor, and leave anything else.

        Raises:
            CodeBetweenError: It is a mask of flex attention, compiled for the rows of the call: its kernel would read
                the memory of others for fewer. Where the module's own code runs again, it is made anew.
        """
        if not isinstance(leaf, Tensor):
            if type(leaf).__name__ == "BlockMask":  # by its name: its module takes long to import
                raise CodeBetweenError("a layer is called with a mask that is compiled for the whole batch")
            return leaf
        if id(leaf) in self._state and version_of(leaf) == self._versions.get(id(leaf), version_of(leaf)):
            mark = self._state[id(leaf)]
            self._read.add(mark.key)
            return mark
        if id(leaf) not in self._slots:
            self._slots[id(leaf)] = Mark("noted", len(self.tensors))
            self.tensors.append(leaf)
        return self._slots[id(leaf)]

    def layer(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """The stub of a layer: it notes its arguments, and hands on the hidden state."""
        if self.hidden is None:
            self.hidden = first_floating((args, kwargs))
            self._state = {id(self.hidden): _HIDDEN}
            if self.only_first:
                raise EnoughError
        number = len(self.calls)
        while number < len(self.layers) and self.layers[number].path != path:  # layers that this call leaves out
            self.calls.append(None)
            self.reads.append(frozenset())
            number += 1
        if number == len(self.layers):
            raise CodeBetweenError(f"{path} was called once more")
        self._read.clear()
        self.calls.append((map_leaves(self.mark, args), map_leaves(self.mark, kwargs)))
        if "hidden" not in self._read:
            raise CodeBetweenError(f"{path} is not called with what the layer before gave, untouched")
        if mode := other_mode(self.mode):
            self.modes[number] = mode
        self.reads.append(frozenset(self._read - {"hidden"}))
        if number + 1 == len(self.layers):
            raise EnoughError
        self._state = {}
        return map_leaves(self._hand_on, self.layers[number].answer)

    def earlier(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """A module before the layers: it runs, and its answer is noted."""
        answer = self.module.get_submodule(path)(*args, **kwargs)
        if self.hidden is None:
            self.before.setdefault(path, []).append(map_leaves(self.mark, answer))
        return answer

    def _hand_on(self, leaf: Any) -> Any:
        """A new tensor for a mark, so that the next layer's arguments show by identity what they are."""
        if not is_state(leaf):
            return leaf
        tensor = self.hidden.detach() if leaf.key == "hidden" else self.hidden.new_zeros(())
        self._state[id(tensor)], self._versions[id(tensor)] = leaf, version_of(tensor)
        self._keep.append(tensor)
        return tensor

    def __post_init__(self) -> None:
        self._keep: list[Tensor] = []  # alive, so that no other tensor gets their identity
        self._versions: dict[int, int] = {}  # by identity, when they were handed on
        self._read: set[str] = set()  # what the layer that is noted reads of what was handed on


def told_otherwise(one: Notes, other: Notes) -> bool:
    """Whether layers that both called have as many arguments, and other numbers (flags too) among them."""
    before, after = (list(leaves(calls)) for calls in _both(one, other))
    pairs = zip(before, after, strict=False)
    numbers = [(a, b) for a, b in pairs if isinstance(a, int | float) and isinstance(b, int | float)]
    return len(before) == len(after) and any(a != b for a, b in numbers)


def _both(one: Notes, other: Notes) -> tuple[list[Any], list[Any]]:
    """The calls of the layers that both called: in training, some may be left out by chance."""
    ran = sorted(one.ran & other.ran)
    return [one.calls[number] for number in ran], [other.calls[number] for number in ran]


def first_floating(tree: Any) -> Tensor:
    """The first floating-point tensor of `tree`."""
    for leaf in leaves(tree):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf
    raise CodeBetweenError("the first layer takes no floating-point tensor")


def _is_noted(leaf: Any) -> bool:
    return isinstance(leaf, Mark) and leaf.kind == "noted"


def is_state(leaf: Any) -> bool:
    """Whether a leaf marks what a layer hands on."""
    return isinstance(leaf, Mark) and leaf.kind == "state"


class CodeBetweenError(PonderError):
    """A layer is not called with what the one before gave: code of the module's own stands between them.

    Args:
        met: What was met.
    """

    def __init__(self, met: str) -> None:
        self.met = met
        super().__init__(
            f"The layers are not called as in the example that the module was captured with: {met}. Capture it again "
            "with an example like these inputs, or give PonderWrapper its stem, steps and readout yourself."
        )

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.met,)


class EnoughError(Exception):
    """Raised by a stub: nothing of the forward is needed any more."""
