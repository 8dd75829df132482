"""`capture`: any module that runs a list of layers, read as stem, steps and readout by watching one call of it."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ponder._utils.trees import Tree, alike, take_rows, unwrap
from ponder.errors import ArgumentError
from ponder.model.capture_calls import Layered, refusal
from ponder.model.capture_watch import Given, Mark, Select, layer_lists, private_copy, run, watch
from ponder.model.padding import REAL, Padding, join_context, join_rows
from ponder.model.steps import Steps

__all__ = ["Captured", "CapturedReadout", "CapturedStem", "CapturedStep", "capture"]


@dataclass(frozen=True)
class Captured:
    """The parts of a module, for `ponder.PonderWrapper`.

    Args:
        stem: Inputs to the hidden state h_0 and the context of the steps; it registers the module, and with it all
            weights, under ``module``.
        steps: One step a layer.
        readout: Hidden state to features: the first tensor of what the module would give if its layers ended there.
        padding: Where lengths lie, if the example has an `attention_mask` or `src_key_padding_mask`; else None.
    """

    stem: CapturedStem
    steps: Steps
    readout: CapturedReadout
    padding: Padding | None

    def readout_of(self, select: Select) -> CapturedReadout:
        """Return a readout of another part of the module's output.

        Args:
            select: A function from the output to a tensor, ``lambda output: output.pooler_output``.
        """
        layered = self.stem.layered
        layered.selects.append(select)
        layered.kinds.clear()
        return CapturedReadout(layered, select)


def capture(module: nn.Module, example: Any, *, layers: str | None = None) -> Captured:
    """Read a module as stem, steps and readout, and prove on an example that they compute what it computes.

    The module is not changed, but for one switch: an `nn.TransformerEncoder` no longer turns padded batches into nested
    tensors in evaluation mode, so that it answers the same with and without gradients. Its weights are used, not copied.

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
        >>> encoder = nn.TransformerEncoder(layer, num_layers=3)
        >>> parts = ponder.capture(encoder, torch.randn(2, 5, 8))
        >>> model = ponder.PonderWrapper(
        ...     parts.steps, stem=parts.stem, readout=lambda hidden: hidden.mean(1), head=nn.Linear(8, 2)
        ... )
        >>> model.eval()(torch.randn(4, 5, 8)).outputs.shape
        torch.Size([4, 2])
    """
    for part in module.modules():
        if isinstance(part, nn.TransformerEncoder):
            part.use_nested_tensor = False
    given = _arguments(example)
    with torch.no_grad():
        events, output = watch(private_copy(module), given)
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(output)):
        raise refusal(
            f"an output of type {type(output).__name__}, in which no tensor is seen",
            "Return a tensor, or a tuple or dict of them; make a class of your own known by torch.utils._pytree.",
        )
    found = layer_lists(module, events, layers)
    refused: list[ArgumentError] = []
    for _, order in found:
        layered = Layered(private_copy(module), order, given)
        layered.selects.append(_first)
        try:
            _prove(layered, given)
        except ArgumentError as error:
            refused.append(error)
            continue
        except Exception as error:  # of the module's own code, which cannot go on with the state of an earlier layer
            refused.append(refusal(f"{type(error).__name__} in a call layer by layer: {error}"))
            continue
        padding = _padding(layered, given)
        layered.module = module
        steps: Any = [CapturedStep(layered, number) for number in range(len(order))]
        shared = Steps.of(steps[0], len(order)) if layered.shared else Steps(steps)
        return Captured(CapturedStem(layered), shared, CapturedReadout(layered, _first), padding)
    raise _explained(module, refused)


class CapturedStem(nn.Module):
    """The stem of a captured module, which registers it.

    Args:
        layered: The module, layer by layer.
    """

    def __init__(self, layered: Layered) -> None:
        super().__init__()
        self.module, self.layered = layered.module, layered

    @property
    def argument_names(self) -> frozenset[str]:
        """The names of the module's own arguments."""
        return frozenset(inspect.signature(self.module.forward).parameters)

    def forward(self, inputs: Tree, **context: Any) -> tuple[Tree, dict[str, Any]]:
        """Return h_0 and the context of the steps."""
        return self.layered.stem(inputs, context)


class CapturedStep(nn.Module):
    """One layer as a step. It registers nothing: the stem has the weights.

    Args:
        layered: The module, layer by layer.
        number: The number of the layer, counted from 0.
    """

    def __init__(self, layered: Layered, number: int) -> None:
        super().__init__()
        self.layered, self.number = layered, number

    def forward(self, hidden: Tree, **context: Any) -> Tree:
        """Run the layer and return the state after it."""
        return self.layered.step(self.number, hidden, context)


class CapturedReadout(nn.Module):
    """A part of the module's own output as features.

    Args:
        layered: The module, layer by layer.
        select: From the output to that part.
    """

    def __init__(self, layered: Layered, select: Select) -> None:
        super().__init__()
        self.layered, self.select = layered, select

    def forward(self, hidden: Tree, **context: Any) -> Tensor:
        """Return the features of `hidden`."""
        features: Tensor = self.layered.read(self.select, hidden, context)
        return features


def _first(output: Any) -> Any:
    """Return the first tensor of a module's output, or its mark."""
    return next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor | Mark))


def _arguments(example: Any) -> dict[str | int, Any]:
    if isinstance(example, Mapping):
        return {name: value for name, value in example.items() if value is not None}
    return dict(enumerate(example if isinstance(example, tuple) else (example,)))


def _prove(layered: Layered, given: Given) -> None:
    """Prove that full depth is the module bit for bit, with and without gradients, and that rows may exit.

    Without, it is the module with other numbers for parameters that are constant, as those of new biases and gates:
    what they multiply would not be seen.
    """
    inputs, context = given[layered.first], {key: value for key, value in given.items() if key != layered.first}
    quiet, rows = layered.module, len(given[layered.first])
    for module, grad in ((_varied(quiet), False), (quiet, True)):
        with torch.set_grad_enabled(grad):
            own = layered.of(module)
            whole, again = _first(run(module, given)), _first(run(module, given))
            if not torch.equal(whole, again):
                raise refusal("a module that draws random numbers in evaluation mode", "Draw them outside of it.")
            state, around = own.stem(inputs, context)
            with _Flops() as layers:
                states = [state := own.step(number, state, unwrap(around)) for number in range(len(own.order))]
            with _Flops() as tail:
                full = own.read(_first, state, unwrap(around))
            if not alike(full, whole):
                raise refusal("another output at full depth: code of its own around the layers")
            if grad and tail.total > layers.total:
                raise refusal("layers that cost less than what follows them, which runs at every exit")
            early = [own.read(_first, each, unwrap(around)) for each in states]
            if any(each.shape != whole.shape for each in early):
                raise refusal("layers whose states differ in shape", "Pass layers=… that keep the shape.")
            kept = torch.arange(1, rows)
            few, fewer = take_rows(states[0], kept), unwrap(take_rows(around, kept))
            for number in range(1, len(own.order)):
                few = own.step(number, few, fewer)
            if not alike(own.read(_first, few, fewer), full[1:], 1e-4):
                raise refusal("rows that feel one another")
    with contextlib.suppress(RuntimeError, ValueError):
        layered.of(private_copy(quiet, training=True)).stem(inputs, context)


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


def _padding(layered: Layered, given: Given) -> Padding | None:
    """Prove, on the example with shorter rows, that batches may get narrower, and that rows of several lengths meet."""
    masks = [name for name in REAL if isinstance(given.get(name), Tensor) and given[name].dim() == 2]
    if not masks or given[masks[0]].shape[1] < 3:
        return None
    layered.mask, layered.kinds = masks[0], {}
    padding = Padding(mask=masks[0], real=REAL[masks[0]], context=layered.lengths)
    ended = torch.full_like(given[masks[0]], padding.real)
    ended[1:, -2:] = not padding.real
    call = {**given, masks[0]: ended}
    if not _holds(_narrows, layered, call, padding):
        layered.mask, layered.kinds = None, {}
        return None
    return replace(padding, mixed=_holds(_meet, layered, call, padding))


def _holds(check: Callable[..., bool], *args: Any) -> bool:
    try:
        with torch.no_grad():
            return check(*args)
    except Exception:  # of the module's own code, which takes no such inputs
        return False


def _narrows(layered: Layered, call: Given, padding: Padding) -> bool:
    """Whether short rows give the same once the long one has exited and the batch is narrower."""
    state, around = _stem(layered, call)
    length, kept = call[padding.mask].shape[1] - 2, torch.arange(1, len(call[padding.mask]))
    first = layered.step(0, state, unwrap(around))
    few, fewer = padding.trim(take_rows(first, kept), take_rows(around, kept), length)
    if isinstance(state, dict) or padding.width(few) != length:
        return False
    whole, narrow = _through(layered, first, around, 1)[1:], _through(layered, few, fewer, 1)
    return alike(narrow, whole[:, :length] if whole.shape[1] == length + 2 else whole, 1e-4)


def _meet(layered: Layered, call: Given, padding: Padding) -> bool:
    """Whether rows that were given alone, at their own lengths, give the same in one batch."""
    rows, length = call[padding.mask].shape
    parts = [_stem(layered, _cut(call, row, length - 2 * (row > 0))) for row in range(rows)]
    state = join_rows([own for own, _ in parts], [1] * rows, lengths=padding.lengths_of_hidden, length=length)
    around = join_context([own for _, own in parts], [1] * rows, padding, length)
    met, whole = _through(layered, state, around), _through(layered, *_stem(layered, call))
    ends = (slice(1, None), slice(length - 2, None))
    if met.shape[1] == length:
        met[ends] = whole[ends] = 0
    return alike(met, whole, 1e-4)


def _cut(call: Given, row: int, length: int) -> dict[str | int, Any]:
    """Return one row of a call at its own length."""
    rows, longest = call[next(name for name in REAL if name in call)].shape
    cut = dict(call)
    for key, value in call.items():
        if isinstance(value, Tensor) and value.dim() and value.shape[0] == rows:
            cut[key] = value[row : row + 1, :length] if value.shape[1:2] == (longest,) else value[row : row + 1]
    return cut


def _stem(layered: Layered, call: Given) -> tuple[Tree, dict[str, Any]]:
    return layered.stem(call[layered.first], {key: value for key, value in call.items() if key != layered.first})


def _through(layered: Layered, state: Tree, around: Mapping[str, Any], start: int = 0) -> Tensor:
    given = unwrap(around)
    for number in range(start, len(layered.order)):
        state = layered.step(number, state, given)
    features: Tensor = layered.read(_first, state, given)
    return features


def _explained(module: nn.Module, refused: list[ArgumentError]) -> ArgumentError:
    return refused[0] if refused else refusal("no list")
