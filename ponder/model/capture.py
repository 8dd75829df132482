"""`capture`: any module that runs a list of layers, read as stem, steps and readout by watching one call of it."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ponder._utils.trees import Shared, Tree, alike, take_rows, unwrap
from ponder.errors import ArgumentError
from ponder.model.capture_kind import KIND, Kind, Notes, Select, leaf_of, read_kind, refusal, row_dim
from ponder.model.capture_watch import LOST, Event, Given, Mark, layer_lists, private_copy, run, watch
from ponder.model.padding import REAL, Along, Padding, join_context, join_rows
from ponder.model.steps import Steps

__all__ = ["Captured", "CapturedReadout", "CapturedStem", "CapturedStep", "capture"]

_PLAIN = (bool, int, str, type(None))


@dataclass(frozen=True)
class Captured:
    """The parts of a module, for `ponder.PonderWrapper`.

    Args:
        stem: Inputs to the hidden state h_0 and the context of the steps; it registers the module, and with it all
            weights, under ``module``.
        steps: One step a layer; one shared step where one layer runs again and again.
        readout: Hidden state to features: the first tensor of what the module would give if its layers ended there.
        padding: Where lengths lie, if the example has an `attention_mask` or `src_key_padding_mask`; else None.
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
        self.stem.kinds.clear()
        return CapturedReadout(select)


def capture(module: nn.Module, example: Any, *, layers: str | None = None) -> Captured:
    """Read a module as stem, steps and readout, and prove on an example that they compute what it computes.

    The module is not changed, but for one switch: an `nn.TransformerEncoder` no longer turns padded batches into nested
    tensors in evaluation mode, so that it answers the same with and without gradients. Weights are used, not copied.

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
    named = example.items() if isinstance(example, Mapping) else enumerate(_tuple(example))
    given = {key: value for key, value in named if value is not None}
    with torch.no_grad():
        events, output = watch(private_copy(module), given)
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(output)):
        raise refusal(
            f"an output of type {type(output).__name__}, in which no tensor is seen",
            "Return a tensor, or a tuple or dict of them, or register the class with torch.utils._pytree.",
        )
    refused: list[ArgumentError] = []
    for path, order in layer_lists(module, events, layers):
        try:
            kept, kind = _proved(module, path, order, given, named=layers is not None)
        except Exception as error:  # of the module's own code too, which cannot go on with an earlier layer's state
            met = error if isinstance(error, ArgumentError) else refusal(f"{type(error).__name__}: {error}")
            refused.append(met)
            continue
        padding = _padding(kept, given)
        stem = kept.of(module)
        shared = len(set(order)) == 1 and all(call == kind.calls[0] for call in kind.calls)
        steps = Steps.of(CapturedStep(0), len(order)) if shared else Steps(map(CapturedStep, range(len(order))))
        answer = [event.path for event in events if event.output is first_tensor(output)]
        linear = [path for path in answer if isinstance(module.get_submodule(path), nn.Linear)]
        return Captured(stem, steps, CapturedReadout(first_tensor), padding, linear[0] if linear else None)
    raise _explained(module, events, given, layers, refused)


class CapturedStem(nn.Module):
    """The stem of a captured module, which registers it; it learns each kind of call when it meets the first.

    Args:
        module: The module.
        order: The names of its layers.
        example: The arguments of a call.
    """

    def __init__(self, module: nn.Module, order: list[str], example: Given) -> None:
        super().__init__()
        self.module, self.order = module, order
        self.first: str | int = next(key for key, value in example.items() if isinstance(value, Tensor))
        self.constants = {key: value for key, value in example.items() if not isinstance(value, Tensor)}
        rows = len(example[self.first])
        self.whole = {key for key, value in example.items() if not _has(value, rows)}
        self.selects: list[Select] = [first_tensor]
        self.kinds: dict[Any, list[Kind]] = {}
        self.mask: str | None = None  # by which batches get narrower
        self.lengths: dict[str, Along] = {}

    @property
    def argument_names(self) -> frozenset[str]:
        """The names of the module's own arguments."""
        return frozenset(inspect.signature(self.module.forward).parameters)

    def of(self, module: nn.Module) -> CapturedStem:
        """Return a stem of a copy of the module, that knows what is known."""
        other = copy(self)
        other._modules = {"module": module}
        other.kinds = {key: [replace(kind, module=module) for kind in own] for key, own in self.kinds.items()}
        return other

    def forward(self, inputs: Tree, **context: Any) -> tuple[Tree, dict[str, Any]]:
        """Return h_0 and the context of the steps."""
        given = self._arguments(inputs, context)
        kind, notes = self._kind_of(given)
        rows = self._rows(given)
        after: dict[str, Any] = {name: given[name] for name in REAL if name in given}
        for slot, tensor in enumerate(notes.tensors):
            after[kind.names[slot]] = kind.rows_first(tensor, slot, rows)
        for key in kind.given:
            whole = isinstance(given[key], Tensor) and not self._has_rows(key, given[key], rows)
            after[f"given_{key}"] = Shared(given[key]) if whole else given[key]
        after[KIND] = Shared(kind)
        assert notes.hidden is not None
        hidden = kind.rows_first(notes.hidden, "hidden", rows)
        return {"hidden": hidden} if kind.others else hidden, after

    def _arguments(self, inputs: Tree, context: Mapping[str, Any]) -> dict[str | int, Any]:
        given: dict[str | int, Any] = {**self.constants, **context}
        if isinstance(inputs, Mapping | tuple):
            given.update(inputs if isinstance(inputs, Mapping) else enumerate(inputs))
        elif inputs is not None:
            given[self.first] = inputs
        return {key: value for key, value in given.items() if value is not None or isinstance(key, int)}

    def _rows(self, given: Given) -> int:
        first = given.get(self.first)
        return len(first if isinstance(first, Tensor) else next(v for v in given.values() if isinstance(v, Tensor)))

    def _has_rows(self, key: str | int, value: Any, rows: int) -> bool:
        return key not in self.whole and _has(value, rows)

    def grown(self, given: Given) -> dict[str | int, Any]:
        """Return arguments with the first row once more at the end."""
        rows = self._rows(given)
        return {**given, **{k: torch.cat([v, v[:1]]) for k, v in given.items() if self._has_rows(k, v, rows)}}

    def _kind_of(self, given: Given) -> tuple[Kind, Notes]:
        """Return the kind of a call, learned where there was none like it, and its notes."""
        flags = [(key, type(value), value if isinstance(value, _PLAIN) else None) for key, value in given.items()]
        kinds = self.kinds.setdefault((self.module.training, *flags), [])
        for kind in kinds:
            if kind.fits(notes := kind.stem(given)):
                return kind, notes
        kind = self._learn(given)
        if not kind.fits(notes := kind.stem(given)):
            raise refusal("layers that are called in another way each time")
        known = [each for own in self.kinds.values() for each in own]
        fresh = len({tuple(each.names[:1]) for each in known})
        fresh_names = [f"noted{fresh or ''}_{slot}" for slot in range(len(kind.like))]
        kind.names = next((each.names for each in known if each == kind), fresh_names)
        kinds.append(kind)
        if self.mask in given:
            self._learn_lengths(kind, notes, given)
        return kind, notes

    def _learn(self, given: Given) -> Kind:
        """Watch a call, and another with one row more."""
        cuda = {value.device for value in given.values() if isinstance(value, Tensor) and value.is_cuda}
        training, calls = self.module.training, (given, self.grown(given))
        with torch.random.fork_rng(devices=list(cuda)):
            watched = [watch(private_copy(self.module, training=training), call) for call in calls]
        for replays in (False, True):
            (kind, small), (other, large) = (
                read_kind(self.module, self.order, *each, replays=replays) for each in watched
            )
            kind.leaves = {select: leaf_of(kind.output, select) for select in self.selects}
            leaves = [*kind.leaves.values()]
            read = [mark for _, mark in kind.output.marks] if None in leaves else leaves
            if kind.tail == other.tail and LOST not in read:
                break
        if kind.calls != other.calls or kind.before != other.before:
            raise refusal("layers whose arguments, but for tensors, depend on the number of rows")
        rows = self._rows(given)
        kind.dims = {key: row_dim(tensor, large[key], rows) for key, tensor in small.items()}
        kind.given = list(given) if kind.tail is None else []
        return kind

    def _learn_lengths(self, kind: Kind, notes: Notes, given: Given) -> None:
        """Learn which dimensions of the noted tensors are as long as the mask, and the value behind ends of rows."""
        mask: Tensor = given[self.mask or ""]
        rows, length = mask.shape
        longs = [key for key, value in given.items() if isinstance(value, Tensor) and value.shape[1:2] == (length,)]
        longer = {**given, **{key: torch.cat([given[key], given[key][:, -1:]], 1) for key in longs}}
        more = replace(kind, module=private_copy(self.module)).stem(longer)
        ends = (mask[:, -1] != 0) != bool(REAL[self.mask or ""])
        for slot, pair in enumerate(zip(notes.tensors, more.tensors, strict=True)):
            one, other = unwrap({n: kind.rows_first(tensor, slot, rows) for n, tensor in enumerate(pair)}).values()
            dims = tuple(n for n, size in enumerate(one.shape) if other.shape[n] == size + 1)
            fill: Any = 0
            if dims and kind.dims[slot] is not None and bool(ends.any()):
                values = one[ends].select(dims[-1], -1).unique()
                low = one.is_floating_point() and bool(values[0] == torch.finfo(one.dtype).min)
                fill = _lowest if low else values[0].item() if len(values) == 1 else 0
            if dims:
                self.lengths.setdefault(kind.names[slot], Along(dims, fill))
        self.lengths |= {f"given_{key}": Along() for key in longs if key in kind.given}


class CapturedStep(nn.Module):
    """One layer as a step, counted from 0. It registers nothing: the stem has the weights."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, hidden: Tree, *, kind: Kind, **context: Any) -> Tree:
        """Run the layer and return the state after it."""
        return kind.step(self.number, hidden, context)


class CapturedReadout(nn.Module):
    """A part of the module's own output as features.

    Args:
        select: From the output to that part.
    """

    def __init__(self, select: Select) -> None:
        super().__init__()
        self.select = select

    def forward(self, hidden: Tree, *, kind: Kind, **context: Any) -> Tensor:
        """Return the features of `hidden`."""
        features: Tensor = kind.read(self.select, hidden, context)
        return features


def _has(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == rows


def _lowest(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).min


def first_tensor(output: Any) -> Any:
    """Return the first tensor of a module's output, or its mark."""
    return next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor | Mark))


def _arguments(example: Any) -> dict[str | int, Any]:
    if isinstance(example, Mapping):
        return {name: value for name, value in example.items() if value is not None}
    return dict(enumerate(example if isinstance(example, tuple) else (example,)))


def _tuple(example: Any) -> tuple[Any, ...]:
    return example if isinstance(example, tuple) else (example,)


def _proved(module: nn.Module, path: str, order: list[str], given: Given, *, named: bool) -> tuple[CapturedStem, Kind]:
    """Prove that full depth is the module bit for bit, with and without gradients, and that rows may exit.

    Without gradients it is proved of the module with other numbers for parameters that are constant, as those of new
    biases and gates: what they multiply would not be seen.
    """
    attributes, layers = _attributes(module), module.get_submodule(path)
    if not named and any(path.startswith(f"{each}.") for each in attributes):
        if 2 * _weights(layers) < _weights(module.get_submodule(attributes[0])):
            raise _not_in_a_list(attributes)
    stem = CapturedStem(private_copy(module), order, given)
    for twin, grad in ((_varied(module), False), (stem.module, True)):
        with torch.set_grad_enabled(grad):
            whole, again = first_tensor(run(twin, given)), first_tensor(run(twin, given))
            if not alike(whole, again):
                raise refusal("a module that draws random numbers in evaluation mode", "Draw them outside of it.")
            state, around = stem.of(twin)(given)
            call: dict[str, Any] = unwrap(around)
            kind: Kind = call[KIND]
            with _Flops() as layers:
                states = [state := kind.step(number, state, call) for number in range(len(kind.order))]
            with _Flops() as tail:
                full = kind.read(first_tensor, state, call)
            if not alike(full, whole):
                raise refusal("another output at full depth: code of its own around the layers")
            if grad and tail.total > layers.total:
                raise refusal("layers that cost less than what follows them, which runs at every exit")
            if any(kind.read(first_tensor, early, call).shape != whole.shape for early in states):
                raise refusal("layers whose states differ in shape", "Pass layers=… that keep the shape.")
            kept = torch.arange(1, len(whole))
            if not alike(_through(take_rows(states[0], kept), take_rows(around, kept), 1), full[1:], 1e-4):
                raise refusal("rows that feel one another")
    try:
        stem.of(private_copy(stem.module, training=True))(given)
    except ArgumentError:
        raise
    except Exception:  # noqa: S110  # of the module's own code: labels that are missing, too few rows for statistics
        pass
    _check_buffers(module, order, given)
    return stem, kind


def _through(state: Tree, around: Mapping[str, Any], start: int = 0) -> Tensor:
    call: dict[str, Any] = unwrap(around)
    kind: Kind = call[KIND]
    for number in range(start, len(kind.order)):
        state = kind.step(number, state, call)
    features: Tensor = kind.read(first_tensor, state, call)
    return features


class _Flops(TorchDispatchMode):
    """Floating-point operations of the matrix products and convolutions in a block."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def _varied(module: nn.Module) -> nn.Module:
    """Return a copy whose constant parameters have other numbers."""
    twin, generator = private_copy(module), torch.Generator().manual_seed(0)
    for part in twin.modules():
        for name, weight in part._parameters.items():
            if weight is not None and weight.is_floating_point() and weight.numel() and len(weight.unique()) == 1:
                noise = torch.randn(weight.shape, generator=generator).to(weight)
                part._parameters[name] = nn.Parameter(weight.detach() + 0.05 * noise * weight.abs().clamp(min=1.0))
    return twin


def _padding(stem: CapturedStem, given: Given) -> Padding | None:
    """Prove, on the example with shorter rows, that batches may get narrower, and that rows of several lengths meet."""
    mask = next((name for name in REAL if isinstance(given.get(name), Tensor) and given[name].dim() == 2), None)
    if mask is None:
        return None
    stem.mask, stem.kinds = mask, {}
    padding = Padding(mask=mask, real=REAL[mask], context=stem.lengths)
    ended = torch.full_like(given[mask], padding.real)
    ended[1:, -2:] = not padding.real
    with torch.no_grad():
        if _holds(_narrows, stem, {**given, mask: ended}, padding):
            return replace(padding, mixed=_holds(_meet, stem, {**given, mask: ended}, padding))
    stem.mask, stem.kinds = None, {}
    return None


def _holds(check: Callable[..., bool], *args: Any) -> bool:
    try:
        return check(*args)
    except Exception:  # of the module's own code, which takes no such inputs
        return False


def _narrows(stem: CapturedStem, call: Given, padding: Padding) -> bool:
    """Whether short rows give the same once the long one has exited and the batch is narrower."""
    (rows, longest), (state, around) = call[padding.mask].shape, stem(call)
    kept = torch.arange(1, rows)
    first = around[KIND].value.step(0, state, unwrap(around))
    few, fewer = padding.trim(take_rows(first, kept), take_rows(around, kept), longest - 2)
    whole, narrow = _through(first, around, 1)[1:], _through(few, fewer, 1)
    positions = whole[:, : longest - 2] if whole.shape[1] == longest else whole
    return isinstance(state, Tensor) and padding.width(few) == longest - 2 and alike(narrow, positions, 1e-4)


def _meet(stem: CapturedStem, call: Given, padding: Padding) -> bool:
    """Whether rows that were given alone, at their own lengths, give the same in one batch."""
    rows, length = call[padding.mask].shape
    parts = []
    for row in range(rows):
        alone = {k: v[row : row + 1] if isinstance(v, Tensor) and len(v) == rows else v for k, v in call.items()}
        own = length - 2 * (row > 0)
        long = {k: v[:, :own] for k, v in alone.items() if isinstance(v, Tensor) and v.shape[1:2] == (length,)}
        parts.append(stem(alone | long))
    hidden = join_rows([own for own, _ in parts], [1] * rows, lengths=padding.lengths_of_hidden, length=length)
    met = _through(hidden, join_context([own for _, own in parts], [1] * rows, padding, length))
    whole = _through(*stem(call))
    if met.shape[1] == length:
        met[1:, -2:] = whole[1:, -2:] = 0
    return alike(met, whole, 1e-4)


def _check_buffers(module: nn.Module, order: list[str], given: Given) -> None:
    """Refuse buffers that the code around the layers keeps in training: it runs more than once a call."""
    around = {"", *(path.rpartition(".")[0] for path in order)}
    around |= {path[:at] for path in around for at, sign in enumerate(path) if sign == "."}
    twin = private_copy(module, training=True)
    held = {
        f"{path}.{name}".strip("."): buffer.clone()
        for path in around
        for name, buffer in twin.get_submodule(path)._buffers.items()
        if buffer is not None
    }
    if held:
        run(twin, given)
        kept = [name for name, buffer in held.items() if not torch.equal(buffer, twin.get_buffer(name))]
        if kept:
            raise refusal(
                f"buffers that its forward changes in training: {', '.join(kept)}",
                "Keep them in a module in front of the layers or behind them.",
            )


def _weights(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _attributes(module: nn.Module) -> list[str]:
    """Return the names of the modules of one class, the heaviest, that are attributes of one module."""
    groups: dict[Any, list[str]] = {}
    for path, part in module.named_modules():
        if not isinstance(part, nn.ModuleList | nn.Sequential | nn.ModuleDict):
            for name, child in part.named_children():
                groups.setdefault((path, type(child)), []).append(f"{path}.{name}".strip("."))
    several = [names for names in groups.values() if len(names) > 1]
    return max(several, key=lambda names: sum(_weights(module.get_submodule(name)) for name in names), default=[])


def _not_in_a_list(names: list[str]) -> ArgumentError:
    return refusal(
        f"layers that are attributes: {', '.join(names)}",
        f"Put them into one: self.layers = nn.ModuleList([self.{names[0].rpartition('.')[2]}, …]).",
    )


def _explained(
    module: nn.Module, events: list[Event], given: Given, layers: str | None, refused: list[ArgumentError]
) -> ArgumentError:
    """Return the refusal that names the cause."""
    parts = list(module.modules())
    if any(getattr(part, "batch_first", True) is False for part in parts):
        return refusal(
            "layers with batch_first=False, which take the length first",
            "Build them with batch_first=True; the weights are the same.",
        )
    if not refused and any(isinstance(part, nn.RNNBase) and part.num_layers > 1 for part in parts):
        return refusal(
            "a recurrent module that runs its layers inside",
            "Put recurrent modules of one layer each into an nn.ModuleList.",
        )
    if layers is not None:
        better = []
        for path, order in layer_lists(module, events):
            with contextlib.suppress(Exception):
                _proved(module, path, order, given, named=False)
                better.append(f"layers={path!r}")
        return refusal(
            refused[0].got if refused else f"{layers!r}, which is no list of modules called in order",
            f"Pass {better[0]}." if better else "",
        )
    if refused:
        return refused[0]
    called = {event.path for event in events}
    for path, box in module.named_modules():
        if isinstance(box, nn.ModuleList | nn.Sequential) and {f"{path}.{name}".strip(".") for name in box._modules} & called:
            return refusal(f"{path!r}, which is not called layer by layer, each once", "Remove from the list what never runs, and call what runs in order.")
    return (
        _not_in_a_list(names)
        if (names := _attributes(module))
        else refusal(f"a {type(module).__name__} without such a list", "Put its layers into an nn.ModuleList.")
    )
