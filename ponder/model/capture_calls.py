"""A module called layer by layer: its forward up to the layers, each layer, and what follows them.

Nothing is patched. A call makes a *twin*: a shallow copy of the modules on the paths to the layers, with the same
weights, whose layers are stubs. The twin's forward is the stem: the stubs note what the layers would be called with.
A step calls the real layer with that, for the rows that remain. What follows the layers is a chain of modules, or, where
code of the module's own stands there, the twin's forward again, in which the modules before the layers answer what they
answered the first time.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ponder._utils.trees import Shared, Tree, map_tensors
from ponder.errors import ArgumentError
from ponder.model.capture_watch import HIDDEN, LOST, Event, Given, Mark, Select, Tail, Template
from ponder.model.capture_watch import find_tail, outermost, private_copy, run, watch
from ponder.model.padding import REAL, Along

KIND, FOLDED = "kind", -1  # FOLDED: the first dimension holds several entries a row
_PLAIN = (bool, int, str, type(None))


@dataclass(eq=False)
class Notes:
    """The arguments of the layers, and the answers of the modules before them, as noted in one call."""

    calls: list[Template] = field(default_factory=list)
    before: dict[str, list[Template]] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)
    entering: int = 0  # number of tensors that are known when the first layer is called
    hidden: Tensor | None = None
    _marks: dict[int, Mark] = field(default_factory=dict)
    _alive: list[Any] = field(default_factory=list)

    def like(self) -> list[Any]:
        """Return the type of each tensor, and which of its dimensions are 1."""
        return [(tensor.dtype, [size == 1 for size in tensor.shape]) for tensor in self.tensors]

    def answer(self, path: str, value: Any) -> None:
        """Note the answer of a module before the layers."""
        self.before.setdefault(path, []).append(Template.of(value, self._mark))

    def call(self, given: tuple[Any, Any], entry: int) -> None:
        """Note the arguments of a layer, of which the first has the hidden state at `entry`."""
        if self.hidden is None:
            leaves = tree_leaves(given)
            found = [leaf for leaf in (*leaves[entry : entry + 1], *leaves) if isinstance(leaf, Tensor)]
            self.hidden = next((leaf for leaf in found if leaf.is_floating_point()), found[0])
            self._marks[id(self.hidden)] = HIDDEN
        call = Template.of(given, self._mark)
        marks = [mark for _, mark in call.marks]
        if HIDDEN not in marks or LOST in marks:
            raise refusal(f"code of its own in front of layer {len(self.calls) + 1}")
        self.calls.append(call)
        self.entering = self.entering or len(self.tensors)
        self._marks = {key: LOST if mark.kind == "state" else mark for key, mark in self._marks.items()}

    def hand_on(self, mark: Mark, tensor: Tensor | None = None) -> Tensor:
        """Note a tensor that a layer gives, or a placeholder for it."""
        assert self.hidden is not None
        if tensor is None:
            tensor = self.hidden.detach() if mark == HIDDEN else self.hidden.new_zeros(())
        self._marks[id(tensor)] = mark
        self._alive.append(tensor)
        return tensor

    def _mark(self, tensor: Tensor) -> Mark:
        found = self._marks.get(id(tensor))
        if found is None:
            found = self._marks[id(tensor)] = Mark("noted", len(self.tensors))
            self.tensors.append(tensor)
        return found


@dataclass
class Kind:
    """What holds for calls in which the layers are called alike; their rows can share a batch.

    Args:
        calls: The arguments of each layer.
        outputs: What each gives.
        before: The answers of the modules before the layers, where the module's code runs again behind them.
        tail: The modules behind the layers; None where the module's code runs again.
        dims: The dimension of the rows in each noted tensor, or None, and in what layers give, by its name.
        given: The module's own arguments, where its code runs again.
        entry: The place of the hidden state among the arguments of a layer.
        early: Whether all noted tensors are known when the first layer is called.
        like: Type of each noted tensor, and which of its dimensions are 1.
        branches: The ways to the modules that a twin replaces.
        names: The names of the noted tensors in the context of the steps.
        leaves: The part of the output that each readout selects, where it is one tensor.
    """

    calls: list[Template]
    outputs: list[Template]
    before: dict[str, list[Template]]
    tail: Tail | None
    dims: dict[int | str, int | None]
    given: list[str | int]
    entry: int
    early: bool
    like: list[Any] = field(compare=False)
    branches: dict[str, Any] = field(compare=False, default_factory=dict)
    names: list[str] = field(compare=False, default_factory=list)
    leaves: dict[Select, Mark | None] = field(compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.places = [{mark.key: place for place, mark in output.marks} for output in self.outputs]
        marks = [mark for call in self.calls for _, mark in call.marks]
        self.others = sorted({mark.key for mark in marks if mark.kind == "state" and mark != HIDDEN})

    def fits(self, notes: Notes) -> bool:
        """Whether a call went like this."""
        calls = self.calls[: len(notes.calls)]
        return notes.calls == calls and notes.before == self.before and notes.like() == self.like


class Layered:
    """A module as stem, steps and readout. It has no tensors of its own, and calls the module's layers in place.

    Args:
        module: The module.
        order: The names of its layers, in the order of their calls.
        example: The example's arguments.
    """

    def __init__(self, module: nn.Module, order: Sequence[str], example: Given) -> None:
        self.module, self.order = module, list(order)
        self.first: str | int = next(key for key, value in example.items() if isinstance(value, Tensor))
        self.constants = {key: value for key, value in example.items() if not isinstance(value, Tensor)}
        rows = example[self.first].shape[0]
        self.whole = {key for key, value in example.items() if not _has(value, rows)}
        self.selects: list[Select] = []
        self.kinds: dict[Any, list[Kind]] = {}
        self.mask: str | None = None  # name of the mask by which batches get narrower
        self.lengths: dict[str, Along] = {}
        self._parts = [path.split(".") for path in order]

    @property
    def shared(self) -> bool:
        """Whether one layer runs at every step, called alike in all calls that are known."""
        calls = [kind.calls for kinds in self.kinds.values() for kind in kinds]
        return len(set(self.order)) == 1 and all(call == own[0] for own in calls for call in own)

    def of(self, module: nn.Module) -> Layered:
        """Return the same of a copy of the module."""
        other = copy(self)
        other.module = module
        return other

    def stem(self, inputs: Tree, context: Mapping[str, Any]) -> tuple[Tree, dict[str, Any]]:
        """Return h_0 and the context of the steps."""
        given = self._arguments(inputs, context)
        kind, notes = self._kind_of(given)
        rows = self._rows(given)
        after: dict[str, Any] = {name: given[name] for name in REAL if name in given}
        for slot, tensor in enumerate(notes.tensors):
            after[kind.names[slot]] = _rows_first(tensor, kind.dims[slot], rows)
        for key in kind.given:
            whole = isinstance(given[key], Tensor) and not self._has_rows(key, given[key], rows)
            after[f"given_{key}"] = Shared(given[key]) if whole else given[key]
        after[KIND] = Shared(kind)
        hidden = _rows_first(notes.hidden, kind.dims["hidden"], rows)
        return {"hidden": hidden} if kind.others else hidden, after

    def step(self, number: int, state: Tree, context: Mapping[str, Any]) -> Tree:
        """Run layer `number`, counted from 0, on what the layers before gave."""
        kind: Kind = context[KIND]
        args, kwargs = kind.calls[number].fill(_value, state, context)
        layer: Any = self.module
        for name in self._parts[number]:
            layer = layer._modules[name]
        out = layer(*args, **kwargs)
        leaves, places = [out] if isinstance(out, Tensor) else tree_leaves(out), kind.places[number]
        if not isinstance(state, dict):
            dim = kind.dims["hidden"]
            return _rows_first(leaves[places["hidden"]], dim, state.shape[0]) if dim else leaves[places["hidden"]]
        rows, names = state["hidden"].shape[0], [name for name in ("hidden", *kind.others) if name in places]
        return {name: _rows_first(leaves[places[name]], kind.dims[name], rows) for name in names}

    def read(self, select: Select, state: Tree, context: Mapping[str, Any]) -> Any:
        """Return `select` of the module's output, as if its layers had ended with `state`."""
        kind: Kind = context[KIND]
        if kind.tail is None:
            return select(self._replay(state, context))
        leaf = kind.leaves[select]
        if leaf is not None:  # then nothing else is computed
            return self._made(leaf, state, context, {})
        return select(kind.tail.output.fill(self._made, state, context, {}))

    def grown(self, given: Given) -> dict[str | int, Any]:
        """Return arguments with the first row once more at the end."""
        rows = self._rows(given)
        more = {key: torch.cat([v, v[:1]]) for key, v in given.items() if self._has_rows(key, v, rows)}
        return {**given, **more}

    def _kind_of(self, given: Given) -> tuple[Kind, Notes]:
        """Return the kind of a call, learned where there was none like it, and its notes."""
        flags = [(key, type(value), value if isinstance(value, _PLAIN) else None) for key, value in given.items()]
        kinds = self.kinds.setdefault((self.module.training, *flags), [])
        for first in {(kind.early, kind.tail is None): kind for kind in kinds}.values():
            notes = self._dry(given, first)
            for kind in kinds:
                if (kind.early, kind.tail is None) == (first.early, first.tail is None) and kind.fits(notes):
                    return kind, notes
        kind = self._learn(given)
        notes = self._dry(given, kind)
        if not kind.fits(notes):
            raise refusal("layers that are called in another way each time")
        known = list(chain.from_iterable(self.kinds.values()))
        numbers = {tuple(each.names[:1]) for each in known}
        fresh = [f"noted{len(numbers) or ''}_{slot}" for slot in range(len(kind.like))]
        kind.names = next((each.names for each in known if each == kind), fresh)
        kinds.append(kind)
        if self.mask in given:
            self._learn_lengths(kind, notes, given)
        return kind, notes

    def _learn_lengths(self, kind: Kind, notes: Notes, given: Given) -> None:
        """Learn which dimensions of the noted tensors are as long as the mask, and the value behind ends of rows."""
        mask: Tensor = given[self.mask or ""]
        rows, length = mask.shape
        longs = [key for key, value in given.items() if isinstance(value, Tensor) and value.shape[1:2] == (length,)]
        longer = {**given, **{key: torch.cat([given[key], given[key][:, -1:]], 1) for key in longs}}
        more = self.of(private_copy(self.module))._dry(longer, kind)
        ends = (mask[:, -1] != 0) != bool(REAL[self.mask or ""])
        for name, dim, one, other in zip(kind.names, kind.dims.values(), notes.tensors, more.tensors, strict=False):
            one, other = unwrapped(_rows_first(one, dim, rows)), unwrapped(_rows_first(other, dim, rows))
            dims = tuple(n for n, size in enumerate(one.shape) if other.shape[n] == size + 1)
            fill: Any = 0
            if dims and dim is not None and bool(ends.any()):
                values = one[ends].select(dims[-1], -1).unique()
                low = one.is_floating_point() and bool(values[0] == torch.finfo(one.dtype).min)
                fill = _lowest if low else values[0].item() if len(values) == 1 else 0
            if dims:
                self.lengths.setdefault(name, Along(dims, fill))
        self.lengths |= {f"given_{key}": Along() for key in longs if key in kind.given}

    def _dry(self, given: Given, kind: Kind) -> Notes:
        """Run the forward with stubs for layers, up to the last of them, or to the first where that is enough."""
        notes = Notes()

        def layer(path: str, *args: Any, **kwargs: Any) -> Any:
            if not kind.early and path != self.order[len(notes.calls)]:
                raise refusal(f"{path!r} called out of order")
            notes.call((args, kwargs), kind.entry)
            if kind.early or len(notes.calls) == len(self.order):
                raise _EnoughError
            return kind.outputs[len(notes.calls) - 1].fill(notes.hand_on)

        def earlier(path: str, *args: Any, **kwargs: Any) -> Any:
            value = self.module.get_submodule(path)(*args, **kwargs)
            if notes.hidden is None:
                notes.answer(path, value)
            return value

        answers = dict.fromkeys(self.order, layer) | dict.fromkeys(kind.before, earlier)
        with contextlib.suppress(_EnoughError):
            run(_twin(self.module, kind.branches, answers), given)
        if len(notes.calls) < (1 if kind.early else len(self.order)):
            raise refusal(f"a call that runs {len(notes.calls)} of {len(self.order)} layers")
        return notes

    def _learn(self, given: Given) -> Kind:
        """Watch a call, and another with one row more."""
        cuda = {value.device for value in given.values() if isinstance(value, Tensor) and value.is_cuda}
        training = self.module.training
        with torch.random.fork_rng(devices=list(cuda)):
            seen = [watch(private_copy(self.module, training=training), each) for each in (given, self.grown(given))]
        layers = [self._layers(events) for events, _ in seen]
        tails = [find_tail(events, *own[-1], out) for (events, out), own in zip(seen, layers, strict=True)]
        tail = tails[0] if tails[0] == tails[1] and self._complete(tails[0]) else None
        (kind, tensors), (other, more) = (
            self._read(events, own, tail) for (events, _), own in zip(seen, layers, strict=True)
        )
        if kind.calls != other.calls or kind.before != other.before:
            raise refusal("layers whose arguments, but for tensors, depend on the number of rows")
        rows = self._rows(given)
        kind.dims = {key: _row_dim(tensor, more[key], rows) for key, tensor in tensors.items()}
        kind.given = list(given) if tail is None else []
        kind.leaves = {select: tail.leaf(select) for select in self.selects} if tail else {}
        kind.branches = _branches(self.module, [*self.order, *kind.before])
        return kind

    def _layers(self, events: list[Event]) -> list[tuple[Event, Tensor]]:
        """Find the calls of the layers, and the hidden state in what each gives: the next one reads it."""
        calls = outermost(event for event in events if event.path in self.order)
        if [call.path for call in calls] != self.order:
            raise refusal("layers that are not called one after the other")
        found: list[tuple[Event, Tensor]] = []
        place = 0
        for call, after in zip(calls, [*calls[1:], None], strict=True):
            leaves = tree_leaves(call.output)
            read = {id(leaf) for leaf in tree_leaves(after.given)} if after else {id(leaves[place])}
            places = [n for n, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and id(leaf) in read]
            if not places:
                raise refusal(
                    f"code of its own between {call.path!r} and {after.path!r}" if after else "",
                    "Move it into the layers: `x = x + block(x)` becomes a block whose forward returns `x + …`.",
                )
            place = places[0]
            found.append((call, leaves[place]))
        return found

    def _complete(self, tail: Tail) -> bool:
        """Whether the tail makes all that is read, and holds nothing that may differ from call to call."""
        leaves = [tail.leaf(select) for select in self.selects]
        marks = [mark for _, mark in tail.output.marks] if None in leaves else leaves
        values = [leaf for template in (tail.output, *tail.calls) for leaf in template.leaves]
        return LOST not in marks and all(isinstance(value, (*_PLAIN, float)) for value in values)

    def _read(
        self, events: list[Event], layers: list[tuple[Event, Tensor]], tail: Tail | None
    ) -> tuple[Kind, dict[int | str, Tensor]]:
        """Return what holds for a watched call, but for dimensions, and its tensors by their names."""
        notes, outputs = Notes(), list[Template]()
        early = [event for event in events if 0 <= event.end < layers[0][0].start]
        for event in outermost(early) if tail is None else ():
            notes.answer(event.path, event.output)
        second = [id(leaf) for leaf in tree_leaves(layers[1][0].given)]
        entry = second.index(id(layers[0][1]))
        made: dict[int | str, Tensor] = {}
        for event, hidden in layers:
            notes.call(event.given, entry)
            leaves = tree_leaves(event.output)
            marks = {id(leaf): Mark("state", f"other{place}") for place, leaf in enumerate(leaves)}
            marks[id(hidden)] = HIDDEN
            outputs.append(Template.of(event.output, lambda leaf, marks=marks: marks[id(leaf)]))
            for place, mark in outputs[-1].marks:
                made.setdefault(mark.key, notes.hand_on(mark, leaves[place]))
        early_enough = notes.entering == len(notes.tensors)
        kind = Kind(notes.calls, outputs, notes.before, tail, {}, [], entry, early_enough, notes.like())
        return kind, {**dict(enumerate(notes.tensors)), **made}

    def _arguments(self, inputs: Tree, context: Mapping[str, Any]) -> dict[str | int, Any]:
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

    def _has_rows(self, key: str | int, value: Any, rows: int) -> bool:
        return key not in self.whole and _has(value, rows)

    def _made(self, mark: Mark, state: Tree, context: Mapping[str, Any], made: dict[int, list[Any]]) -> Any:
        """Return the tensor of a mark behind the layers; the modules that make it are called once each."""
        if mark.kind != "made":
            return _value(mark, state, context)
        number, place = mark.key
        if number not in made:
            call = context[KIND].tail.calls[number]
            args, kwargs = call.fill(self._made, state, context, made)
            made[number] = tree_leaves(self.module.get_submodule(call.path)(*args, **kwargs))
        return made[number][place]

    def _replay(self, state: Tree, context: Mapping[str, Any]) -> Any:
        """Return the module's output by its own forward, in which every layer gives `state`."""
        kind: Kind = context[KIND]
        hidden, outputs = _value(HIDDEN, state, context).clone(), iter(kind.outputs)
        before = {path: iter(answers) for path, answers in kind.before.items()}

        def layer(path: str, *args: Any, **kwargs: Any) -> Any:
            return next(outputs).fill(lambda mark: hidden if mark == HIDDEN else hidden.new_zeros(()))

        def earlier(path: str, *args: Any, **kwargs: Any) -> Any:
            answer = next(before[path], None)
            if answer is None:  # it runs behind the layers too
                return self.module.get_submodule(path)(*args, **kwargs)
            return map_tensors(torch.clone, answer.fill(_value, state, context))  # since some forwards write into it

        given = {key: context[f"given_{key}"] for key in kind.given}
        answers = dict.fromkeys(self.order, layer) | dict.fromkeys(kind.before, earlier)
        return run(_twin(self.module, kind.branches, answers), given)


def unwrapped(value: Any) -> Any:
    return value.value if isinstance(value, Shared) else value


def _lowest(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).min


class _EnoughError(Exception):
    """Raised by a stub: the stem needs no more of the forward."""


def refusal(got: str, remedy: str = "") -> ArgumentError:
    """Return the error for a module, or a call of it, that is not read layer by layer."""
    return ArgumentError(
        "module",
        expected="a list of layers, called one after the other, each with what the one before gave",
        got=got,
        remedy=remedy or "Capture it with an example like the inputs, or pass stem, steps and readout of your own.",
    )


def _value(mark: Mark, state: Tree, context: Mapping[str, Any]) -> Any:
    """Return the tensor of a mark as the module has it, with the rows that remain."""
    kind: Kind = context[KIND]
    if mark.kind == "noted":
        value = context[kind.names[mark.key]]
    else:
        value = state[mark.key] if isinstance(state, dict) else state
    if isinstance(value, Shared):
        return value.value
    dim = kind.dims[mark.key]
    return value if not dim else value.flatten(0, 1) if dim == FOLDED else value.movedim(0, dim)


def _rows_first(tensor: Any, dim: int | None, rows: int) -> Any:
    """Return a tensor of the module's with its rows first, or shared where it has none; `_value` undoes it."""
    if dim is None:
        return Shared(tensor)
    return tensor if not dim else tensor.unflatten(0, (rows, -1)) if dim == FOLDED else tensor.movedim(dim, 0)


def _row_dim(small: Tensor, large: Tensor, rows: int) -> int | None:
    """Return the dimension of the rows of a tensor, which is `large` with one row more; None where there is none."""
    if small.shape == large.shape:
        return None
    dims = [dim for dim in range(small.dim()) if small.shape[dim] != large.shape[dim]]
    each = large.shape[dims[0]] - small.shape[dims[0]]
    if len(dims) > 1 or small.shape[dims[0]] != rows * each or (each > 1 and dims[0]):
        raise refusal(f"a tensor of shape {tuple(small.shape)}, and {tuple(large.shape)} with one row more")
    return FOLDED if each > 1 else dims[0]


def _has(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == rows


def _branches(module: nn.Module, paths: Sequence[str]) -> dict[str, Any]:
    """Return the ways to the modules at `paths`, by all their names: nested dicts with these paths at their ends."""
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
    """Return a shallow copy of `module` in which the modules at the ends of `branches` answer by `answers`."""
    twin = object.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    children = twin.__dict__["_modules"] = dict(module._modules)
    for name, below in branches.items():
        child: Any = module._modules[name]
        if isinstance(below, dict):
            children[name] = _twin(child, below, answers)
            continue
        children[name] = stub = object.__new__(type(child))
        stub.__dict__.update(child.__dict__)
        stub.__dict__.update({name: OrderedDict() for name in _HOOKS}, forward=partial(answers[below], below))
        stub.__dict__["gradient_checkpointing"] = False
    return twin


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
