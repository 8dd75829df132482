"""A module called layer by layer: its forward up to the layers, each layer, and what follows them.

Nothing is patched. A call makes a *twin*: a shallow copy of the modules on the paths to the layers, with the same
weights, whose layers are stubs. The twin's forward is the stem: the stubs note what the layers would be called with. A
step calls the real layer with that, for the rows that remain. What follows the layers is a chain of modules or, where
code of the module's own stands there, the twin's forward again, in which the modules before the layers answer what they
answered the first time.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from ponder._utils.trees import Shared, Tree, first_tensor, map_tensors, unwrap
from ponder.errors import ArgumentError
from ponder.model.padding import REAL, Along
from ponder.model.readouts import ReadoutCall, identity

FOLDED = -1  # the dimension of rows where the first dimension holds several entries a row
_PLAIN = (bool, int, str)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
Given = Mapping[str, Any]  # arguments of a call
Key = int | str | None  # of a tensor: a number if the stem noted it, "hidden" or "other…" from a layer; None is lost
Select = Callable[[Any], Any]  # from the output of a module to the tensor that is read


@dataclass(frozen=True)
class Template:
    """A nested value, such as the arguments of a call, with keys for its tensors."""

    spec: TreeSpec
    leaves: tuple[Any, ...]  # None for a tensor
    keys: tuple[tuple[int, Key], ...]  # with their places among the leaves

    @classmethod
    def of(cls, value: Any, key: Callable[[Tensor], Key]) -> Template:
        """Return the template of a value."""
        leaves, spec = tree_flatten(value)
        keys = tuple([(place, key(leaf)) for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)])
        for place, _ in keys:
            leaves[place] = None
        return cls(spec, tuple(leaves), keys)

    def fill(self, tensor: Callable[..., Any], *args: Any) -> Any:
        """Return the value with `tensor(key, *args)` in the place of each tensor."""
        leaves = list(self.leaves)
        for place, key in self.keys:
            leaves[place] = tensor(key, *args)
        return tree_unflatten(leaves, self.spec)


@dataclass(frozen=True)
class Chain:
    """The paths of the modules behind the layers that make a tensor of the output; None where other code does."""

    paths: tuple[str, ...] | None


@dataclass(eq=False)
class Event:
    """One call of one module within the call of the whole."""

    path: str
    given: tuple[Any, Any]
    start: int
    output: Any = None
    end: int = -1


def private_copy(module: nn.Module, *, training: bool = False) -> nn.Module:
    """Copy a module into one mode: its parameters are shared, its buffers are not, and no layer is dropped."""
    twin = copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()}).train(training)
    for part in twin.modules():
        for own in (part.__dict__, getattr(part.__dict__.get("config"), "__dict__", {})):
            own.update({"layerdrop": 0.0} if "layerdrop" in own else {})
    return twin


def watch(module: nn.Module, given: Given) -> tuple[list[Event], Any]:
    """Call a private copy that serves for this alone; return the calls of its modules as they began, and its output."""
    events: list[Event] = []
    clock = count()

    def noted(path: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        events.append(event := Event(path, (args, kwargs), next(clock)))
        event.output = forward(*args, **kwargs)
        event.end = next(clock)
        return event.output

    for path, part in module.named_modules():
        if path:
            part.__dict__["forward"] = partial(noted, path, part.forward)
    return events, module(**given)


def outermost(events: Iterable[Event]) -> list[Event]:
    """Return those of `events`, in order, that are within no other of them."""
    found: list[Event] = []
    for event in events:
        if not found or event.start > found[-1].end:
            found.append(event)
    return found


class Notes:
    """The arguments of the layers in one call of a twin, and the answers of the modules before them."""

    def __init__(self) -> None:
        self.calls, self.before = list[Template](), list[tuple[str, Template]]()
        self.tensors: list[Tensor] = []  # in both of them, but for states
        self.early = True  # whether all are known when the first layer is called
        self.hidden: Any = None
        self._keys: dict[int, tuple[Key, Tensor]] = {}

    def key(self, tensor: Tensor) -> Key:
        """Return the key of a tensor; one that is not known yet is noted."""
        if id(tensor) not in self._keys:
            self._keys[id(tensor)] = len(self.tensors), tensor
            self.tensors.append(tensor)
        return self._keys[id(tensor)][0]

    def call(self, given: Any, entry: int) -> None:
        """Note the arguments of a layer; leaf `entry` of the first one's is the hidden state."""
        if not self.calls:
            self.hidden = tree_leaves(given)[entry]
            self._keys[id(self.hidden)] = "hidden", self.hidden
        known = len(self.tensors)
        call = Template.of(given, self.key)
        keys = dict(call.keys).values()
        if "hidden" not in keys or None in keys:
            raise refusal(f"code of its own in front of layer {len(self.calls) + 1}")
        self.early &= not self.calls or known == len(self.tensors)
        self.calls.append(call)

    def hand_on(self, output: Template) -> Any:
        """Return placeholders in the form of a layer's output; nothing may read earlier ones any more."""
        for key, tensor in list(self._keys.values()):
            if isinstance(key, str):
                self._keys[id(tensor)] = None, tensor
        made = {key: self.hidden.detach() if key == "hidden" else self.hidden.new_zeros(()) for _, key in output.keys}
        self._keys |= {id(tensor): (key, tensor) for key, tensor in made.items()}
        return output.fill(made.__getitem__)


class Kind:
    """One kind of call of a module, in which its layers are called alike: rows of such calls can share a batch."""

    def __init__(self, order: list[str], places: list[int], outputs: list[Template], output: Any) -> None:
        self.order = order  # the names of the layers
        self.places = places  # of the hidden state in what each of them gives
        self.entry = 0  # its place among the arguments of a layer
        self.outputs = outputs  # of the layers
        self.output = output  # of the module, with chains in the place of tensors
        self.chains: dict[Select, tuple[str, ...] | None] = {}
        self.given: list[str] = []  # arguments of the module, where its own code runs again behind the layers
        self.stubs: dict[str, Any] = {}  # paths of layers, and of modules before them, as nested dicts
        self.calls, self.before = list[Template](), list[tuple[str, Template]]()  # see `Notes`, as the next
        self.early = False
        self.others: list[Any] = []  # keys of what layers hand on besides the hidden state
        self.dims: dict[Key, int | None] = {}  # of the rows, in noted tensors and outputs of layers
        self.names: list[str] = []  # of the noted tensors in the context

    def gives(self, select: Select) -> bool:
        """Whether modules alone make what `select` takes of the output, or its code may run again."""
        try:
            found = select(self.output)
        except Exception:  # of a function that computes something of several tensors
            found = None
        self.chains[select] = found.paths if isinstance(found, Chain) else None
        return bool(self.given) or self.chains[select] is not None

    def fits(self, notes: Notes) -> bool:
        """Whether a call went like this."""
        return notes.calls == self.calls[: len(notes.calls)] and notes.before == self.before

    def stem(self, module: nn.Module, given: Given) -> Notes:
        """Run the forward with stubs for layers, up to the last of them, or to the first where that is enough."""
        notes, needed = Notes(), 1 if self.early else len(self.order)

        def answer(path: str, *args: Any, **kwargs: Any) -> Any:
            done = len(notes.calls)
            if path not in self.order:
                value = module.get_submodule(path)(*args, **kwargs)
                if not done:
                    notes.before.append((path, Template.of(value, notes.key)))
                return value
            if path != self.order[done]:
                raise refusal(f"{path!r} called out of order")
            notes.call((args, kwargs), self.entry)
            if done + 1 == needed:
                raise _EnoughError
            return notes.hand_on(self.outputs[done])

        with contextlib.suppress(_EnoughError):
            _twin(module, self.stubs, answer)(**given)
        if len(notes.calls) < needed:
            raise refusal(f"a call that runs {len(notes.calls)} of {len(self.order)} layers")
        return notes

    def replay(self, module: nn.Module, state: Tree, context: Mapping[str, Any]) -> Any:
        """Return the module's output by its own forward, in which every layer gives `state`."""
        hidden, outputs, before = self.value("hidden", state, context).clone(), iter(self.outputs), list(self.before)

        def answer(path: str, *args: Any, **kwargs: Any) -> Any:
            if path in self.order:
                return next(outputs).fill(lambda key: hidden if key == "hidden" else hidden.new_zeros(()))
            known = next((each for each in before if each[0] == path), None)
            if known is None:  # it runs behind the layers too
                return module.get_submodule(path)(*args, **kwargs)
            before.remove(known)
            return map_tensors(torch.clone, known[1].fill(self.value, state, context))  # since it may be written into

        return _twin(module, self.stubs, answer)(**{name: context[f"given_{name}"] for name in self.given})

    def rows_first(self, tensor: Tensor, key: Key, rows: int) -> Any:
        """Return a tensor of the module's with its rows first, or shared where it has none."""
        dim = self.dims[key]
        if dim is None:
            return Shared(tensor)
        return tensor if not dim else tensor.unflatten(0, (rows, -1)) if dim == FOLDED else tensor.movedim(dim, 0)

    def value(self, key: Any, state: Tree, context: Mapping[str, Any]) -> Any:
        """Return a tensor as the module has it."""
        noted = isinstance(key, int)
        value = context[self.names[key]] if noted else state if isinstance(state, Tensor) else state[key]
        if isinstance(value, Shared):
            return value.value
        dim = self.dims[key]
        return value if not dim else value.flatten(0, 1) if dim == FOLDED else value.movedim(0, dim)


def read_kind(
    module: nn.Module, order: list[str], given: Given, selects: list[Select]
) -> tuple[Kind, dict[Key, Tensor]]:
    """Watch a call of a private copy; return its kind, but for notes, and what the last layer gives."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    events, output = watch(module, given)
    changed = [name for name, buffer in module.named_buffers() if not torch.equal(buffer, buffers[name])]
    if kept := [name for name in changed if order[0].startswith("".join(name.rpartition(".")[:2]))]:
        raise refusal(
            f"buffers that its forward changes: {', '.join(kept)}", "Keep them in a module: it may run twice."
        )
    layers = outermost(event for event in events if event.path in order)
    if [event.path for event in layers] != order:
        raise refusal("layers that are not called one after the other")
    found = [tree_leaves(event.output) for event in layers]
    if any(isinstance(leaf, int | float) for leaves in found for leaf in leaves):
        raise refusal("layers that hand on numbers, which may hang on their input", "Let them hand on tensors.")
    places = [_read_by(one, leaves, after) for one, leaves, after in zip(layers, found, layers[1:], strict=False)]
    places.append(places[-1])
    outputs = []
    for event, leaves, place in zip(layers, found, places, strict=True):
        keys = {id(leaf): f"other{n}" for n, leaf in enumerate(leaves)} | {id(leaves[place]): "hidden"}
        outputs.append(Template.of(event.output, partial(_key_of, keys)))
    chains: dict[int, tuple[str, ...]] = {id(found[-1][places[-1]]): ()}
    for event in outermost(event for event in events if event.start > layers[-1].end):
        args, kwargs = event.given
        if len(args) == 1 and not kwargs and id(args[0]) in chains:
            chains[id(event.output)] = (*chains[id(args[0])], event.path)
    kind = Kind(order, places, outputs, map_tensors(lambda tensor: Chain(chains.get(id(tensor))), output))
    kind.entry = [id(leaf) for leaf in tree_leaves(layers[1].given)].index(id(found[0][places[0]]))
    paths = {*order}
    if False in [kind.gives(select) for select in selects]:
        kind.given = list(given)
        paths |= {event.path for event in outermost(event for event in events if 0 <= event.end < layers[0].start)}
    kind.stubs = _nested(module, paths)
    return kind, {key: found[-1][place] for place, key in outputs[-1].keys}


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
    place = next((place for place, leaf in enumerate(leaves) if id(leaf) in read), None)
    if place is None:
        raise refusal(
            f"code of its own between {event.path!r} and {after.path!r}",
            "Move it into the layers: of `x = x + block(x)`, the addition into the block.",
        )
    return place


def row_dim(small: Tensor, large: Tensor, rows: int) -> int | None:
    """Return the dimension of the rows of a tensor, which is `large` with one row more; None where there is none."""
    if small.shape == large.shape:
        return None
    dims = [dim for dim in range(small.dim()) if small.shape[dim] != large.shape[dim]]
    each = large.shape[dims[0]] - small.shape[dims[0]]
    if len(dims) > 1 or small.shape[dims[0]] != rows * each or (each > 1 and dims[0]):
        raise refusal(f"a tensor of shape {tuple(small.shape)}, and {tuple(large.shape)} with one row more")
    return FOLDED if each > 1 else dims[0]


def _key_of(keys: Mapping[int, str], tensor: Tensor) -> Key:
    return keys[id(tensor)]


def _nested(module: nn.Module, paths: set[str]) -> dict[str, Any]:
    """Return the modules at `paths`, under all their names, as nested dicts that end in the path."""
    known, tree = {id(module.get_submodule(path)): path for path in paths}, dict[str, Any]()
    for name, part in module.named_modules(remove_duplicate=False):
        if id(part) in known:
            *above, last = name.split(".")
            inner = tree
            for each in above:
                inner = inner.setdefault(each, {})
            inner[last] = known[id(part)]
    return tree


def _twin(module: nn.Module, stubs: Mapping[str, Any], answer: Callable[..., Any]) -> nn.Module:
    """Return a shallow copy of `module` in which the modules that `stubs` leads to answer by ``answer(path, …)``."""
    twin = object.__new__(type(module))
    twin.__dict__.update(module.__dict__, _modules=dict(module._modules))
    for name, below in stubs.items():
        child: Any = module._modules[name]
        if isinstance(below, str):
            twin._modules[name] = stub = object.__new__(type(child))
            stub.__dict__.update(child.__dict__, forward=partial(answer, below), gradient_checkpointing=False)
            for hooks in _HOOKS:
                stub.__dict__[hooks] = OrderedDict()
        else:
            twin._modules[name] = _twin(child, below, answer)
    return twin


def arguments_of(module: nn.Module, example: Any) -> dict[str, Any]:
    """Return the arguments of a call of a module by their names, without those that are None."""
    if not isinstance(example, Mapping):
        places = example if isinstance(example, tuple) else (example,)
        example = dict(zip(inspect.signature(module.forward).parameters, places, strict=False))
    return {name: value for name, value in example.items() if value is not None}


class CapturedStem(nn.Module):
    """The stem of a captured module, which registers it; it learns each kind of call when it meets the first."""

    def __init__(self, module: nn.Module, order: list[str], example: Given) -> None:
        super().__init__()
        self.module, self.order = module, order
        self.first = next(name for name, value in example.items() if isinstance(value, Tensor))
        self.constants = {name: value for name, value in example.items() if not isinstance(value, Tensor)}
        self.whole = {name for name, value in example.items() if not _has(value, len(example[self.first]))}
        self.mask = next((name for name in REAL if _has(example.get(name), len(example[self.first]))), "")
        self.argument_names = frozenset(inspect.signature(module.forward).parameters)
        self.selects: list[Select] = [first_leaf]
        self.kinds: dict[Any, list[Kind]] = {}
        self.lengths: dict[str, Along] = {}
        self.made = 0  # how many kinds that differ were learned

    def __getstate__(self) -> dict[str, Any]:
        """Leave kinds behind: a copy learns them again."""
        return {**self.__dict__, "kinds": {}}

    def forward(self, inputs: Tree, **context: Any) -> tuple[Tree, dict[str, Any]]:
        """Return h_0 and the context of the steps."""
        given = {**self.constants, **context}
        if isinstance(inputs, Mapping | tuple):
            given |= arguments_of(self.module, inputs)
        elif inputs is not None:
            given[self.first] = inputs
        if None in given.values():
            given = arguments_of(self.module, given)
        kind, notes = self._kind_of(given)
        rows, after = self._rows(given), {name: given[name] for name in REAL if name in given}
        for slot, tensor in enumerate(notes.tensors):
            after[kind.names[slot]] = kind.rows_first(tensor, slot, rows)
        for name in kind.given:
            whole = isinstance(given[name], Tensor) and name not in self._rowwise(given, rows)
            after[f"given_{name}"] = Shared(given[name]) if whole else given[name]
        after["captured"] = Shared((kind, self.module))
        hidden = kind.rows_first(notes.hidden, "hidden", rows)
        return {"hidden": hidden} if kind.others else hidden, after

    def add(self, select: Select) -> None:
        """Get ready for readouts of `select`; kinds of calls that cannot give it are learned anew."""
        self.selects.append(select)
        for kinds in self.kinds.values():
            kinds[:] = [kind for kind in kinds if kind.gives(select)]

    def _rows(self, given: Given) -> int:
        """Return the number of rows; without `len`, in which a traced size is lost."""
        first = given.get(self.first)
        tensor = first if isinstance(first, Tensor) else next(v for v in given.values() if isinstance(v, Tensor))
        return tensor.shape[0]

    def _rowwise(self, given: Given, rows: int) -> dict[str, Tensor]:
        return {name: value for name, value in given.items() if name not in self.whole and _has(value, rows)}

    def _kind_of(self, given: Given) -> tuple[Kind, Notes]:
        """Return the kind of a call, learned where there was none like it, and its notes."""
        flags = [
            (name, Tensor if isinstance(value, Tensor) else value if isinstance(value, _PLAIN) else type(value))
            for name, value in given.items()
        ]
        kinds = self.kinds.setdefault((self.module.training, frozenset(flags)), [])
        for kind in kinds:
            if kind.fits(notes := kind.stem(self.module, given)):
                return kind, notes
        kinds.append(self._learn(given))
        return kinds[-1], kinds[-1].stem(self.module, given)

    def _learn(self, given: Given) -> Kind:
        """Learn a kind from a call, and from another with one row more."""
        rows, training = self._rows(given), self.module.training
        more = {**given, **{key: torch.cat([value, value[:1]]) for key, value in self._rowwise(given, rows).items()}}
        devices = {value.device for value in given.values() if isinstance(value, Tensor) and value.is_cuda}
        with torch.random.fork_rng(devices=list(devices)):
            (kind, small), (other, large) = (
                read_kind(private_copy(self.module, training=training), self.order, call, self.selects)
                for call in (given, more)
            )
            quiet = private_copy(self.module, training=training)
            notes, larger = kind.stem(quiet, given), kind.stem(quiet, more)
            if (notes.calls, notes.before, kind.chains) != (larger.calls, larger.before, other.chains):
                raise refusal("layers that are called in another way each time, or with another number of rows")
            kind.calls, kind.before, kind.early = notes.calls, notes.before, notes.early
            kind.others = sorted({key for call in notes.calls for _, key in call.keys if str(key).startswith("other")})
            small, large = ({**a, **dict(enumerate(b.tensors))} for a, b in ((small, notes), (large, larger)))
            kind.dims = {key: row_dim(tensor, large[key], rows) for key, tensor in small.items()}
            kind.names = [f"noted{self.made}_{slot}" for slot in range(len(notes.tensors))]
            self.made += 1
            if self.mask in given and given[self.mask].dim() == 2:
                self._learn_lengths(kind, notes, quiet, given)
        return kind

    def _learn_lengths(self, kind: Kind, notes: Notes, quiet: nn.Module, given: Given) -> None:
        """Learn which dimensions of the noted tensors are as long as the mask, and the value behind ends of rows."""
        rows, length = given[self.mask].shape
        longs = {name: v for name, v in given.items() if isinstance(v, Tensor) and v.shape[1:2] == (length,)}
        resized = {name: v[:, 1:] if length > 1 else torch.cat([v, v], 1) for name, v in longs.items()}  # ends stay
        others = kind.stem(quiet, {**given, **resized})
        known = kind.fits(others)  # else the dimensions of that size are taken for lengths
        ends = (given[self.mask][:, -1] != 0) != bool(REAL[self.mask])
        for slot, tensors in enumerate(zip(notes.tensors, others.tensors if known else notes.tensors, strict=True)):
            own, other = (unwrap({"": kind.rows_first(tensor, slot, rows)})[""] for tensor in tensors)
            sizes = enumerate(zip(own.shape, other.shape, strict=False))
            dims = tuple(n for n, (size, changed) in sizes if size == length and not (known and changed == size))
            fill: Any = 0
            if dims and kind.dims[slot] is not None and ends.any():
                values = own[ends].select(dims[-1], -1).unique().tolist()
                fill = values[0] if len(values) == 1 else 0
                fill = _lowest if own.is_floating_point() and fill == torch.finfo(own.dtype).min else fill
            if dims:
                self.lengths[kind.names[slot]] = Along(dims, fill)
        self.lengths |= {f"given_{name}": Along() for name in longs if name in kind.given}


class CapturedStep(nn.Module):
    """One layer as a step, counted from 0. It registers nothing: the stem has the weights."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, hidden: Tree, *, captured: tuple[Kind, nn.Module], **context: Any) -> Tree:
        """Run the layer and return the state after it."""
        (kind, module), number = captured, self.number
        call, plain = kind.calls[number], not kind.others and not kind.dims["hidden"]
        leaves = list(call.leaves)
        for place, key in call.keys:  # in line, since it is what every step does
            leaves[place] = hidden if plain and key == "hidden" else kind.value(key, hidden, context)
        args, kwargs = tree_unflatten(leaves, call.spec)
        out = module.get_submodule(kind.order[number])(*args, **kwargs)
        if plain:
            return out if isinstance(out, Tensor) else tree_leaves(out)[kind.places[number]]
        given, rows = tree_leaves(out), first_tensor(hidden).shape[0]
        places = {key: place for place, key in kind.outputs[number].keys if key in ("hidden", *kind.others)}
        after = {key: kind.rows_first(given[place], key, rows) for key, place in places.items()}
        return after if kind.others else after["hidden"]


class CapturedReadout(ReadoutCall):
    """A part of the module's own output as features."""

    def __init__(self, select: Select) -> None:
        nn.Module.__init__(self)
        self.select = select

    def bind(self, context: Mapping[str, Any]) -> Callable[[Tree], Tensor]:
        """Return the features of hidden states in this context, as if the layers had ended with them."""
        kind, module = context["captured"]
        chain = kind.chains[self.select]
        if chain == () and not kind.others and not kind.dims["hidden"]:
            return identity
        if chain is None:
            return lambda hidden: self.select(kind.replay(module, hidden, context))
        parts = [module.get_submodule(path) for path in chain]
        return lambda hidden: reduce(lambda value, part: part(value), parts, kind.value("hidden", hidden, context))


def first_leaf(output: Any) -> Any:
    """Return the first tensor of a module's output, or its chain."""
    return next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor | Chain))


def _has(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == rows


def _lowest(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).min
