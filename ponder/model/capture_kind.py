"""A module called layer by layer: its forward up to the layers, each layer, and what follows them.

Nothing is patched. A call makes a *twin*: a shallow copy of the modules on the paths to the layers, with the same
weights, whose layers are stubs. The twin's forward is the stem: the stubs note what the layers would be called with. A
step calls the real layer with that, for the rows that remain. What follows the layers is a chain of modules or, where
code of the module's own stands there, the twin's forward again, in which the modules before the layers answer what they
answered the first time.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from ponder._utils.trees import Shared, Tree, first_tensor, map_tensors, unwrap
from ponder.errors import ArgumentError
from ponder.model.capture_watch import HIDDEN, LOST, Event, Given, Mark, Template, outermost, private_copy, run, watch
from ponder.model.padding import REAL, Along

_PLAIN = (bool, int, str, type(None))
KIND, FOLDED = "kind", -1  # FOLDED: the first dimension holds several entries a row
Select = Callable[[Any], Any]  # from the output of a module to the tensor that is read


@dataclass(eq=False)
class Notes:
    """The arguments of the layers, and the answers of the modules before them, as noted in one call."""

    entry: int  # place of the hidden state among the arguments of the first layer
    calls: list[Template] = field(default_factory=list)
    before: list[Template] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    entering: int = 0  # number of tensors that are known when the first layer is called
    hidden: Any = None
    marks: dict[int, Mark] = field(default_factory=dict)  # by the identity of tensors
    alive: list[Any] = field(default_factory=list)

    def mark(self, tensor: Tensor) -> Mark:
        """Return the mark of a tensor."""
        found = self.marks.get(id(tensor))
        if found is None:
            found = self.marks[id(tensor)] = Mark("noted", len(self.tensors))
            self.tensors.append(tensor)
        return found

    def call(self, given: tuple[Any, Any]) -> None:
        """Note the arguments of a layer; all but the first have the hidden state of the one before."""
        leaves, spec = tree_flatten(given)
        if self.hidden is None:
            self.hidden = leaves[self.entry] if self.entry < len(leaves) else None
            if not (isinstance(self.hidden, Tensor) and self.hidden.is_floating_point()):
                self.hidden = next(leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point())
            self.marks[id(self.hidden)] = HIDDEN
        self.calls.append(Template.flat(leaves, spec, self.mark))
        marks = dict(self.calls[-1].marks).values()
        if HIDDEN not in marks or LOST in marks:
            raise refusal(f"code of its own in front of layer {len(self.calls)}")
        self.entering = len(self.tensors) if len(self.calls) == 1 else self.entering

    def hand_on(self, mark: Mark) -> Tensor:
        """Return a placeholder for what a layer gives."""
        tensor: Tensor = self.hidden.detach() if mark == HIDDEN else self.hidden.new_zeros(())
        self.marks[id(tensor)] = mark
        self.alive.append(tensor)
        return tensor

    def like(self) -> list[Any]:
        """Return the type of each tensor, and which of its dimensions are 1."""
        return [(tensor.dtype, [bool(size == 1) for size in tensor.shape]) for tensor in self.tensors]


@dataclass
class Kind:
    """One kind of call of a module, in which its layers are called alike: rows of such calls can share a batch."""

    module: nn.Module = field(compare=False)
    order: list[str]  # the names of the layers
    calls: list[Template]  # their arguments
    outputs: list[Template]  # what they give
    before: list[Template]  # answers of the modules before them, where the module's code runs again behind them
    tail: list[Template] | None  # calls of the modules behind them; None where the module's code runs again
    output: Template = field(compare=False)  # of the module
    entry: int  # place of the hidden state among the arguments of a layer
    early: bool  # whether all noted tensors are known when the first layer is called
    like: list[Any] = field(compare=False)  # type of each noted tensor, and which of its dimensions are 1
    dims: dict[Any, int | None] = field(default_factory=dict)  # of the rows, in noted tensors and outputs of layers
    given: list[str | int] = field(default_factory=list)  # arguments of the module, where its code runs again
    names: list[str] = field(default_factory=list, compare=False)  # of the noted tensors in the context
    leaves: dict[Select, Mark | None] = field(default_factory=dict, compare=False)  # of the output, by readout

    def __post_init__(self) -> None:
        self.places = [{mark.key: place for place, mark in output.marks} for output in self.outputs]
        marks = {mark for call in self.calls for _, mark in call.marks}
        self.others = sorted([mark.key for mark in marks if mark.kind == "state" and mark != HIDDEN])
        self.parts = [path.split(".") for path in self.order]
        self.early_paths = [answer.path for answer in self.before]
        stubs = {id(self.module.get_submodule(path)): path for path in (*self.order, *self.early_paths)}
        names = self.module.named_modules(remove_duplicate=False)
        self.stubs = {name: stubs[id(part)] for name, part in names if id(part) in stubs}
        self.around = {name[:end] for name in self.stubs for end, sign in enumerate(name) if sign == "."}

    def fits(self, notes: Notes) -> bool:
        """Whether a call went like this."""
        if notes.calls != self.calls[: len(notes.calls)] or notes.before != self.before:
            return False
        return not notes.tensors or notes.like() == self.like

    def gives(self, select: Select) -> bool:
        """Find what `select` takes of the output; whether the modules behind the layers make it."""
        try:
            found = select(self.output.fill(lambda mark: mark))
        except Exception:  # of a function that computes something of several tensors
            found = None
        leaf = self.leaves[select] = found if isinstance(found, Mark) else None
        return LOST not in ([leaf] if leaf else dict(self.output.marks).values())

    def stem(self, given: Given) -> Notes:
        """Run the forward with stubs for layers, up to the last of them, or to the first where that is enough."""
        notes = Notes(self.entry)

        def layer(path: str, *args: Any, **kwargs: Any) -> Any:
            if not self.early and path != self.order[len(notes.calls)]:
                raise refusal(f"{path!r} called out of order")
            notes.call((args, kwargs))
            if self.early or len(notes.calls) == len(self.order):
                raise _EnoughError
            return self.outputs[len(notes.calls) - 1].fill(notes.hand_on)

        def earlier(path: str, *args: Any, **kwargs: Any) -> Any:
            value = self.module.get_submodule(path)(*args, **kwargs)
            if notes.hidden is None:
                notes.before.append(Template.of(value, notes.mark, path))
            return value

        with contextlib.suppress(_EnoughError):
            self._run(given, layer, earlier)
        if len(notes.calls) < (1 if self.early else len(self.order)):
            raise refusal(f"a call that runs {len(notes.calls)} of {len(self.order)} layers")
        return notes

    def rows_first(self, tensor: Tensor, name: int | str, rows: int) -> Any:
        """Return a tensor of the module's with its rows first, or shared where it has none."""
        dim = self.dims[name]
        if dim is None:
            return Shared(tensor)
        return tensor if not dim else tensor.unflatten(0, (rows, -1)) if dim == FOLDED else tensor.movedim(dim, 0)

    def value(self, mark: Mark, state: Tree, context: Mapping[str, Any], made: dict[int, Any] | None = None) -> Any:
        """Return the tensor of a mark as the module has it; modules behind the layers are called once each."""
        if mark.kind == "made" and made is not None and self.tail is not None:
            number, place = mark.key
            if number not in made:
                args, kwargs = self.tail[number].fill(self.value, state, context, made)
                made[number] = tree_leaves(self.module.get_submodule(self.tail[number].path)(*args, **kwargs))
            return made[number][place]
        if mark.kind == "noted":
            value = context[self.names[mark.key]]
        else:
            value = state if isinstance(state, Tensor) else state[mark.key]
        if isinstance(value, Shared):
            return value.value
        dim = self.dims[mark.key]
        return value if not dim else value.flatten(0, 1) if dim == FOLDED else value.movedim(0, dim)

    def replay(self, state: Tree, context: Mapping[str, Any]) -> Any:
        """Return the module's output by its own forward, in which every layer gives `state`."""
        hidden, outputs, before = self.value(HIDDEN, state, context).clone(), iter(self.outputs), list(self.before)

        def layer(path: str, *args: Any, **kwargs: Any) -> Any:
            return next(outputs).fill(lambda mark: hidden if mark == HIDDEN else hidden.new_zeros(()))

        def earlier(path: str, *args: Any, **kwargs: Any) -> Any:
            answer = next((answer for answer in before if answer.path == path), None)
            if answer is None:  # it runs behind the layers too
                return self.module.get_submodule(path)(*args, **kwargs)
            before.remove(answer)
            return map_tensors(torch.clone, answer.fill(self.value, state, context))  # since it may be written into

        return self._run({key: context[f"given_{key}"] for key in self.given}, layer, earlier)

    def _run(self, given: Given, layer: Callable[..., Any], earlier: Callable[..., Any]) -> Any:
        answers = dict.fromkeys(self.order, layer) | dict.fromkeys(self.early_paths, earlier)
        return run(_twin(self.module, self.stubs, self.around, answers), given)


def read_kind(
    module: nn.Module, order: list[str], events: list[Event], output: Any, *, replays: bool
) -> tuple[Kind, dict[int | str, Tensor]]:
    """Read a watched call; return its kind, but for dimensions, and the tensors in it by their names."""
    layers = outermost(event for event in events if event.path in order)
    if [event.path for event in layers] != order:
        raise refusal("layers that are not called one after the other")
    found = [tree_leaves(event.output) for event in layers]
    if any(isinstance(leaf, int | float) for leaves in found for leaf in leaves):
        raise refusal("layers that hand on numbers, which may hang on their input", "Let them hand on tensors.")
    places = [_read_by(one, leaves, after) for one, leaves, after in zip(layers, found, layers[1:], strict=False)]
    places.append(places[-1])
    entry = [id(leaf) for leaf in tree_leaves(layers[1].given)].index(id(found[0][places[0]]))
    notes, outputs, tensors = Notes(entry), list[Template](), dict[int | str, Tensor]()
    first = outermost(event for event in events if 0 <= event.end < layers[0].start)
    notes.before = [Template.of(event.output, notes.mark, event.path) for event in (first if replays else ())]
    for event, leaves, place in zip(layers, found, places, strict=True):
        notes.call(event.given)
        given = {id(leaf): Mark("state", f"other{n}") for n, leaf in enumerate(leaves)} | {id(leaves[place]): HIDDEN}
        known = {key: LOST if mark.kind == "state" else mark for key, mark in notes.marks.items()}
        notes.marks = known | given
        outputs.append(Template.of(event.output, notes.mark))
        tensors |= {mark.key: leaves[n] for n, mark in outputs[-1].marks}
    made: dict[int, Mark] = {id(found[-1][places[-1]]): HIDDEN}
    tail: list[Template] = []

    def origin(tensor: Tensor) -> Mark:
        return made.get(id(tensor), LOST)

    for event in outermost(event for event in events if event.start > layers[-1].end):
        call = Template.of(event.given, origin, event.path)
        if LOST not in [mark for _, mark in call.marks]:
            made.update({id(leaf): Mark("made", (len(tail), n)) for n, leaf in enumerate(tree_leaves(event.output))})
            tail.append(call)
    whole = Template.of(output, origin)
    early, like = notes.entering == len(notes.tensors), notes.like()
    kind = Kind(module, order, notes.calls, outputs, notes.before, None if replays else tail, whole, entry, early, like)
    return kind, tensors | dict(enumerate(notes.tensors))


def refusal(got: str, remedy: str = "") -> ArgumentError:
    """Return the error for a module, or a call of it, that is not read layer by layer."""
    return ArgumentError(
        "module",
        expected="a list of layers, called one after the other, each with what the one before gave",
        got=got,
        remedy=remedy or "Capture it with an example like the inputs, or pass stem, steps and readout of your own.",
    )


class _EnoughError(Exception):
    """Raised by a stub: the stem needs no more of the forward."""


def _read_by(event: Event, leaves: list[Any], after: Event) -> int:
    """Return the place of the tensor in what a layer gives that the next one reads."""
    read = {id(leaf) for leaf in tree_leaves(after.given) if isinstance(leaf, Tensor)}
    places = [place for place, leaf in enumerate(leaves) if id(leaf) in read]
    if places:
        return places[0]
    raise refusal(
        f"code of its own between {event.path!r} and {after.path!r}",
        "Move it into the layers: of `x = x + block(x)`, the addition into the block.",
    )


def row_dim(small: Tensor, large: Tensor, rows: int) -> int | None:
    """Return the dimension of the rows of a tensor, which is `large` with one row more; None where there is none."""
    if small.shape == large.shape:
        return None
    dims = [dim for dim in range(small.dim()) if small.shape[dim] != large.shape[dim]]
    each = large.shape[dims[0]] - small.shape[dims[0]]
    if len(dims) > 1 or small.shape[dims[0]] != rows * each or (each > 1 and dims[0]):
        raise refusal(f"a tensor of shape {tuple(small.shape)}, and {tuple(large.shape)} with one row more")
    return FOLDED if each > 1 else dims[0]


def _twin(
    module: nn.Module,
    stubs: Mapping[str, str],
    around: set[str],
    answers: Mapping[str, Callable[..., Any]],
    at: str = "",
) -> nn.Module:
    """Return a shallow copy of `module` in which the modules named by `stubs` answer by `answers`."""
    twin = object.__new__(type(module))
    twin.__dict__.update(module.__dict__, _modules=dict(module._modules))
    for name, child in module._modules.items():
        path = at + name
        if path in stubs:
            twin._modules[name] = stub = object.__new__(type(child))
            answer = partial(answers[stubs[path]], stubs[path])
            stub.__dict__.update(child.__dict__, forward=answer, gradient_checkpointing=False, **_NO_HOOKS)
        elif path in around and child is not None:
            twin._modules[name] = _twin(child, stubs, around, answers, f"{path}.")
    return twin


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_NO_HOOKS: dict[str, Any] = {name: OrderedDict() for name in _HOOKS}


class CapturedStem(nn.Module):
    """The stem of a captured module, which registers it; it learns each kind of call when it meets the first."""

    def __init__(self, module: nn.Module, order: list[str], example: Given) -> None:
        super().__init__()
        self.module, self.order = module, order
        self.first: str | int = next(key for key, value in example.items() if isinstance(value, Tensor))
        self.constants = {key: value for key, value in example.items() if not isinstance(value, Tensor)}
        self.whole = {key for key, value in example.items() if not _has(value, len(example[self.first]))}
        self.selects: list[Select] = [first_leaf]
        self.kinds: dict[Any, list[Kind]] = {}
        self.mask = ""  # the mask by which batches get narrower
        self.lengths: dict[str, Along] = {}

    @property
    def argument_names(self) -> frozenset[str]:
        """The names of the module's own arguments."""
        return frozenset(inspect.signature(self.module.forward).parameters)

    def of(self, module: nn.Module) -> CapturedStem:
        """Return the stem of a copy of the module, which knows what this one knows."""
        other = copy(self)
        other._modules = {"module": module}
        other.kinds = {key: [replace(kind, module=module) for kind in own] for key, own in self.kinds.items()}
        return other

    def forward(self, inputs: Tree, **context: Any) -> tuple[Tree, dict[str, Any]]:
        """Return h_0 and the context of the steps."""
        given: dict[str | int, Any] = dict(self.constants)
        given.update(context)
        if isinstance(inputs, Mapping | tuple):
            given.update(inputs if isinstance(inputs, Mapping) else enumerate(inputs))
        elif inputs is not None:
            given[self.first] = inputs
        if None in given.values():
            given = {key: value for key, value in given.items() if value is not None or isinstance(key, int)}
        kind, notes = self._kind_of(given)
        if kind.module is not self.module:  # of a replica on another device
            kind = replace(kind, module=self.module)
        rows, after = self._rows(given), dict[str, Any]()
        for name in REAL:
            if name in given:
                after[name] = given[name]
        for slot, tensor in enumerate(notes.tensors):
            after[kind.names[slot]] = kind.rows_first(tensor, slot, rows)
        for key in kind.given:
            whole = isinstance(given[key], Tensor) and key not in self._rowwise(given, rows)
            after[f"given_{key}"] = Shared(given[key]) if whole else given[key]
        after[KIND] = Shared(kind)
        hidden = kind.rows_first(notes.hidden, "hidden", rows) if kind.dims["hidden"] else notes.hidden
        return {"hidden": hidden} if kind.others else hidden, after

    def add(self, select: Select) -> None:
        """Get ready for readouts of `select`; kinds of calls that cannot give it are learned anew."""
        self.selects.append(select)
        for kinds in self.kinds.values():
            kinds[:] = [kind for kind in kinds if kind.tail is None or kind.gives(select)]

    def _rows(self, given: Given) -> int:
        first: Any = given.get(self.first)
        if not isinstance(first, Tensor):
            first = next(value for value in given.values() if isinstance(value, Tensor))
        rows: int = first.shape[0]  # no `len`, which a traced size is lost in
        return rows

    def _rowwise(self, given: Given, rows: int) -> dict[str | int, Tensor]:
        return {key: value for key, value in given.items() if key not in self.whole and _has(value, rows)}

    def _kind_of(self, given: Given) -> tuple[Kind, Notes]:
        """Return the kind of a call, learned where there was none like it, and its notes."""
        flags = [
            (k, v if isinstance(v, _PLAIN) else Tensor if isinstance(v, Tensor) else type(v)) for k, v in given.items()
        ]
        kinds = self.kinds.setdefault((self.module.training, frozenset(flags)), [])
        for kind in kinds:
            if kind.fits(notes := kind.stem(given)):
                return kind, notes
        kind = self._learn(given)
        if not kind.fits(notes := kind.stem(given)):
            raise refusal("layers that are called in another way each time")
        known = [each for own in self.kinds.values() for each in own]
        same = next((each for each in known if each == kind), None)
        number = len({tuple(each.names[:1]) for each in known})
        kind.names = same.names if same else [f"noted{number or ''}_{slot}" for slot in range(len(kind.like))]
        if same is None and self.mask in given:
            self._learn_lengths(kind, notes, given)
        kinds.append(kind)
        return kind, notes

    def _learn(self, given: Given) -> Kind:
        """Watch a call, and another with one row more."""
        rows, training = self._rows(given), self.module.training
        more = {key: torch.cat([value, value[:1]]) for key, value in self._rowwise(given, rows).items()}
        cuda = {value.device for value in given.values() if isinstance(value, Tensor) and value.is_cuda}
        with torch.random.fork_rng(devices=list(cuda)):
            calls = [watch(private_copy(self.module, training=training), each) for each in (given, dict(given) | more)]
        for replays in (False, True):
            (kind, small), (other, large) = (
                read_kind(self.module, self.order, *call, replays=replays) for call in calls
            )
            given_all = [kind.gives(select) for select in self.selects]
            if all(given_all) and kind.tail == other.tail:
                break
        if kind.calls != other.calls or kind.before != other.before:
            raise refusal("layers whose arguments, but for tensors, depend on the number of rows")
        kind.dims = {key: row_dim(tensor, large[key], rows) for key, tensor in small.items()}
        kind.given = list(given) if kind.tail is None else []
        return kind

    def _learn_lengths(self, kind: Kind, notes: Notes, given: Given) -> None:
        """Learn which dimensions of the noted tensors are as long as the mask, and the value behind ends of rows."""
        rows, length = given[self.mask].shape
        longs = {key: v for key, v in given.items() if isinstance(v, Tensor) and v.shape[1:2] == (length,)}
        longer = dict(given) | {key: torch.cat([value, value[:, -1:]], 1) for key, value in longs.items()}
        quiet, more = private_copy(self.module, training=self.module.training), list[Any]()
        with contextlib.suppress(Exception):  # of the module's own code, at the greatest length it takes
            more = replace(kind, module=quiet).stem(longer).tensors
        more = more if len(more) == len(kind.names) else [None] * len(kind.names)
        ends = (given[self.mask][:, -1] != 0) != bool(REAL[self.mask])
        for slot, (tensor, other) in enumerate(zip(notes.tensors, more, strict=True)):
            own, dim = unwrap({"": kind.rows_first(tensor, slot, rows)})[""], kind.dims[slot]
            sizes = own.shape if other is None else unwrap({"": kind.rows_first(other, slot, rows)})[""].shape
            dims = tuple(n for n, size in enumerate(own.shape) if size == length and (other is None or sizes[n] > size))
            fill: Any = 0
            if dims and dim is not None and ends.any():
                values = own[ends].select(dims[-1], -1).unique().tolist()
                fill = values[0] if len(values) == 1 else 0
                fill = _lowest if own.is_floating_point() and fill == torch.finfo(own.dtype).min else fill
            if dims:
                self.lengths[kind.names[slot]] = Along(dims, fill)
        self.lengths |= {f"given_{key}": Along() for key in longs if key in kind.given}


class CapturedStep(nn.Module):
    """One layer as a step, counted from 0. It registers nothing: the stem has the weights."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, hidden: Tree, *, kind: Kind, **context: Any) -> Tree:
        """Run the layer and return the state after it."""
        call, plain = kind.calls[self.number], isinstance(hidden, Tensor) and not kind.dims["hidden"]
        leaves = list(call.leaves)
        for place, mark in call.marks:  # in line, since it is what every step does
            leaves[place] = hidden if plain and mark.key == "hidden" else kind.value(mark, hidden, context)
        args, kwargs = tree_unflatten(leaves, call.spec)
        layer: Any = kind.module
        for name in kind.parts[self.number]:
            layer = layer._modules[name]
        out = layer(*args, **kwargs)
        if plain and isinstance(out, Tensor):
            return out
        leaves, places, rows = tree_leaves(out), kind.places[self.number], first_tensor(hidden).shape[0]
        names = [name for name in ("hidden", *kind.others) if name in places]
        after = {name: kind.rows_first(leaves[places[name]], name, rows) for name in names}
        return after if kind.others else after["hidden"]


class CapturedReadout(nn.Module):
    """A part of the module's own output as features."""

    def __init__(self, select: Select, kinds: Mapping[Any, list[Kind]]) -> None:
        super().__init__()
        self.select, self.kinds = select, kinds

    def forward(self, hidden: Tree, *, kind: Kind | None = None, **context: Any) -> Tensor:
        """Return the features of `hidden`, as if the layers had ended with it; of the first kind without a context."""
        features: Tensor
        kind = kind or next(own[0] for own in self.kinds.values() if own)
        if kind.tail is None:
            features = self.select(kind.replay(hidden, context))
        elif (leaf := kind.leaves[self.select]) is None:
            features = self.select(kind.output.fill(kind.value, hidden, context, {}))
        elif leaf.key == "hidden" and isinstance(hidden, Tensor) and not kind.dims["hidden"]:
            features = hidden
        else:  # of the modules behind the layers, only those that make it run
            features = kind.value(leaf, hidden, context, {})
        return features


def first_leaf(output: Any) -> Any:
    """Return the first tensor of a module's output, or its mark."""
    return next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor | Mark))


def _has(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == rows


def _lowest(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).min
