"""A module called layer by layer: its forward up to the layers, each layer, and what follows them.

Nothing is patched. A call makes a *twin*: a shallow copy of the modules on the paths to the layers, with the same
weights, whose layers are stubs. The twin's forward is the stem: the stubs note what each layer would be called with,
and hand the hidden state on. A step calls the real layer with what was noted, for the rows that still run. What follows
the layers is a chain of modules, or, where code of the module's own stands there, the twin's forward again, in which
the modules before the layers answer what they answered the first time.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten

from ponder._utils.trees import Shared, Tree
from ponder.errors import ArgumentError
from ponder.model.capture_watch import HIDDEN, LOST, Call, Given, Mark, Tail, Select, find_tail, private_copy, run, watch
from ponder.model.padding import REAL, Along

__all__ = ["PLAN", "Axis", "Layered", "Output", "OtherCallError", "grown"]

PLAN = "plan"

@dataclass(frozen=True)
class Axis:
    """The dimension of a tensor that holds the rows; `folded` where several of its entries belong to one row."""

    dim: int = 0
    folded: bool = False

    def split(self, tensor: Tensor, rows: int) -> Tensor:
        """Put the rows first, in a dimension of their own."""
        first = tensor.movedim(self.dim, 0) if self.dim else tensor
        return first.unflatten(0, (rows, first.shape[0] // rows)) if self.folded else first

    def merge(self, tensor: Tensor) -> Tensor:
        """Undo `split`."""
        first = tensor.flatten(0, 1) if self.folded else tensor
        return first.movedim(0, self.dim) if self.dim else first


_FIRST = Axis()


@dataclass(frozen=True)
class Output:
    """The output of a layer: its structure, its leaves (None for tensors), and the place of the hidden state."""

    spec: TreeSpec
    leaves: tuple[Any, ...]
    tensors: tuple[int, ...]
    hidden: int


@dataclass(frozen=True)
class _Plan:
    """What the steps and the readout of one call need besides tensors. Equal plans can share a batch."""

    calls: tuple[Call | None, ...]
    names: tuple[str, ...]
    axes: tuple[Axis | None, ...]
    handed: tuple[frozenset[int], ...]
    tail: Tail | None
    before: Mapping[str, list[Call]]
    given: Mapping[str | int, Any]


class OtherCallError(ArgumentError):
    """A call in which the layers are not called as in the example that the module was captured with."""

    def __init__(self, got: str) -> None:
        super().__init__(
            "inputs",
            expected="layers that are called one after the other, each with what the one before gave",
            got=got,
            remedy="Capture the module with an example like these inputs, or give PonderWrapper stem, steps and readout "
            "of your own.",
        )

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.got,)


class Layered:
    """A module as stem, steps and readout. It has no tensors of its own, and calls the module's layers in place.

    Args:
        module: The module.
        order: The names of its layers, in the order of their calls.
        outputs: What each gives.
        axes: Where the rows are in the tensors that layers give, by their place.
        before: The names of the outermost modules that run before the layers.
        example: The example's arguments.
        rows: The example's rows.
    """

    def __init__(
        self,
        module: nn.Module,
        order: Sequence[str],
        outputs: Sequence[Output],
        axes: Mapping[int, Axis | None],
        before: Sequence[str],
        example: Given,
        rows: int,
    ) -> None:
        self.module, self.order, self.outputs, self.before = module, tuple(order), tuple(outputs), tuple(before)
        self.axes, self.axis = dict(axes), axes[outputs[0].hidden] or _FIRST
        self.first: str | int = next((key for key, value in example.items() if isinstance(value, Tensor)), 0)
        self.constants = {key: value for key, value in example.items() if not isinstance(value, Tensor)}
        self.whole = {key for key, value in example.items() if isinstance(value, Tensor) and not has_rows(value, rows)}
        self.mask = next((name for name in REAL if isinstance(example.get(name), Tensor)), None)
        self.lengths: dict[str, Along] = {}
        self._kinds: dict[Any, tuple[tuple[str, ...], tuple[Axis | None, ...]]] = {}
        self._tails: dict[Any, Tail | None] = {}
        self.selects: list[Select] = []
        self._parts = [tuple(path.split(".")) for path in self.order]
        self._to_layers = _branches(module, self.order)
        self._to_all = _branches(module, [*self.order, *self.before])

    def of(self, module: nn.Module) -> Layered:
        """The same of a copy of the module."""
        other = copy(self)
        other.module = module
        return other

    def stem(self, inputs: Tree, context: Mapping[str, Any]) -> tuple[Tree, dict[str, Any]]:
        """The module's arguments to h_0 and the context of the steps."""
        given = self.arguments(inputs, context)
        rows = self._rows(given)
        key = tuple([(name, value if isinstance(value, _PLAIN) else type(value)) for name, value in given.items()])
        if key not in self._tails:
            self._tails[key] = self._learn_tail(given)
        tail = self._tails[key]
        notes = self.dry(given, replays=tail is None)
        names, axes = self._learned(notes, given, rows, key, tail is None)
        after: dict[str, Any] = {}
        for name, axis, tensor in zip(names, axes, notes.tensors, strict=True):
            after[name] = tensor if axis is _FIRST else Shared(tensor) if axis is None else axis.split(tensor, rows)
        for name in REAL:
            if name in given:
                after[name] = given[name]
        kept: dict[str | int, Any] = {}
        for name, value in given.items() if tail is None else ():
            kept[name] = value
            if isinstance(value, Tensor):
                kept[name] = Mark(0, 0)
                after[f"given_{name}"] = value if self._has_rows(name, value, rows) else Shared(value)
        calls = (*notes.calls, *[None] * (len(self.order) - len(notes.calls)))
        handed = self._handed(calls)
        after[PLAN] = Shared(_Plan(calls, names, axes, handed, tail, notes.before, kept))
        hidden = self.axis.split(notes.hidden, rows)
        return {"hidden": hidden} if any(handed) else hidden, after

    def reads(self, select: Select) -> None:
        """Make ready for readouts of `select`, a function from the module's output to a tensor."""
        self.selects.append(select)
        self._tails.clear()

    def step(self, number: int, state: Tree, context: Mapping[str, Any]) -> Tree:
        """Layer `number`, counted from 0, on what the layers before gave."""
        plan: _Plan = context[PLAN]
        call = plan.calls[number]
        if call is None:  # left out by LayerDrop
            return state
        args, kwargs = tree_unflatten(self._filled(call, state, context), call.spec)
        layer: Any = self.module
        for name in self._parts[number]:
            layer = layer._modules[name]
        out = layer(*args, **kwargs)
        output = self.outputs[number]
        given = [out] if isinstance(out, Tensor) else tree_leaves(out)
        rows = (state["hidden"] if isinstance(state, dict) else state).shape[0]
        hidden = given[output.hidden]
        if self.axis is not _FIRST:
            hidden = self.axis.split(hidden, rows)
        if not isinstance(state, dict):
            return hidden
        others = {str(key): self._split(given[key], self.axes[key], rows) for key in plan.handed[number]}
        return {"hidden": hidden, **others}

    def read(self, select: Select, state: Tree, context: Mapping[str, Any]) -> Any:
        """`select` of the module's output, as if its layers had ended with `state`."""
        plan: _Plan = context[PLAN]
        if plan.tail is None:
            return select(self._replay(state, context))
        made: dict[int, list[Any]] = {-1: [self._merged(state)]}
        if (found := plan.tail.leaf(select)) is not None:  # then no other is computed
            return self._value(found, plan.tail, made)
        output = tree_map(
            lambda leaf: self._value(leaf, plan.tail, made) if isinstance(leaf, Mark) else leaf, plan.tail.output
        )
        return select(output)

    def dry(self, given: Given, *, replays: bool = True) -> _Notes:
        """One forward with stubs for layers, which ends at the last of them."""
        notes = _Notes(self)
        answers: dict[str, Callable[..., Any]] = dict.fromkeys(self.order, notes.layer)
        if replays:
            answers |= dict.fromkeys(self.before, notes.earlier)
        with contextlib.suppress(_Enough):
            run(_twin(self.module, self._to_all if replays else self._to_layers, answers), given)
        if notes.hidden is None:
            raise OtherCallError("a call that runs none of the layers")
        return notes

    def arguments(self, inputs: Tree, context: Mapping[str, Any]) -> dict[str | int, Any]:
        """The module's own arguments, by name or place."""
        given: dict[str | int, Any] = {**self.constants, **context}
        if isinstance(inputs, Mapping):
            given.update(inputs)
        elif isinstance(inputs, tuple):
            given.update(enumerate(inputs))
        elif inputs is not None:
            given[self.first] = inputs
        return {key: value for key, value in given.items() if value is not None or isinstance(key, int)}

    def _rows(self, given: Given) -> int:
        first = given.get(self.first)
        if not isinstance(first, Tensor):
            first = next(value for value in given.values() if isinstance(value, Tensor))
        return first.shape[0]

    def _has_rows(self, name: str | int, value: Any, rows: int) -> bool:
        return name not in self.whole and has_rows(value, rows)

    def _learn_tail(self, given: Given) -> Tail | None:
        """What follows the layers in calls of this kind; None where the module's own code has to run again."""
        rows = self._rows(given)
        few = {key: value[:2] if self._has_rows(key, value, rows) else value for key, value in given.items()}
        tails = []
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=_devices(given)):
                for training, call in ((False, few), (True, few), (False, self.grown(few))):
                    watched = watch(private_copy(self.module, training=training), call)
                    events = [event for event in watched.events if event.path == self.order[-1]]
                    last = watched.outermost(events)[-1]
                    tails.append(find_tail(watched, last, self.outputs[-1].hidden))
        except Exception:  # in training, say, statistics of too few rows
            return None
        tail = tails[0]
        leaves = tree_leaves((tail.output, [(call.leaves, call.state) for call in tail.calls]))
        plain = all(isinstance(leaf, _VALUES) for leaf in leaves)
        return tail if plain and tail == tails[1] == tails[2] and all(map(tail.gives, self.selects)) else None

    def grown(self, given: Given) -> dict[str | int, Any]:
        """Arguments with the first row once more at the end."""
        rows = self._rows(given)
        return {
            key: torch.cat([value, value[:1]]) if self._has_rows(key, value, rows) else value
            for key, value in given.items()
        }

    def _learned(
        self, notes: _Notes, given: Given, rows: int, key: Any, replays: bool
    ) -> tuple[tuple[str, ...], tuple[Axis | None, ...]]:
        """Names of the noted tensors, and where their rows are: learned once for calls of one kind."""
        kind = (key, tuple([(t.dtype, tuple([size == 1 for size in t.shape])) for t in notes.tensors]))
        if kind not in self._kinds:
            with torch.no_grad(), torch.random.fork_rng(devices=_devices(given)):
                quiet = self.of(private_copy(self.module))
                small, large = (quiet.dry(each, replays=replays) for each in (given, self.grown(given)))
            if small.calls != large.calls or len(small.tensors) != len(notes.tensors):
                raise OtherCallError("layers whose arguments, but for tensors, depend on the number of rows")
            axes = tuple(grown(a, b, rows) for a, b in zip(small.tensors, large.tensors, strict=True))
            mark = len(self._kinds) or ""
            self._kinds[kind] = tuple(f"noted{mark}_{slot}" for slot in range(len(axes))), axes
        return self._kinds[kind]

    def _handed(self, calls: Sequence[Call | None]) -> tuple[frozenset[int], ...]:
        """What later layers read of what each layer gives, besides the hidden state."""
        later: frozenset[int] = frozenset()
        handed = []
        for call in reversed(calls):
            handed.append(later)
            if call is not None:
                later |= {key for _, key in call.state if key != -1}
        return tuple(reversed(handed))

    def _filled(self, call: Call, state: Tree, context: Mapping[str, Any]) -> list[Any]:
        """The leaves of a call's arguments, with the rows that still run."""
        plan: _Plan = context[PLAN]
        leaves = list(call.leaves)
        for place, slot in call.noted:
            value, axis = context[plan.names[slot]], plan.axes[slot]
            leaves[place] = value if axis is None or axis is _FIRST else axis.merge(value)
        for place, key in call.state:
            if key == -1:
                leaves[place] = self._merged(state)
                continue
            value, axis = state[str(key)], self.axes[key]
            leaves[place] = value.value if isinstance(value, Shared) else value if axis is None else axis.merge(value)
        return leaves

    def _merged(self, state: Tree) -> Tensor:
        hidden: Tensor = state["hidden"] if isinstance(state, dict) else state
        return hidden if self.axis is _FIRST else self.axis.merge(hidden)

    def _split(self, tensor: Tensor, axis: Axis | None, rows: int) -> Tensor | Shared:
        return Shared(tensor) if axis is None else axis.split(tensor, rows)

    def _value(self, mark: Mark, tail: Tail, made: dict[int, list[Any]]) -> Tensor:
        """The tensor of a mark; the modules that make it are called once each."""
        if mark.call not in made:
            call = tail.calls[mark.call]
            leaves = list(call.leaves)
            for place, origin in call.state:
                leaves[place] = self._value(origin, tail, made)
            args, kwargs = tree_unflatten(leaves, call.spec)
            made[mark.call] = tree_leaves(self.module.get_submodule(call.path)(*args, **kwargs))
        value: Tensor = made[mark.call][mark.leaf]
        return value

    def _replay(self, state: Tree, context: Mapping[str, Any]) -> Any:
        """The module's output by its own forward, in which every layer gives `state`."""
        plan: _Plan = context[PLAN]
        hidden, remaining = self._merged(state).clone(), {path: list(calls) for path, calls in plan.before.items()}
        outputs = iter(self.outputs)

        def layer(path: str, *args: Any, **kwargs: Any) -> Any:
            return _given(next(outputs), hidden, hidden)

        def earlier(path: str, *args: Any, **kwargs: Any) -> Any:
            if not remaining.get(path):
                return self.module.get_submodule(path)(*args, **kwargs)
            call = remaining[path].pop(0)
            leaves = self._filled(call, state, context)  # copies, since some forwards write into them
            return tree_unflatten([v.clone() if isinstance(v, Tensor) else v for v in leaves], call.spec)

        given = {
            key: context[f"given_{key}"] if isinstance(value, Mark) else value for key, value in plan.given.items()
        }
        answers: dict[str, Callable[..., Any]] = dict.fromkeys(self.order, layer)
        return run(_twin(self.module, self._to_all, answers | dict.fromkeys(self.before, earlier)), given)


@dataclass(eq=False)
class _Notes:
    """What is noted in a dry run: the arguments of the layers, and the answers of the modules before them."""

    layered: Layered
    hidden: Tensor | None = None
    calls: list[Call | None] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    before: dict[str, list[Call]] = field(default_factory=dict)
    _slots: dict[int, int] = field(default_factory=dict)
    _made: dict[int, int] = field(default_factory=dict)
    _past: set[int] = field(default_factory=set)
    _alive: list[Tensor] = field(default_factory=list)

    def layer(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """The stub of a layer: it notes its arguments, and hands on the hidden state."""
        order, number = self.layered.order, len(self.calls)
        while number < len(order) and order[number] != path:  # left out by LayerDrop
            self.calls.append(None)
            number += 1
        if number == len(order):
            raise OtherCallError(f"{path!r} called once more")
        leaves, spec = tree_flatten((args, kwargs))
        if self.hidden is None:
            self.hidden = next(leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point())
            self._made[id(self.hidden)] = -1
        call = self._noted(leaves, spec)
        if not any(key == -1 for _, key in call.state):
            raise OtherCallError(f"code of the module's own in front of {path!r}, layer {number + 1}")
        self.calls.append(call)
        if number + 1 == len(order):
            raise _Enough
        output = self.layered.outputs[number]
        out = _given(output, self.hidden.detach(), self.hidden)
        given = tree_leaves(out)
        self._past.update(self._made)
        self._made = {id(given[place]): -1 if place == output.hidden else place for place in output.tensors}
        self._alive += [given[place] for place in output.tensors]
        return out

    def earlier(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """A module before the layers: it runs, and its answer is noted."""
        out = self.layered.module.get_submodule(path)(*args, **kwargs)
        if self.hidden is None:
            self.before.setdefault(path, []).append(self._noted(*tree_flatten(out)))
        return out

    def _noted(self, leaves: list[Any], spec: TreeSpec) -> Call:
        noted, state = [], []
        for place, leaf in enumerate(leaves):
            if not isinstance(leaf, Tensor):
                continue
            key = id(leaf)
            if key in self._made:
                state.append((place, self._made[key]))
            elif key in self._past and leaf is not self.hidden:
                raise OtherCallError("a layer that reads what another than the one before it gave")
            else:
                slot = self._slots.setdefault(key, len(self.tensors))
                if slot == len(self.tensors):
                    self.tensors.append(leaf)
                noted.append((place, slot))
            leaves[place] = None
        return Call(spec, tuple(leaves), tuple(noted), tuple(state))


class _Enough(Exception):  # noqa: N818
    """Raised by the stub of the last layer: the stem needs no more of the forward."""


_PLAIN = (bool, str, type(None))
_VALUES = (Mark, bool, int, float, str, type(None), torch.dtype, torch.device)


def has_rows(value: Any, rows: int) -> bool:
    """Whether an argument is a tensor with so many rows."""
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == rows


def grown(small: Tensor, large: Tensor, rows: int) -> Axis | None:
    """The axis of the rows of a tensor, which is `large` with one row more; None where it belongs to the batch."""
    dims = [dim for dim in range(small.dim()) if small.dim() == large.dim() and small.shape[dim] != large.shape[dim]]
    if not dims and small.shape == large.shape:
        return None
    each = large.shape[dims[0]] - small.shape[dims[0]] if len(dims) == 1 else 0
    if each < 1 or small.shape[dims[0]] != rows * each:
        raise OtherCallError(f"a tensor of shape {tuple(small.shape)}, {tuple(large.shape)} with one row more")
    return Axis(dims[0], True) if each > 1 else Axis(dims[0]) if dims[0] else _FIRST


def _given(output: Output, hidden: Tensor, like: Tensor) -> Any:
    """A layer's output with this hidden state; its other tensors are placeholders."""
    leaves = list(output.leaves)
    for place in output.tensors:
        leaves[place] = hidden if place == output.hidden else like.new_zeros(())
    return tree_unflatten(leaves, output.spec)


def _branches(module: nn.Module, paths: Sequence[str]) -> dict[str, Any]:
    """The ways from `module` to the modules at `paths`, by all their names: nested dicts whose leaves are these paths."""
    known = {id(module.get_submodule(path)): path for path in paths}
    branches: dict[str, Any] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        *above, last = name.split(".")
        node: Any = branches
        for each in above if id(part) in known else ():
            node = node.setdefault(each, {}) if isinstance(node, dict) else node
        if id(part) in known and isinstance(node, dict):
            node[last] = known[id(part)]
    return branches


def _twin(module: nn.Module, branches: Mapping[str, Any], answers: Mapping[str, Callable[..., Any]]) -> nn.Module:
    """A shallow copy of `module` in which the modules at the ends of `branches` answer by `answers`."""
    twin = object.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    children = twin.__dict__["_modules"] = dict(module._modules)
    for name, below in branches.items():
        child = module._modules[name]
        assert child is not None
        if isinstance(below, dict):
            children[name] = _twin(child, below, answers)
            continue
        stub = object.__new__(type(child))
        stub.__dict__.update(child.__dict__)
        stub.__dict__.update(forward=partial(answers[below], below), gradient_checkpointing=False, **_no_hooks())
        children[name] = stub
    return twin


def _no_hooks() -> dict[str, Any]:
    return {f"_{kind}hooks": OrderedDict() for kind in ("forward_", "forward_pre_", "backward_", "backward_pre_")}


def _devices(given: Given) -> list[int]:
    devices = {value.device for value in given.values() if isinstance(value, Tensor)}
    return [device.index or 0 for device in devices if device.type == "cuda"]
