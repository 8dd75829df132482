"""`capture`: any module that runs a list of layers, read as stem, steps and readout by watching calls of it.

Nothing is patched. A call makes a *twin*: a shallow copy of the modules on the paths to the layers, with the same
weights, whose layers are stubs. The twin's forward is the stem: the stubs note what the layers would be called with. A
step calls the real layer with that, for the rows that remain. What follows the layers is a chain of modules or, where
code of the module's own stands there, the twin's forward again, in which the modules before the layers answer what they
answered the first time.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial, reduce
from itertools import count, groupby, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from ponder._utils.modes import evaluating
from ponder._utils.trees import Shared, Tree, alike, first_tensor, map_tensors, take_rows, unwrap
from ponder.errors import ArgumentError
from ponder.model.padding import REAL, Along, Padding, join_rows
from ponder.model.readouts import ReadoutCall, identity
from ponder.model.steps import Steps

__all__ = ["Captured", "capture"]

_FOLDED = -1  # the dimension of rows where the first dimension holds several entries a row
_PLAIN = (bool, int, str)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_NO_HOOKS: dict[str, Any] = {hooks: OrderedDict() for hooks in _HOOKS}
Given = Mapping[str, Any]  # arguments of a call
Key = int | str | None  # of a tensor: a number if the stem noted it, "hidden" or "other…" from a layer; None is lost
Noted = tuple[list[Any], TreeSpec]  # the leaves and the structure of a nested value, with slots for its tensors
Select = Callable[[Any], Any]  # from the output of a module to the tensor that is read


@dataclass(frozen=True)
class Captured:
    """The parts of a module, for `ponder.PonderWrapper`.

    Args:
        stem: Inputs to the hidden state h_0 and the context of the steps; it registers the module, and with it all
            weights, under ``module``.
        steps: One step a layer; one shared step where one layer runs again and again.
        readout: Hidden state to features: the first tensor of what the module would give if its layers ended there.
        padding: Where lengths lie, if the example has an `attention_mask` or `src_key_padding_mask`; None without one,
            and where answers depend on what stands behind the end of a row: rows of one length then share a batch.
        classifier: The name of the linear layer whose answer the features are, None where they are none.
    """

    stem: CapturedStem
    steps: Steps
    readout: CapturedReadout
    padding: Padding | None
    classifier: str | None = None

    def readout_of(self, select: Select) -> CapturedReadout:
        """Return a readout of another part of the module's output.

        Args:
            select: A function from the output to a tensor, ``lambda output: output.pooler_output``.
        """
        self.stem.selects.append(select)
        self.stem.kinds[:] = [kind for kind in self.stem.kinds if kind.gives(select)]  # others are learned again
        return CapturedReadout(select)


def capture(module: nn.Module, example: Any, *, layers: str | None = None) -> Captured:
    """Read a module as stem, steps and readout, and prove on an example that they compute what it computes.

    The module is not changed, but for two switches: an `nn.TransformerEncoder` no longer turns padded batches into
    nested tensors in evaluation mode, so that it answers the same with and without gradients; and a `layerdrop` becomes
    0, since every step runs in training. Weights are used, not copied.

    Args:
        module: Any module whose forward runs a list of layers one after the other.
        example: What `module` is called with, for two different rows or more: a tensor, a tuple of positional
            arguments, or a dict of keyword arguments, whose first tensor is then the `inputs` of the wrapper and the
            others its context. What is no tensor is passed in every call. A model of Transformers takes
            ``{"input_ids": ids, "attention_mask": mask, "use_cache": False}``; its features are `last_hidden_state`.
        layers: The name of the list of layers (``"encoder.layer"``), where another than the largest is meant.

    Raises:
        ArgumentError: The module cannot be read in this way; says what was met and what to do.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> parts = ponder.capture(nn.TransformerEncoder(layer, num_layers=3), torch.randn(2, 5, 8))
        >>> model = ponder.PonderWrapper(
        ...     parts.steps, stem=parts.stem, readout=lambda hidden: hidden.mean(1), head=nn.Linear(8, 2)
        ... )
        >>> model.eval()(torch.randn(4, 5, 8)).outputs.shape
        torch.Size([4, 2])
    """
    for part in module.modules():
        if isinstance(part, nn.TransformerEncoder):
            part.use_nested_tensor = False
        for own in (vars(part), getattr(vars(part).get("config"), "__dict__", {})):
            own.update({"layerdrop": 0.0} if "layerdrop" in own else {})
    given = _arguments(module, example)
    rows = next((value.shape[0] for value in given.values() if isinstance(value, Tensor) and value.dim()), 0)
    if rows < 2:
        cure = "Pass a small batch of what the module is called with."
        raise ArgumentError("example", expected="two different rows or more, batch first", got=rows, remedy=cure)
    with torch.no_grad():
        events, output = _watch(_private_copy(module), given)
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(output)):
        raise _refusal(
            f"an output of type {type(output).__name__}, in which no tensor is seen",
            "Return a tensor, or a tuple or dict of them, or register the class with torch.utils._pytree.",
        )
    refused: list[ArgumentError] = []
    for order in _lists_of_layers(module, events, layers):
        try:
            stem = _proved(module, order, given, events)
        except Exception as error:  # of the module's own code too, which cannot go on with an earlier layer's state
            refused.append(error if isinstance(error, ArgumentError) else _refusal(f"{type(error).__name__}: {error}"))
            continue
        shared = len({*order}) == 1 and all(call == kind.calls[0] for kind in stem.kinds for call in kind.calls)
        steps = Steps.of(CapturedStep(0), len(order)) if shared else Steps(map(CapturedStep, range(len(order))))
        heads = [event.path for event in events if event.output is _first_leaf(output)]
        linear = next((path for path in heads if isinstance(module.get_submodule(path), nn.Linear)), None)
        return Captured(stem, steps, CapturedReadout(_first_leaf), _padding(stem, given), linear)
    if layers is not None:
        better = ""
        with suppress(ArgumentError):
            better = capture(module, example).stem.order[0].rpartition(".")[0]
        got = refused[0].got if refused else f"{layers!r}, which is no list of modules called in order"
        raise _refusal(got, f"Pass layers={better!r}." if better else "")
    raise _explained(module, refused)


# -- lists of layers, and what is proved of them ---------------------------------------------------------------------


def _lists_of_layers(module: nn.Module, events: list[_Event], name: str | None) -> list[list[str]]:
    """Find lists of modules that were called one after the other, as paths; the one with most parameters comes first.

    Neighbours of one class in an `nn.Sequential`, or in a list of several classes, are a list of their own.
    """
    known = {id(part): path for path, part in module.named_modules()}
    found = []
    for path, box in module.named_modules():
        if not isinstance(box, nn.ModuleList | nn.Sequential) or name not in (None, path):
            continue
        children = list(box._modules.values())
        neighbours = [list(group) for _, group in groupby(children, key=type)]
        whole = name is not None or isinstance(box, nn.ModuleList) or len(neighbours) == 1
        for layers in [*([children] if whole else []), *(neighbours if len(neighbours) > 1 else [])]:
            order = [known[id(layer)] for layer in layers]
            calls = [call.path for call in _outermost(event for event in events if event.path in order)]
            if len(calls) > 1 and calls == order * (len(calls) // len(order)):
                found.append((_weights(nn.ModuleList(layers)), calls))
    return [calls for _, calls in sorted(found, key=lambda item: -item[0])]


def _weights(*parts: nn.Module) -> int:
    return sum([weight.numel() for part in parts for weight in part.parameters()])


def _proved(module: nn.Module, order: list[str], given: Given, events: list[_Event]) -> CapturedStem:
    """Prove that full depth is the module bit for bit, with and without gradients, and that rows may exit.

    Without gradients it is proved of the module with other numbers for parameters that are constant, as those of new
    biases and gates: what they multiply would not be seen.
    """
    end = max(event.end for event in events if event.path == order[-1])
    behind = [event.path for event in _outermost(event for event in events if event.start > end)]
    if _weights(*map(module.get_submodule, behind)) > _weights(*map(module.get_submodule, order)):
        raise _refusal("layers that cost less than what follows them, which runs at every exit")
    stem = CapturedStem(module, order, given)
    stem.module = _private_copy(module, training=True)
    try:
        stem(given)  # learns how layers are called in training
    except ArgumentError:
        raise
    except Exception:  # of the module's own code: labels that it misses, too few rows for statistics
        pass
    for twin, grad in ((_private_copy(module), True), (_varied(module), False)):
        stem.module = twin
        with torch.set_grad_enabled(grad):
            state, around = stem(given)
            states, features = _run(state, around)
            whole, again = (_first_leaf(twin(**given)) for _ in range(2))
            kept = torch.arange(1, whole.shape[0], device=whole.device)
            if not alike(whole, again):
                raise _refusal("a module that draws random numbers in evaluation mode", "Draw them outside of it.")
            if not alike(features[-1], whole):
                raise _refusal("another output at full depth: code of its own around the layers")
            if any(each.shape != whole.shape for each in features):
                raise _refusal("layers whose states differ in shape", "Pass layers=… that keep the shape.")
            _, few = _run(take_rows(states[0], kept), take_rows(around, kept), start=1)
            if not _close(few[-1], whole[1:]):
                raise _refusal("rows that feel one another", "Keep rows apart, with the batch first.")
    stem.module = module
    return stem


def _varied(module: nn.Module) -> nn.Module:
    """Return a copy whose constant parameters have other numbers."""
    twin, generator = _private_copy(module), torch.Generator().manual_seed(0)
    for part in twin.modules():
        for name, weight in part._parameters.items():
            if weight is not None and weight.is_floating_point() and weight.numel() and len(weight.unique()) == 1:
                noise = torch.randn(weight.shape, generator=generator).to(weight)
                part._parameters[name] = nn.Parameter(weight.detach() + 0.05 * noise * weight.abs().clamp(min=1.0))
    return twin


def _run(state: Tree, context: Given, start: int = 0) -> tuple[list[Tree], list[Tensor]]:
    """Run the steps behind `start`; return the states and the features after each."""
    call, states = unwrap(context), []
    for number in range(start, len(call["captured"][0].order)):
        states.append(state := CapturedStep(number)(state, **call))
    read = CapturedReadout(_first_leaf)
    return states, [read(each, **call) for each in states]


def _close(one: Tensor, other: Tensor) -> bool:
    return alike(one, other, 1e-3 if one.dtype.itemsize >= 4 else 0.1)


def _padding(stem: CapturedStem, given: Given) -> Padding | None:
    """Return where lengths lie, if rows of the example, made shorter, prove that batches of several lengths are right.

    A short row must give the same once its batch gets narrower, and where it joins a long one with a stem of its own.
    """
    mask = given.get(stem.mask)
    if mask is None or mask.dim() != 2:
        return None
    padding = Padding(mask=stem.mask, real=REAL[stem.mask], context=stem.lengths, optional=True)
    rows, length = mask.shape
    real = torch.full_like(mask, padding.real)
    real[1:, -2:] = not padding.real
    long: dict[str, Any] = {**given, stem.mask: real}
    short = {name: v[:, :-2].clone() if _has(v, length, 1) else v for name, v in long.items()}
    short[stem.mask][0, 1:] = not padding.real  # a spare row, beside which a mask hides something
    keep = [torch.zeros(1, dtype=torch.long), torch.arange(1, rows)]
    with evaluating(stem.module), suppress(Exception):  # of the module's own code, which takes no such inputs
        stem({**given, stem.mask: torch.full_like(mask, padding.real)})  # learns calls in which nothing is hidden
        parts = [stem(long), stem(short)]
        states, (*_, whole) = _run(*parts[0])
        few = take_rows((states[0], parts[0][1]), keep[1])
        narrow = _run(*_joined([few], padding, length - 2), start=1)[1][-1]
        hidden, context = _joined(
            [take_rows(part, rows) for part, rows in zip(parts, keep, strict=True)], padding, length
        )
        met = _run(hidden, context)[1][-1]
        own, *others = (
            each[:, : length - 2] if each.shape[1] == length else each for each in (whole[1:], met[1:], narrow)
        )
        if _close(met[:1], whole[:1]) and all(_close(each, own) for each in others) and isinstance(hidden, Tensor):
            return padding
    return None


def _joined(parts: Sequence[tuple[Tree, Tree]], padding: Padding, length: int) -> tuple[Tree, Any]:
    """Join hidden states and contexts to one of each, of that length."""
    hidden, contexts = zip(*parts, strict=True)
    return join_rows(hidden, padding.of_hidden, length), join_rows(contexts, padding.of_context, length)


def _refusal(got: str, remedy: str = "") -> ArgumentError:
    """Return the error for a module, or a call of it, that is not read layer by layer."""
    return ArgumentError(
        "module",
        expected="a list of layers, called one after the other, each with what the one before gave",
        got=got,
        remedy=remedy or "Capture it with an example like the inputs, or pass stem, steps and readout of your own.",
    )


def _explained(module: nn.Module, refused: list[ArgumentError]) -> ArgumentError:
    """Return the refusal that names the cause."""
    if any(getattr(part, "batch_first", True) is False for part in module.modules()):
        cure = "Build them with batch_first=True; the weights are the same."
        return _refusal("layers with batch_first=False, which take the length first", cure)
    if refused:
        return refused[0]
    if any(isinstance(part, nn.RNNBase) and part.num_layers > 1 for part in module.modules()):
        cure = "Put modules of one layer each into an nn.ModuleList."
        return _refusal("a recurrent module that runs its layers inside", cure)
    kinds = [type(child) for child in module.children()]
    if names := [name for name, child in module.named_children() if kinds.count(type(child)) > 1]:
        cure = f"Put them into a list: self.layers = nn.ModuleList([self.{names[0]}, …])."
        return _refusal(f"layers that are attributes: {', '.join(names)}", cure)
    return _refusal(f"a {type(module).__name__} without such a list", "Put its layers into an nn.ModuleList.")


# -- calls that are watched ------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Event:
    """One call of one module within the call of the whole."""

    path: str
    given: tuple[Any, Any]
    start: int
    output: Any = None
    end: int = -1


def _private_copy(module: nn.Module, *, training: bool = False) -> nn.Module:
    """Copy a module into one mode: its parameters are shared, its buffers are not."""
    return copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()}).train(training)


def _watch(module: nn.Module, given: Given) -> tuple[list[_Event], Any]:
    """Call a private copy that serves for this alone; return the calls of its modules as they began, and its output."""
    events: list[_Event] = []
    clock = count()

    def noted(path: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        events.append(event := _Event(path, (args, kwargs), next(clock)))
        event.output = forward(*args, **kwargs)
        event.end = next(clock)
        return event.output

    for path, part in module.named_modules():
        if path:
            part.__dict__["forward"] = partial(noted, path, part.forward)
    return events, module(**given)


def _outermost(events: Iterable[_Event]) -> list[_Event]:
    """Return those of `events`, in order, that are within no other of them."""
    found: list[_Event] = []
    for event in events:
        if not found or event.start > found[-1].end:
            found.append(event)
    return found


@dataclass(frozen=True)
class Slot:
    """The place of a tensor in a value; in the module's output, with the paths of the modules that make it."""

    key: Any


def _noted(value: Any, key: Callable[[Tensor], Key]) -> Noted:
    """Return a nested value, such as the arguments of a call, with slots in the place of its tensors."""
    leaves, spec = tree_flatten(value)
    return [Slot(key(leaf)) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec


def _filled(noted: Noted, tensor: Callable[[Any], Any]) -> Any:
    """Return the value with tensors in the place of its slots."""
    leaves, spec = noted
    return tree_unflatten([tensor(leaf.key) if isinstance(leaf, Slot) else leaf for leaf in leaves], spec)


def _keys(noted: Noted) -> list[Key]:
    return [leaf.key for leaf in noted[0] if isinstance(leaf, Slot)]


@dataclass(eq=False)
class Kind:
    """One kind of call of a module, in which its layers are called alike: rows of such calls can share a batch."""

    order: list[str]  # the paths of the layers
    places: list[int]  # of the hidden state in what each of them gives
    outputs: list[Noted]  # of the layers
    entry: int = 0  # the place of the hidden state among the arguments of a layer
    output: Any = None  # of the module, with slots for tensors
    chains: dict[Select, tuple[str, ...] | None] = field(default_factory=dict)  # modules behind; None for other code
    given: list[str] = field(default_factory=list)  # arguments of the module, where its own code runs again behind
    stubs: dict[tuple[str, ...], str] = field(default_factory=dict)  # paths of layers and modules before, by all names
    calls: list[Noted] = field(default_factory=list)  # of the layers
    before: list[tuple[str, Noted]] = field(default_factory=list)  # answers of modules before them
    early: bool = False  # whether all of these are known when the first layer is called
    others: list[Any] = field(default_factory=list)  # keys of what layers hand on besides the hidden state
    dims: dict[Key, int | None] = field(default_factory=dict)  # of the rows, in noted tensors and outputs of layers
    names: list[str] = field(default_factory=list)  # of the noted tensors in the context
    flags: Any = None  # of the call

    def gives(self, select: Select) -> bool:
        """Whether modules alone make what `select` takes of the output, or its code may run again."""
        found = None
        with suppress(Exception):  # of a function that computes something of several tensors
            found = select(self.output)
        self.chains[select] = found.key if isinstance(found, Slot) else None
        return bool(self.given) or self.chains[select] is not None

    def fits(self, notes: Notes) -> bool:
        """Whether a call went like this."""
        return notes.calls == self.calls[: len(notes.calls)] and notes.before == self.before

    def replay(self, module: nn.Module, state: Tree, context: Given) -> Any:
        """Return the module's output by its own forward, in which every layer gives `state`."""
        hidden, outputs, before = self.value("hidden", state, context).clone(), iter(self.outputs), list(self.before)

        def answer(path: str, part: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if path in self.order:
                return _filled(next(outputs), lambda key: hidden if key == "hidden" else hidden.new_zeros(()))
            known = next((each for each in before if each[0] == path), None)
            if known is None:  # it runs behind the layers too
                return part(*args, **kwargs)
            before.remove(known)
            return _filled(known[1], lambda key: self.value(key, state, context).clone())  # it may be written into

        return _twin(module, self.stubs, answer, {})(**{name: context[f"given_{name}"] for name in self.given})

    def rows_first(self, tensor: Tensor, key: Key, rows: int) -> Any:
        """Return a tensor of the module's with its rows first, or shared where it has none."""
        dim = self.dims[key]
        if dim is None:
            return Shared(tensor)
        return tensor if not dim else tensor.unflatten(0, (rows, -1)) if dim == _FOLDED else tensor.movedim(dim, 0)

    def value(self, key: Any, state: Tree, context: Given) -> Any:
        """Return a tensor as the module has it."""
        noted = isinstance(key, int)
        value = context[self.names[key]] if noted else state if isinstance(state, Tensor) else state[key]
        if isinstance(value, Shared):
            return value.value
        dim = self.dims[key]
        return value if not dim else value.flatten(0, 1) if dim == _FOLDED else value.movedim(0, dim)


class _EnoughError(Exception):
    """Raised by a stub: the stem needs no more of the forward."""


class Notes:
    """A forward with stubs for layers: what they are called with, and what the modules before them answer."""

    def __init__(self, kind: Kind, module: nn.Module, given: Given) -> None:
        self.calls, self.before = list[Noted](), list[tuple[str, Noted]]()
        self.tensors: list[Tensor] = []  # in both of them, but for states
        self.early = True  # whether all are known when the first layer is called
        self.hidden: Any = None
        self.parts: dict[str, nn.Module] = {"": module}  # the modules that have stubs, by their paths
        self._kind, self._needed = kind, 1 if kind.early else len(kind.order)
        self._keys: dict[int, tuple[Key, Tensor]] = {}
        with suppress(_EnoughError):
            _twin(module, kind.stubs, self._answer, self.parts)(**given)
        if len(self.calls) < self._needed:
            raise _refusal(f"a call that runs {len(self.calls)} of {len(kind.order)} layers")

    def _answer(self, path: str, part: nn.Module, *args: Any, **kwargs: Any) -> Any:
        number, kind = len(self.calls), self._kind
        if path not in kind.order:
            value = part(*args, **kwargs)
            if not number:
                self.before.append((path, _noted(value, self._key)))
            return value
        if path != kind.order[number]:
            raise _refusal(f"{path!r} called out of order")
        known, (leaves, spec) = len(self.tensors), tree_flatten((args, kwargs))
        if not number:
            self.hidden = leaves[kind.entry]
            self._keys[id(self.hidden)] = "hidden", self.hidden
        call = [Slot(self._key(leaf)) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec
        self.calls.append(call)
        if "hidden" not in (keys := _keys(call)) or None in keys:
            raise _refusal(f"code of its own in front of layer {number + 1}")
        self.early &= not number or known == len(self.tensors)
        if number + 1 == self._needed:
            raise _EnoughError
        return self._placeholders(kind.outputs[number])

    def _key(self, tensor: Tensor) -> Key:
        """Return the key of a tensor; one that is not known yet is noted."""
        if id(tensor) not in self._keys:
            self._keys[id(tensor)] = len(self.tensors), tensor
            self.tensors.append(tensor)
        return self._keys[id(tensor)][0]

    def _placeholders(self, output: Noted) -> Any:
        """Return placeholders in the form of a layer's output; nothing may read earlier ones any more."""
        for key, tensor in list(self._keys.values()):
            if isinstance(key, str):
                self._keys[id(tensor)] = None, tensor
        made = {key: self.hidden.detach() if key == "hidden" else self.hidden.new_zeros(()) for key in _keys(output)}
        self._keys |= {id(tensor): (key, tensor) for key, tensor in made.items()}
        return _filled(output, made.__getitem__)


def _learn(stem: CapturedStem, given: Given) -> tuple[Kind, Notes, dict[Key, Tensor]]:
    """Learn the kind of a call; return it with the notes, and the tensors in them and in what the last layer gives."""
    order, training = stem.order, stem.module.training
    module, quiet = (_private_copy(stem.module, training=training) for _ in range(2))
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    events, output = _watch(module, given)
    changed = [name for name, buffer in module.named_buffers() if not torch.equal(buffer, buffers[name])]
    if kept := [name for name in changed if order[0].startswith("".join(name.rpartition(".")[:2]))]:
        cure = "Keep them in a module: it may run twice."
        raise _refusal(f"buffers that its forward changes: {', '.join(kept)}", cure)
    layers = _outermost(event for event in events if event.path in order)
    if [event.path for event in layers] != order:
        raise _refusal("layers that are not called one after the other")
    places = [_read_by(one, after) for one, after in pairwise(layers)]
    places.append(places[-1])
    last = tree_leaves(layers[-1].output)
    chains: dict[int, tuple[str, ...]] = {id(last[places[-1]]): ()}
    for event in _outermost(event for event in events if event.start > layers[-1].end):
        args, kwargs = event.given
        if len(args) == 1 and not kwargs and id(args[0]) in chains:
            chains[id(event.output)] = (*chains[id(args[0])], event.path)
    kind = Kind(order, places, [_template_of(*each) for each in zip(layers, places, strict=True)])
    kind.entry = [id(leaf) for leaf in tree_leaves(layers[1].given)].index(id(tree_leaves(layers[0].output)[places[0]]))
    kind.output = map_tensors(lambda tensor: Slot(chains.get(id(tensor))), output)
    paths = {*order}
    if False in [kind.gives(select) for select in stem.selects]:
        kind.given = list(given)
        paths |= {event.path for event in _outermost(event for event in events if 0 <= event.end < layers[0].start)}
    known = {id(quiet.get_submodule(path)): path for path in paths}
    named = quiet.named_modules(remove_duplicate=False)
    kind.stubs = {tuple(name.split(".")): known[id(part)] for name, part in named if id(part) in known}
    notes = Notes(kind, quiet, given)
    kind.calls, kind.before, kind.early = notes.calls, notes.before, notes.early
    kind.others = sorted({key for call in notes.calls for key in _keys(call) if str(key).startswith("other")})
    handed = zip(_keys(kind.outputs[-1]), [leaf for leaf in last if isinstance(leaf, Tensor)], strict=True)
    return kind, notes, {**dict(handed), **dict(enumerate(notes.tensors))}


def _read_by(event: _Event, after: _Event) -> int:
    """Return the place of the tensor in what a layer gives that the next one reads."""
    leaves = tree_leaves(event.output)
    if any(isinstance(leaf, int | float) for leaf in leaves):
        raise _refusal("layers that hand on numbers, which may hang on their input", "Let them hand on tensors.")
    read = {id(leaf) for leaf in tree_leaves(after.given) if isinstance(leaf, Tensor)}
    place = next((place for place, leaf in enumerate(leaves) if id(leaf) in read), None)
    if place is None:
        raise _refusal(
            f"code of its own between {event.path!r} and {after.path!r}",
            "Move it into the layers: of `x = x + block(x)`, the addition into the block.",
        )
    return place


def _template_of(event: _Event, place: int) -> Noted:
    """Return the template of what a layer gives, whose hidden state is at `place`."""
    leaves = tree_leaves(event.output)
    keys = {id(leaf): f"other{n}" for n, leaf in enumerate(leaves)} | {id(leaves[place]): "hidden"}
    return _noted(event.output, lambda tensor: keys[id(tensor)])


def _dim_of_rows(small: Tensor, large: Tensor, rows: int) -> int | None:
    """Return the dimension of the rows of a tensor, which is `large` with one row more; None where there is none."""
    if small.shape == large.shape:
        return None
    dims = [dim for dim in range(small.dim()) if small.shape[dim] != large.shape[dim]]
    each = large.shape[dims[0]] - small.shape[dims[0]]
    if len(dims) > 1 or small.shape[dims[0]] != rows * each or (each > 1 and dims[0]):
        raise _refusal(f"a tensor of shape {tuple(small.shape)}, and {tuple(large.shape)} with one row more")
    return _FOLDED if each > 1 else dims[0]


def _twin(
    module: nn.Module, stubs: Mapping[tuple[str, ...], str], answer: Callable[..., Any], parts: dict[str, nn.Module]
) -> nn.Module:
    """Return a shallow copy of `module`, in which the modules called `stubs` answer by ``answer(path, module, …)``.

    `parts` is given the modules that have stubs, by their paths.
    """
    made: dict[tuple[str, ...], nn.Module] = {}
    for names, path in stubs.items():
        for depth in range(len(names) + 1):
            if names[:depth] not in made:
                above = made.get(names[: depth - 1])
                part: Any = module if above is None else above._modules[names[depth - 1]]
                made[names[:depth]] = twin = object.__new__(type(part))
                twin.__dict__.update(part.__dict__, _modules=dict(part._modules))
                if above is not None:
                    above._modules[names[depth - 1]] = twin
        parts[path] = part
        made[names].__dict__.update(_NO_HOOKS, forward=partial(answer, path, part), gradient_checkpointing=False)
    return made[()]


# -- the parts -------------------------------------------------------------------------------------------------------


class CapturedStem(nn.Module):
    """The stem of a captured module, which registers it; it learns each kind of call when it meets the first."""

    def __init__(self, module: nn.Module, order: list[str], example: Given) -> None:
        super().__init__()
        self.module, self.order = module, order
        self.first = next(name for name, value in example.items() if isinstance(value, Tensor))
        rows = len(example[self.first])
        self.constants = {name: value for name, value in example.items() if not isinstance(value, Tensor)}
        self.whole = {name for name, value in example.items() if not _has(value, rows)}
        self.mask = next((name for name in REAL if _has(example.get(name), rows)), "")
        self.argument_names = frozenset(inspect.signature(module.forward).parameters)
        self.selects: list[Select] = [_first_leaf]
        self.kinds: list[Kind] = []
        self.lengths: dict[str, Along] = {}
        self.learned = 0  # how many kinds were

    def __getstate__(self) -> dict[str, Any]:
        """Leave kinds behind: a copy learns them again."""
        return {**self.__dict__, "kinds": []}

    def forward(self, inputs: Tree, **context: Any) -> tuple[Tree, dict[str, Any]]:
        """Return h_0 and the context of the steps."""
        own = _arguments(self.module, inputs) if isinstance(inputs, Mapping | tuple) else {self.first: inputs}
        given = {**self.constants, **own, **context}
        if None in given.values():
            given = _arguments(self.module, given)
        kind, notes = self._kind_of(given)
        (rows, rowwise), after = self._rowwise(given), {name: given[name] for name in REAL if name in given}
        for slot, tensor in enumerate(notes.tensors):
            after[kind.names[slot]] = kind.rows_first(tensor, slot, rows)
        for name in kind.given:
            after[f"given_{name}"] = given[name] if name in rowwise else Shared(given[name])
        after["captured"] = Shared((kind, notes.parts))
        hidden = kind.rows_first(notes.hidden, "hidden", rows)
        return {"hidden": hidden} if kind.others else hidden, after

    def _rowwise(self, given: Given) -> tuple[int, set[str]]:
        """Return the number of rows, and the names of the tensors that have them."""
        rows, names = 0, set[str]()
        for name, value in given.items():
            if isinstance(value, Tensor) and value.dim() and name not in self.whole and rows in (0, value.shape[0]):
                rows = value.shape[0]  # not `len`, in which a traced size is lost
                names.add(name)
        return rows, names

    def _kind_of(self, given: Given) -> tuple[Kind, Notes]:
        """Return the kind of a call, learned where there was none like it, and its notes."""
        flags: dict[str, Any] = {"": self.module.training}
        for name, value in given.items():
            flags[name] = Tensor if isinstance(value, Tensor) else value if isinstance(value, _PLAIN) else type(value)
        for kind in self.kinds:
            if kind.flags == flags and kind.fits(notes := Notes(kind, self.module, given)):
                return kind, notes
        kind = self._learn(given)
        kind.flags = flags
        self.kinds.append(kind)
        return kind, Notes(kind, self.module, given)

    def _learn(self, given: Given) -> Kind:
        """Learn a kind from a call, and from another with one row more."""
        rows, names = self._rowwise(given)
        more = {**given, **{name: torch.cat([given[name], given[name][:1]]) for name in names}}
        devices = {value.device for value in given.values() if isinstance(value, Tensor) and value.is_cuda}
        with torch.random.fork_rng(devices=list(devices)):
            (kind, notes, small), (other, _, large) = _learn(self, given), _learn(self, more)
            if (kind.calls, kind.before, kind.chains) != (other.calls, other.before, other.chains):
                raise _refusal("layers that are called in another way each time, or with another number of rows")
            kind.dims = {key: _dim_of_rows(tensor, large[key], rows) for key, tensor in small.items()}
            kind.names = [f"noted{self.learned}_{slot}" for slot in range(len(notes.tensors))]
            self.learned += 1
            if self.mask in given and given[self.mask].dim() == 2:
                self._learn_lengths(kind, notes, given)
        return kind

    def _learn_lengths(self, kind: Kind, notes: Notes, given: Given) -> None:
        """Learn which dimensions of the noted tensors are as long as the mask, and the value behind ends of rows."""
        rows, length = given[self.mask].shape
        longs = {name: value for name, value in given.items() if _has(value, length, 1)}
        resized = {name: v[:, 1:] if length > 1 else torch.cat([v, v], 1) for name, v in longs.items()}  # ends stay
        others = Notes(kind, _private_copy(self.module, training=self.module.training), {**given, **resized})
        if not kind.fits(others):
            return  # rows of several lengths do not meet
        ends = (given[self.mask][:, -1] != 0) != bool(REAL[self.mask])
        for slot, tensors in enumerate(zip(notes.tensors, others.tensors, strict=True)):
            own, other = (unwrap({"": kind.rows_first(tensor, slot, rows)})[""] for tensor in tensors)
            sizes = enumerate(zip(own.shape, other.shape, strict=True))
            dims = tuple(dim for dim, (size, changed) in sizes if size == length != changed)
            if not dims:
                continue
            behind = own[ends].select(dims[-1], -1).unique().tolist() if kind.dims[slot] is not None else []
            fill = behind[0] if len(behind) == 1 else 0
            lowest = own.is_floating_point() and fill == torch.finfo(own.dtype).min
            self.lengths[kind.names[slot]] = Along(dims, _lowest if lowest else fill)
        self.lengths |= {f"given_{name}": Along() for name in longs if name in kind.given}


class CapturedStep(nn.Module):
    """One layer as a step, counted from 0. It registers nothing: the stem has the weights."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, hidden: Tree, *, captured: tuple[Kind, dict[str, nn.Module]], **context: Any) -> Tree:
        """Run the layer and return the state after it."""
        (kind, parts), number = captured, self.number
        (leaves, spec), plain = kind.calls[number], not kind.others and not kind.dims["hidden"]
        leaves = list(leaves)
        for place, leaf in enumerate(leaves):  # in line, since it is what every step does
            if isinstance(leaf, Slot):
                leaves[place] = hidden if plain and leaf.key == "hidden" else kind.value(leaf.key, hidden, context)
        args, kwargs = tree_unflatten(leaves, spec)
        out = parts[kind.order[number]](*args, **kwargs)
        if plain:
            return out if isinstance(out, Tensor) else tree_leaves(out)[kind.places[number]]
        rows, pairs = first_tensor(hidden).shape[0], zip(kind.outputs[number][0], tree_leaves(out), strict=True)
        given = {slot.key: tensor for slot, tensor in pairs if isinstance(slot, Slot)}
        after = {key: kind.rows_first(given[key], key, rows) for key in ("hidden", *kind.others) if key in given}
        return after if kind.others else after["hidden"]


class CapturedReadout(ReadoutCall):
    """A part of the module's own output as features."""

    def __init__(self, select: Select) -> None:
        nn.Module.__init__(self)
        self.select = select

    def bind(self, context: Given) -> Callable[[Tree], Tensor]:
        """Return the features of hidden states in this context, as if the layers had ended with them."""
        kind, module = context["captured"][0], context["captured"][1][""]
        chain = kind.chains[self.select]
        if chain is None:
            return lambda hidden: self.select(kind.replay(module, hidden, context))
        if not chain and not kind.others and not kind.dims["hidden"]:
            return identity
        parts = [module.get_submodule(path) for path in chain]
        return lambda hidden: reduce(lambda value, part: part(value), parts, kind.value("hidden", hidden, context))


def _arguments(module: nn.Module, example: Any) -> dict[str, Any]:
    """Return the arguments of a call of a module by their names, without those that are None."""
    if not isinstance(example, Mapping):
        places = example if isinstance(example, tuple) else (example,)
        example = dict(zip(inspect.signature(module.forward).parameters, places, strict=False))
    return {name: value for name, value in example.items() if value is not None}


def _first_leaf(output: Any) -> Any:
    return next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor | Slot))


def _has(value: Any, size: int, dim: int = 0) -> bool:
    return isinstance(value, Tensor) and value.shape[dim : dim + 1] == (size,)


def _lowest(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).min
