"""`capture`: any module that runs a list of layers, read as stem, steps and readout by watching calls of it.

Nothing is patched. A call makes a *twin*: a shallow copy of the modules that contain the layers,
with the same weights, in which *stubs* stand for the layers and for the modules beside them. The
twin's forward is the stem: the stubs of the layers run nothing, but note what each layer is to be
called with (a `Reading`). A step calls the layer itself with that, for the rows that remain. What
follows the layers is a chain of modules or, where code of the module's own stands there, another
forward of a twin, in which the layers answer with the hidden state, and the modules before them
with what they answered in the stem.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from ponder._utils.modes import evaluating
from ponder._utils.trees import Shared, Tree, alike, map_tensors, take_rows, unwrap
from ponder.errors import ArgumentError
from ponder.model.padding import REAL, Along, Padding, hidden_key, join_rows
from ponder.model.readouts import ReadoutCall, identity
from ponder.model.steps import Steps

__all__ = ["Captured", "capture"]

_PLAIN = (bool, int, str)  # of which each value makes a kind of call of its own
_NO_HOOKS = {
    f"_{on}_hooks": OrderedDict[int, Any]()
    for on in ("forward", "forward_pre", "backward", "backward_pre")
}
Given = Mapping[str, Any]  # arguments of a call
Select = Callable[[Any], Any]  # from the output of a module to the tensor that is read
Stubs = (
    str | dict[str, Any]
)  # the path of a module that a stub stands for, or those in a module, by their names
Log = list[tuple[str, Any, Any]]  # of calls: the path of a module, its arguments, and its answer
Called = tuple[
    str, list[Any], TreeSpec
]  # the path of a layer, and its arguments, with slots for tensors


@dataclass(frozen=True)
class Captured:
    """The parts of a module, for `ponder.PonderWrapper`.

    Args:
        stem: Inputs to the hidden state h_0 and the context of the steps; it registers the module,
            and with it all weights, under ``module``.
        steps: One step a layer; one shared step where one layer runs again and again.
        readout: Hidden state to features: the first tensor of what the module would give if its
            layers ended there.
        padding: Where lengths lie, if the example has an `attention_mask` or
            `src_key_padding_mask`; None without one, and where answers depend on what stands behind
            the end of a row: rows of one length then share a batch.
        classifier: The name of the linear layer whose answer the features are, None where they are
            none.
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
        self.stem.kinds.clear()  # they are learned again with what this one needs
        return CapturedReadout(select)


def capture(module: nn.Module, example: Any, *, layers: str | None = None) -> Captured:
    """Read a module as stem, steps and readout, and prove on an example that they compute what it computes.

    The module is not changed, but for two switches: an `nn.TransformerEncoder` no longer turns
    padded batches into nested tensors in evaluation mode, so that it answers the same with and
    without gradients; and a `layerdrop` becomes 0, since every step runs in training. Weights are
    used, not copied.

    Args:
        module: Any module whose forward runs a list of layers one after the other.
        example: What `module` is called with, for two different rows or more: a tensor, a tuple of
            positional arguments, or a dict of keyword arguments, whose first tensor is then the
            `inputs` of the wrapper and the others its context. What is no tensor is passed in every
            call. A model of Transformers takes ``{"input_ids": ids, "attention_mask": mask,
            "use_cache": False}``; its features are `last_hidden_state`.
        layers: The name of the list of layers (``"encoder.layer"``), where another than the largest
            is meant.

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
    rows = next(
        (value.shape[0] for value in given.values() if isinstance(value, Tensor) and value.dim()), 0
    )
    if rows < 2:
        cure = "Pass a small batch of what the module is called with."
        raise ArgumentError(
            "example", expected="two different rows or more, batch first", got=rows, remedy=cure
        )
    with torch.no_grad():
        log, output = _watch(_private_copy(module), given)
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(output)):
        cure = "Return a tensor, or a tuple or dict of them, or register the class with torch.utils._pytree."
        raise _refusal(
            f"an output of type {type(output).__name__}, in which no tensor is seen", cure
        )
    refused: list[ArgumentError] = []
    for order in _lists_of_layers(module, [path for path, *_ in log], layers):
        try:
            stem = _proved(module, order, given, log)
        except Exception as error:  # of the module's own code too, which cannot go on with an earlier layer's state
            refused.append(
                error
                if isinstance(error, ArgumentError)
                else _refusal(f"{type(error).__name__}: {error}")
            )
            continue
        shared = len({*order}) == 1 and all(
            call == kind.calls[0] for _, kind in stem.kinds for call in kind.calls
        )
        steps = (
            Steps.of(CapturedStep(0), len(order))
            if shared
            else Steps(map(CapturedStep, range(len(order))))
        )
        heads = [path for path, *_, made in log if made is _first_leaf(output)]
        linear = next(
            (path for path in heads if isinstance(module.get_submodule(path), nn.Linear)), None
        )
        return Captured(stem, steps, CapturedReadout(_first_leaf), _padding(stem, given), linear)
    if layers is not None:
        better = (
            capture(module, example).stem.order[0].rpartition(".")[0]
        )  # or says why there is none
        got = (
            refused[0].got
            if refused
            else f"{layers!r}, which is no list of modules called in order"
        )
        raise _refusal(got, f"Pass layers={better!r}.")
    raise _explained(module, refused)


def _private_copy(module: nn.Module, *, training: bool = False) -> nn.Module:
    """Copy a module into one mode: its parameters are shared, its buffers are not."""
    return copy.deepcopy(
        module, {id(parameter): parameter for parameter in module.parameters()}
    ).train(training)


def _watch(module: nn.Module, given: Given) -> tuple[Log, Any]:
    """Call a private copy that serves for this alone; return the calls of its modules as they ended, and its output."""
    log = Log()

    def noted(path: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        log.append((path, (args, kwargs), forward(*args, **kwargs)))
        return log[-1][-1]

    for path, part in module.named_modules():
        part.__dict__["forward"] = partial(noted, path, part.forward)
    return log, module(**given)


def _lists_of_layers(module: nn.Module, calls: list[str], name: str | None) -> list[list[str]]:
    """Find lists of modules that were called one after the other, as paths; the one with most parameters comes first.

    Neighbours of one class in an `nn.Sequential`, or in a list of several classes, are a list of
    their own.
    """
    known = {id(part): path for path, part in module.named_modules()}
    found = []
    for path, box in module.named_modules():
        if not isinstance(box, nn.ModuleList | nn.Sequential) or name not in (None, path):
            continue
        candidates = [list(group) for _, group in groupby(box, key=type)]
        if len(candidates) > 1 and (name is not None or isinstance(box, nn.ModuleList)):
            candidates.insert(0, list(box))
        for layers in candidates:
            order = [known[id(layer)] for layer in layers]
            called = [call for call in calls if call in order]
            if len(called) > 1 and called == order * (len(called) // len(order)):
                found.append((_weights(layers), called))
    return [called for _, called in sorted(found, key=lambda item: -item[0])]


def _weights(parts: Sequence[Any]) -> int:
    return sum([weight.numel() for weight in nn.ModuleList(parts).parameters()])


def _proved(module: nn.Module, order: list[str], given: Given, log: Log) -> CapturedStem:
    """Prove that full depth is the module bit for bit, with and without gradients, and that rows may exit.

    Without gradients it is proved of the module with other numbers for parameters that are
    constant, as those of new biases and gates: what they multiply would not be seen.
    """
    paths, layers = [path for path, *_ in log], [module.get_submodule(path) for path in order]
    ended = [
        module.get_submodule(path) for path in paths[len(paths) - paths[::-1].index(order[-1]) :]
    ]
    if _weights([part for part in ended if layers[-1] not in set(part.modules())]) > _weights(
        layers
    ):
        raise _refusal("layers that cost less than what follows them, which runs at every exit")
    stem = CapturedStem(module, given, [call for call in log if call[0] in order])
    stem.module = _private_copy(module, training=True)
    stem(given)  # learns how layers are called in training
    for twin, grad in ((_private_copy(module), True), (_varied(module), False)):
        stem.module = twin
        with torch.set_grad_enabled(grad):
            state, around = stem(given)
            states, features = _run(state, around)
            whole = _first_leaf(twin(**given))
            kept = torch.arange(1, whole.shape[0], device=whole.device)
            if not alike(features[-1], whole):
                raise _refusal(
                    "another output at full depth: code of its own around the layers, or random numbers"
                )
            if any(each.shape != whole.shape for each in features):
                raise _refusal(
                    "layers whose states differ in shape", "Pass layers=… that keep the shape."
                )
            _, few = _run(take_rows(states[0], kept), take_rows(around, kept), start=1)
            if not _close(few[-1], whole[1:]):
                raise _refusal(
                    "rows that feel one another", "Keep rows apart, with the batch first."
                )
    stem.module = module
    return stem


def _varied(module: nn.Module) -> nn.Module:
    """Return a copy whose constant parameters have other numbers."""
    twin, generator = _private_copy(module), torch.Generator().manual_seed(0)
    for part in twin.modules():
        for name, weight in part._parameters.items():
            if (
                weight is not None
                and weight.is_floating_point()
                and weight.numel()
                and len(weight.unique()) == 1
            ):
                noise = torch.randn(weight.shape, generator=generator).to(weight)
                part._parameters[name] = nn.Parameter(
                    weight.detach() + 0.05 * noise * weight.abs().clamp(min=1.0)
                )
    return twin


def _run(state: Tree, context: Given, start: int = 0) -> tuple[list[Tree], list[Tensor]]:
    """Run the steps behind `start`; return the states and the features after each."""
    call, states = unwrap(context), []
    for number in range(start, len(call["captured"].calls)):
        states.append(state := CapturedStep(number)(state, **call))
    read = CapturedReadout(_first_leaf).bind(call)
    return states, [read(each) for each in states]


def _close(one: Tensor, other: Tensor) -> bool:
    return alike(one, other, 1e-3 if one.dtype.itemsize >= 4 else 0.1)


def _padding(stem: CapturedStem, given: Given) -> Padding | None:
    """Return where lengths lie, if rows of the example, made shorter, prove that batches of several lengths are right.

    A short row must give the same once its batch gets narrower, and where it joins a long one with
    a stem of its own.
    """
    mask = given.get(stem.mask)
    if mask is None or mask.dim() != 2 or len(stem.handed) > 1:
        return None
    padding = Padding(mask=stem.mask, real=REAL[stem.mask], context=stem.lengths, optional=True)
    rows, length = mask.shape
    real = torch.full_like(mask, padding.real)
    real[1:, -2:] = not padding.real
    long: dict[str, Any] = {**given, stem.mask: real}
    short = {name: v[:, :-2] if _has(v, length, 1) else v for name, v in long.items()}
    spare = torch.tensor([1, *range(1, rows)])  # another row once more, as `ExampleReader` adds one
    short |= {name: short[name][spare] for name in stem._rowwise(short)}
    short[stem.mask][0, 1:] = not padding.real  # beside which a mask hides something
    first, rest = torch.zeros(1, dtype=torch.long), torch.arange(1, rows)

    def joined(parts: Sequence[tuple[Tree, Given]], length: int) -> tuple[Tree, Given]:
        states, contexts = zip(*parts, strict=True)
        return join_rows(states, padding.of_hidden, length), join_rows(
            contexts, padding.of_context, length
        )

    with (
        evaluating(stem.module),
        suppress(Exception),
    ):  # of the module's own code, which takes no such inputs
        stem(
            {**given, stem.mask: torch.full_like(mask, padding.real)}
        )  # learns calls in which nothing is hidden
        whole = _run(*stem(long))[1][-1]
        answered = _first_leaf(stem.module(**short))  # the module itself, beside a spare row
        state, around = joined([take_rows(stem(long), first), take_rows(stem(short), rest)], length)
        states, (*_, met) = _run(state, around)
        narrow = _run(*joined([take_rows((states[0], around), rest)], length - 2), start=1)[1][-1]
        compared = (whole[1:], met[1:], narrow, answered[1:])
        own, *others = [
            each[:, : length - 2] if each.shape[1] == length else each for each in compared
        ]
        return (
            padding
            if _close(met[:1], whole[:1]) and all(_close(each, own) for each in others)
            else None
        )
    return None


def _refusal(got: str, remedy: str = "") -> ArgumentError:
    """Return the error for a module, or a call of it, that is not read layer by layer."""
    expected = "a list of layers, called one after the other, each with what the one before gave"
    remedy = (
        remedy
        or "Capture it with an example like the inputs, or pass stem, steps and readout of your own."
    )
    return ArgumentError("module", expected=expected, got=got, remedy=remedy)


def _explained(module: nn.Module, refused: list[ArgumentError]) -> ArgumentError:
    """Return the refusal that names the cause."""
    if any(getattr(part, "batch_first", True) is False for part in module.modules()):
        cure = "Build them with batch_first=True; the weights are the same."
        return _refusal("layers with batch_first=False, which take the length first", cure)
    if refused:
        return refused[0]
    if any(isinstance(part, nn.RNNBase) and part.num_layers > 1 for part in module.modules()):
        return _refusal(
            "a recurrent module that runs its layers inside",
            "Put some of one layer each into a list.",
        )
    kinds = [type(child) for child in module.children()]
    if names := [name for name, child in module.named_children() if kinds.count(type(child)) > 1]:
        cure = f"Put them into a list: self.layers = nn.ModuleList([self.{names[0]}, …])."
        return _refusal(f"layers that are attributes: {', '.join(names)}", cure)
    return _refusal(
        f"a {type(module).__name__} without such a list", "Put its layers into an nn.ModuleList."
    )


class CapturedStem(nn.Module):
    """The stem of a captured module, which registers it; it learns each kind of call when it meets the first."""

    def __init__(self, module: nn.Module, example: Given, layers: Log) -> None:
        super().__init__()
        self.module, self.order = module, [path for path, *_ in layers]
        self.first = next(name for name, value in example.items() if isinstance(value, Tensor))
        rows = len(example[self.first])
        self.constants = {
            name: value for name, value in example.items() if not isinstance(value, Tensor)
        }
        self.whole = {name for name, value in example.items() if not _has(value, rows)}
        self.mask = next((name for name in REAL if _has(example.get(name), rows)), "")
        self.argument_names = tuple(inspect.signature(module.forward).parameters)
        self.stubs = _stubs(module, {id(module.get_submodule(path)): path for path in self.order})
        self.selects: list[Select] = [_first_leaf]
        self.kinds: list[tuple[dict[str, Any], Reading]] = []  # with the flags of their calls
        self.lengths: dict[str, Along] = {}
        self.learned = 0  # how many kinds were
        if any(
            isinstance(leaf, int | float) for *_, output in layers for leaf in tree_leaves(output)
        ):
            raise _refusal(
                "layers that hand on numbers, which may hang on their input",
                "Let them hand on tensors.",
            )
        made, read = tree_leaves(layers[0][-1]), [id(leaf) for leaf in tree_leaves(layers[1][1])]
        places = [
            n for n, leaf in enumerate(made) if isinstance(leaf, Tensor) and id(leaf) in read
        ] or [0]
        hidden = made[places[0]]  # the first tensor that the first layer gives and the second reads
        self.entry = next(
            (n for n, each in enumerate(read) if each == id(hidden)), 0
        )  # where a layer is given it
        self.handed = {
            "hidden": places[0],
            **{f"other{n}": n for n in places[1:]},
        }  # where a layer gives what is read
        self.layer = map_tensors(lambda tensor: Slot(tensor is hidden), layers[0][-1])

    def __getstate__(self) -> dict[str, Any]:
        """Leave kinds behind: a copy learns them again."""
        return {**self.__dict__, "kinds": []}

    def forward(self, inputs: Tree, **context: Any) -> tuple[Tree, dict[str, Any]]:
        """Return h_0 and the context of the steps."""
        own = (
            _arguments(self.module, inputs)
            if isinstance(inputs, Mapping | tuple)
            else {self.first: inputs}
        )
        given = {
            name: value
            for name, value in {**self.constants, **own, **context}.items()
            if value is not None
        }
        kind, tensors = self._read(given)
        hidden, after = tensors.pop("hidden"), {name: given[name] for name in REAL if name in given}
        for name, tensor in tensors.items():
            after[name] = Shared(tensor) if name in kind.shared else tensor
        if kind.replays:
            rowwise = self._rowwise(given)
            after |= {
                f"given_{name}": v if name in rowwise else Shared(v) for name, v in given.items()
            }
        after["captured"] = Shared(kind)
        return hidden if len(self.handed) == 1 else {"hidden": hidden}, after

    def stand_in(self, hidden: Tensor) -> Any:
        """Return what stands for what a layer gives."""
        return map_tensors(
            lambda slot: hidden if slot.key else hidden.new_zeros(()), self.layer, Slot
        )

    def _rowwise(self, given: Given) -> list[str]:
        """Return the names of the tensors that have the rows of the batch."""
        sized = {
            n: v.shape[0]
            for n, v in given.items()
            if isinstance(v, Tensor) and v.dim() and n not in self.whole
        }
        return [name for name, size in sized.items() if size == next(iter(sized.values()))]

    def _read(self, given: Given) -> tuple[Reading, dict[str, Tensor]]:
        """Return the kind of a call, learned where there was none like it, and its tensors."""
        flags: dict[str, Any] = {"": self.module.training}
        for name, value in given.items():
            flags[name] = (
                Tensor
                if isinstance(value, Tensor)
                else value
                if isinstance(value, _PLAIN)
                else type(value)
            )
        for known, kind in self.kinds:
            if known == flags and (reading := Reading(self, self.module, given, kind)).fits(kind):
                return kind, reading.tensors
        kind = self._learn(given)
        if not (reading := Reading(self, self.module, given, kind)).fits(kind):
            raise _refusal("layers that are called in another way each time")
        self.kinds.append((flags, kind))
        return kind, reading.tensors

    def _learn(self, given: Given) -> Reading:
        """Learn a kind from a call, and from another with one row more."""
        module, names = (
            _private_copy(self.module, training=self.module.training),
            self._rowwise(given),
        )
        rows = len(given[names[0]])
        more = {**given, **{name: torch.cat([given[name], given[name][:1]]) for name in names}}
        devices = {
            value.device for value in given.values() if isinstance(value, Tensor) and value.is_cuda
        }
        with torch.random.fork_rng(devices=list(devices)):
            kind, other = Reading(self, module, given), Reading(self, module, more)
            changed = [
                n
                for n, buffer in module.named_buffers()
                if not torch.equal(buffer, self.module.get_buffer(n))
            ]
            if kept := [
                name for name in changed if self.order[0].startswith(name[: name.rfind(".") + 1])
            ]:
                raise _refusal(
                    f"buffers that its forward changes: {kept}",
                    "Keep them in a module: it may run twice.",
                )
            if [path for path, *_ in kind.calls] != self.order or not other.fits(kind):
                raise _refusal(
                    "layers that are not called in order, or in another way with one row more"
                )
            others = {**other.handed, **other.tensors}
            for name, tensor in {**kind.handed, **kind.tensors}.items():
                one, two = tuple(tensor.shape), tuple(others[name].shape)
                if one == two:
                    kind.shared.add(name)
                elif (one[0], two) != (rows, (rows + 1, *one[1:])):
                    raise _refusal(
                        f"layers without the batch first: a shape of {one}, and {two} with a row more"
                    )
            self.learned += 1
            if self.mask in given and given[self.mask].dim() == 2:
                self._learn_lengths(kind, module, given)
        kind.tensors = kind.handed = {}
        return kind

    def _learn_lengths(self, kind: Reading, module: nn.Module, given: Given) -> None:
        """Learn which dimensions of the noted tensors are as long as the mask, and the value behind ends of rows."""
        length = given[self.mask].shape[1]
        longs = {name: value for name, value in given.items() if _has(value, length, 1)}
        resized = {
            name: v[:, 1:] if length > 1 else torch.cat([v, v], 1) for name, v in longs.items()
        }  # ends stay
        others = Reading(self, module, {**given, **resized}, kind)
        if not others.fits(kind):
            return  # rows of several lengths do not meet
        ends = (given[self.mask][:, -1] != 0) != bool(REAL[self.mask])
        for name, own in kind.tensors.items():
            sizes = enumerate(zip(own.shape, others.tensors[name].shape, strict=True))
            dims = tuple(dim for dim, (size, changed) in sizes if size == length != changed)
            if dims:
                behind = (
                    [] if name in kind.shared else own[ends].select(dims[-1], -1).unique().tolist()
                )
                fill = behind[0] if len(behind) == 1 else 0
                self.lengths[name] = Along(dims, hidden_key if fill == hidden_key(own) else fill)
        self.lengths |= {f"given_{name}": Along() for name in longs if kind.replays}


class CapturedStep(nn.Module):
    """One layer as a step, counted from 0. It registers nothing: the stem has the weights."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, hidden: Tree, *, captured: Reading, **context: Any) -> Tree:
        """Run the layer and return the state after it."""
        path, leaves, spec = captured.calls[self.number]
        values = (
            {**context, "hidden": hidden}
            if isinstance(hidden, Tensor)
            else {**context, **unwrap(hidden)}
        )
        filled = list(leaves)
        for place, leaf in enumerate(leaves):  # in line, since every step does it
            if isinstance(leaf, Slot):
                filled[place] = values[leaf.key]
        args, kwargs = tree_unflatten(filled, spec)
        out = captured.stem.module.get_submodule(path)(*args, **kwargs)
        if isinstance(out, Tensor):
            return out
        given, handed = tree_leaves(out), captured.stem.handed
        if len(handed) == 1:
            return given[handed["hidden"]]
        return {
            name: Shared(given[n]) if name in captured.shared else given[n]
            for name, n in handed.items()
        }


class CapturedReadout(ReadoutCall):
    """A part of the module's own output as features."""

    def __init__(self, select: Select) -> None:
        nn.Module.__init__(self)
        self.select = select

    def bind(self, context: Given) -> Callable[[Tree], Tensor]:
        """Return the features of hidden states in this context, as if the layers had ended with them."""
        kind: Reading = context["captured"]
        behind = kind.behind[self.select]

        def read(hidden: Tree) -> Any:
            value = hidden if isinstance(hidden, Tensor) else hidden["hidden"]
            if behind is None:
                return self.select(kind.replay(value, context))
            for path in behind:
                value = kind.stem.module.get_submodule(path)(value)
            return value

        return identity if behind == () and len(kind.stem.handed) == 1 else read


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


@dataclass(frozen=True)
class Slot:
    """The place of a tensor in a value: its name or, in an output, whether it is the state, or what modules make it."""

    key: Any


class _EnoughError(Exception):
    """Raised by a stub: the stem needs no more of the forward."""


class Reading:
    """A call of a captured module, read by a forward of a twin.

    In the first of its kind all runs to the end; later ones, in which layers run nothing, are
    compared with it: rows of calls of one kind can share a batch.
    """

    def __init__(
        self, stem: CapturedStem, module: nn.Module, given: Given, kind: Reading | None = None
    ) -> None:
        self.stem, self.learns = stem, kind is None
        self.name: str = (
            kind.name if kind else f"noted{stem.learned}"
        )  # with it begin the names of noted tensors
        self.calls: list[Called] = []
        self.tensors, self.handed = (
            dict[str, Tensor](),
            dict[str, Tensor](),
        )  # by names: all noted; of the last layer
        self.early = True  # whether all tensors are known when the first layer is called
        self.shared: set[str] = set()  # noted tensors that have no rows
        self.behind: dict[
            Select, tuple[str, ...] | None
        ] = {}  # paths of what follows the layers; None for own code
        self._needed = 0 if kind is None else 1 if kind.early else len(stem.order)
        # Names of tensors by identity and version; None if a layer may not read them.
        self._names: dict[_Key, str | None] = {}
        # Paths of the modules that make a tensor of the last state.
        self._chains: dict[_Key, tuple[str, ...]] = {}
        # Answers of modules in front of the layers, with their keys, and all that was met.
        self._answers: list[tuple[Any, list[_Key]]] = []
        self._alive: list[Any] = []
        with suppress(_EnoughError):
            output = _twin(module, stem.stubs, self._answer)(**given)
            slots = map_tensors(lambda tensor: Slot(self._chains.get(_key(tensor))), output)
            for select in stem.selects:
                self.behind[select] = None
                with suppress(
                    Exception
                ):  # of a function that computes something of several tensors
                    self.behind[select] = select(slots).key
        self.replays: bool = kind.replays if kind else None in self.behind.values()
        self._names = {
            each: name
            for each, name in self._names.items()
            if name in self.tensors.keys() - {"hidden"}
        }
        self.before: list[Any] = []
        for answer, keys in self._answers if self.replays else ():
            written = _keys(answer) != keys  # by code behind the module, which would write again
            self.before.append(None if written else map_tensors(self._slot, answer))
        del self._names, self._chains, self._answers, self._alive

    def _answer(self, path: str, part: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Answer for a module of the twin, and note the call."""
        number, order = len(self.calls), self.stem.order
        if path not in order:
            before = _key(args[0]) if args and isinstance(args[0], Tensor) else None
            value = part(*args, **kwargs)
            self._alive += [args, value]
            if not number:
                self._answers.append((value, _keys(value)))
                return value
            alone = len(args) + len(kwargs) == 1 and isinstance(value, Tensor)
            if alone and before in self._chains:
                self._chains[_key(value)] = (*self._chains[before], path)
            return value
        known, (leaves, spec) = len(self.tensors), tree_flatten((args, kwargs))
        if not number:
            self.tensors["hidden"] = leaves[self.stem.entry]
            self._names[_key(leaves[self.stem.entry])] = "hidden"
        leaves = [self._slot(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.calls.append((path, leaves, spec))
        read = [leaf.key for leaf in leaves if isinstance(leaf, Slot)]
        if "hidden" not in read or None in read:
            cure = "Move it into the layers: of `x = x + block(x)`, the addition into the block."
            raise _refusal(f"code of its own between {order[number - 1]!r} and {path!r}", cure)
        self.early &= not number or known == len(self.tensors)
        if number + 1 == self._needed:
            raise _EnoughError
        given = (
            part(*args, **kwargs)
            if self.learns
            else self.stem.stand_in(self.tensors["hidden"].detach())
        )
        self._alive += [args, kwargs, made := tree_leaves(given)]
        self._names |= {
            each: None for each, name in self._names.items() if name in self.stem.handed
        }
        self._names |= dict.fromkeys(_keys(made))
        self.handed = {name: made[place] for name, place in self.stem.handed.items()}
        self._names |= {_key(tensor): name for name, tensor in reversed(self.handed.items())}
        self._chains = {_key(self.handed["hidden"]): ()}
        return given

    def _slot(self, tensor: Tensor) -> Slot:
        """Return the slot of a tensor; one that is not known yet is noted, unless it was written in place."""
        key = _key(tensor)
        if key not in self._names:
            written = any(known.identity == key.identity for known in self._names)
            name = None if written else f"{self.name}_{len(self.tensors)}"
            self._names[key] = name
            if name is not None:
                self.tensors[name] = tensor
        return Slot(self._names[key])

    def fits(self, kind: Reading) -> bool:
        """Whether a call went like the one that `kind` was learned from, as far as it was read."""
        return self.calls == kind.calls[: self._needed or None] and self.before == kind.before

    def replay(self, hidden: Tensor, context: Given) -> Any:
        """Return the module's output by its own forward, in which every layer gives the hidden state."""
        before = iter(self.before)

        def answer(path: str, part: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if path in self.stem.order:
                return self.stem.stand_in(
                    hidden.clone()
                )  # clones, since code behind may write into them
            known = next(before, None)
            if known is None:
                return part(*args, **kwargs)
            return map_tensors(lambda slot: context[slot.key].clone(), known, Slot)

        given = {
            name.removeprefix("given_"): v
            for name, v in context.items()
            if name.startswith("given_")
        }
        return _twin(self.stem.module, self.stem.stubs, answer)(**given)


class _Key(NamedTuple):
    """What a tensor is known by in a call: another version of it was written in place."""

    identity: int
    version: int


def _key(tensor: Tensor) -> _Key:
    # In inference mode versions are not counted; capture itself never runs in it.
    return _Key(id(tensor), 0 if tensor.is_inference() else tensor._version)


def _keys(value: Any) -> list[_Key]:
    return [_key(leaf) for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _stubs(part: Any, layers: Mapping[int, str], path: str = "") -> Stubs:
    """Return the paths of the layers, by all their names, and of the modules beside them and those that hold them."""
    if id(part) in layers or not any(id(each) in layers for each in part.modules()):
        return layers.get(id(part), path)
    return {
        name: _stubs(inner, layers, f"{path}.{name}".lstrip("."))
        for name, inner in part._modules.items()
        if inner
    }


def _twin(part: Any, stubs: Stubs, answer: Callable[..., Any]) -> Any:
    """Return a shallow copy of a module, in which stubs answer by ``answer(path, module, …)``."""
    twin = object.__new__(type(part))
    twin.__dict__.update(part.__dict__)
    if isinstance(stubs, str):
        twin.__dict__.update(
            _NO_HOOKS, forward=partial(answer, stubs, part), gradient_checkpointing=False
        )
    else:
        modules = twin.__dict__["_modules"] = dict(part._modules)
        for name, below in stubs.items():
            modules[name] = _twin(modules[name], below, answer)
    return twin
