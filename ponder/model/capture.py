"""`capture`: any module that runs a list of layers, read as stem, steps and readout by watching one call of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ponder._utils.modes import evaluating
from ponder._utils.trees import Tree, alike, take_rows, unwrap
from ponder.errors import ArgumentError
from ponder.model.captured import (
    CapturedReadout,
    CapturedStem,
    CapturedStep,
    Event,
    Given,
    Select,
    arguments_of,
    first_leaf,
    outermost,
    private_copy,
    refusal,
    watch,
)
from ponder.model.padding import REAL, Padding, join_context, join_rows
from ponder.model.steps import Steps

__all__ = ["Captured", "capture"]


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
        self.stem.add(select)
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
    given = arguments_of(module, example)
    rows = next((value.shape[0] for value in given.values() if isinstance(value, Tensor) and value.dim()), 0)
    if rows < 2:
        cure = "Pass a small batch of what the module is called with."
        raise ArgumentError("example", expected="two different rows or more, batch first", got=rows, remedy=cure)
    with torch.no_grad():
        events, output = watch(private_copy(module), given)
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(output)):
        raise refusal(
            f"an output of type {type(output).__name__}, in which no tensor is seen",
            "Return a tensor, or a tuple or dict of them, or register the class with torch.utils._pytree.",
        )
    refused: list[ArgumentError] = []
    for order in _layer_lists(module, events, layers):
        try:
            stem = _proved(module, order, given, events)
        except Exception as error:  # of the module's own code too, which cannot go on with an earlier layer's state
            refused.append(error if isinstance(error, ArgumentError) else refusal(f"{type(error).__name__}: {error}"))
            continue
        padding = _padding(stem, given)
        calls = [call for kinds in stem.kinds.values() for kind in kinds for call in kind.calls]
        shared = len(set(order)) == 1 and all(call == calls[0] for call in calls)
        steps = Steps.of(CapturedStep(0), len(order)) if shared else Steps(map(CapturedStep, range(len(order))))
        heads = [event.path for event in events if event.output is first_leaf(output)]
        linear = next((path for path in heads if isinstance(module.get_submodule(path), nn.Linear)), None)
        return Captured(stem, steps, CapturedReadout(first_leaf), padding, linear)
    if layers is not None:
        better = ""
        with suppress(ArgumentError):
            better = capture(module, example).stem.order[0].rpartition(".")[0]
        got = refused[0].got if refused else f"{layers!r}, which is no list of modules called in order"
        raise refusal(got, f"Pass layers={better!r}." if better else "")
    raise _explained(module, refused)


def _layer_lists(module: nn.Module, events: list[Event], name: str | None) -> list[list[str]]:
    """Find lists of modules that were called one after the other, as paths; the one with most parameters comes first.

    Neighbours of one class in an `nn.Sequential`, or in a list of several classes, are a list of their own.
    """
    known = {id(part): path for path, part in module.named_modules()}
    found = []
    for path, box in module.named_modules():
        if not isinstance(box, nn.ModuleList | nn.Sequential) or name not in (None, path):
            continue
        children = list(box._modules.values())
        alike = [list(group) for _, group in groupby(children, key=type)]
        whole = name is not None or isinstance(box, nn.ModuleList) or len(alike) == 1
        for layers in [*([children] if whole else []), *(alike if len(alike) > 1 else [])]:
            order = [known[id(layer)] for layer in layers]
            calls = [call.path for call in outermost(event for event in events if event.path in order)]
            if len(calls) > 1 and calls == order * (len(calls) // len(order)):
                found.append((_weights(nn.ModuleList(layers)), calls))
    return [calls for _, calls in sorted(found, key=lambda item: -item[0])]


def _weights(*parts: nn.Module) -> int:
    return sum([weight.numel() for part in parts for weight in part.parameters()])


def _proved(module: nn.Module, order: list[str], given: Given, events: list[Event]) -> CapturedStem:
    """Prove that full depth is the module bit for bit, with and without gradients, and that rows may exit.

    Without gradients it is proved of the module with other numbers for parameters that are constant, as those of new
    biases and gates: what they multiply would not be seen.
    """
    end = [event.end for event in events if event.path == order[-1]][-1]
    behind = outermost(event for event in events if event.start > end)
    rest, own = ([module.get_submodule(path) for path in paths] for paths in ([each.path for each in behind], order))
    if _weights(*rest) > _weights(*own):
        raise refusal("layers that cost less than what follows them, which runs at every exit")
    stem = CapturedStem(module, order, given)
    stem.module = private_copy(module, training=True)
    try:
        stem(given)  # learns how layers are called in training
    except ArgumentError:
        raise
    except Exception:  # of the module's own code: labels that it misses, too few rows for statistics
        pass
    for twin, grad in ((private_copy(module), True), (_varied(module), False)):
        stem.module = twin
        with torch.set_grad_enabled(grad):
            state, around = stem(given)
            whole, again = (first_leaf(twin(**given)) for _ in range(2))
            if not alike(whole, again):
                raise refusal("a module that draws random numbers in evaluation mode", "Draw them outside of it.")
            early, *states = _states(state, around)
            if not alike(_read(states[-1], around), whole):
                raise refusal("another output at full depth: code of its own around the layers")
            if any(_read(each, around).shape != whole.shape for each in (early, *states)):
                raise refusal("layers whose states differ in shape", "Pass layers=… that keep the shape.")
            kept = torch.arange(1, whole.shape[0], device=whole.device)
            few, there = take_rows(early, kept), take_rows(around, kept)
            if not _close(_read(_states(few, there, 1)[-1], there), whole[1:]):
                raise refusal("rows that feel one another", "Keep rows apart, with the batch first.")
    stem.module = module
    return stem


def _varied(module: nn.Module) -> nn.Module:
    """Return a copy whose constant parameters have other numbers."""
    twin, generator = private_copy(module), torch.Generator().manual_seed(0)
    for part in twin.modules():
        for name, weight in part._parameters.items():
            if weight is not None and weight.is_floating_point() and weight.numel() and len(weight.unique()) == 1:
                noise = torch.randn(weight.shape, generator=generator).to(weight)
                part._parameters[name] = nn.Parameter(weight.detach() + 0.05 * noise * weight.abs().clamp(min=1.0))
    return twin


def _states(state: Tree, around: Mapping[str, Any], start: int = 0) -> list[Tree]:
    """Return the states after each of the steps behind `start`."""
    call: dict[str, Any] = unwrap(around)
    return [state := CapturedStep(number)(state, **call) for number in range(start, len(call["captured"][0].order))]


def _read(state: Tree, around: Mapping[str, Any]) -> Tensor:
    features: Tensor = CapturedReadout(first_leaf)(state, **unwrap(around))
    return features


def _close(one: Tensor, other: Tensor) -> bool:
    return alike(one, other, 1e-3 if one.dtype.itemsize >= 4 else 0.1)


def _padding(stem: CapturedStem, given: Given) -> Padding | None:
    """Prove, on the example with shorter rows, that batches may get narrower, and that rows of several lengths meet."""
    mask = given.get(stem.mask)
    if mask is None or mask.dim() != 2:
        return None
    padding = Padding(mask=stem.mask, real=REAL[stem.mask], context=stem.lengths, optional=True)
    whole = torch.full_like(mask, padding.real)
    real = whole.clone()
    real[1:, -2:] = not padding.real
    with evaluating(stem.module), suppress(Exception):  # of the module's own code, which takes no such inputs
        stem({**given, stem.mask: whole})  # learns how layers are called where the mask hides nothing
        if _meet(stem, {**given, stem.mask: real}, padding):
            return padding
    return None


def _meet(stem: CapturedStem, call: Given, padding: Padding) -> bool:
    """Whether short rows give the same once the batch is narrower, and where they join a long one with another stem."""
    (rows, length), (state, around) = call[padding.mask].shape, stem(call)
    first, *_, last = _states(state, around)
    keep = [torch.zeros(1, dtype=torch.long), torch.arange(1, rows)]
    few, there = padding.trim(take_rows(first, keep[1]), take_rows(around, keep[1]), length - 2)
    narrow = _read(_states(few, there, 1)[-1], there)
    short = {
        k: v[:, :-2].clone() if isinstance(v, Tensor) and v.shape[1:2] == (length,) else v for k, v in call.items()
    }
    short[padding.mask][0, 1:] = not padding.real  # a spare row, beside which a mask hides something
    parts = [(state, around), stem(short)]
    hidden = join_rows([own for own, _ in parts], [1, rows - 1], keep, lengths=padding.of_hidden, length=length)
    joined = join_context([own for _, own in parts], [1, rows - 1], padding, length, keep)
    met, whole = _read(_states(hidden, joined)[-1], joined), _read(last, around)
    short_rows = [each[:, : length - 2] if each.shape[1] == length else each for each in (narrow, met[1:], whole[1:])]
    alone = _close(met[:1], whole[:1]) and isinstance(state, Tensor)
    return alone and _close(short_rows[0], short_rows[2]) and _close(short_rows[1], short_rows[2])


def _explained(module: nn.Module, refused: list[ArgumentError]) -> ArgumentError:
    """Return the refusal that names the cause."""
    if any(getattr(part, "batch_first", True) is False for part in module.modules()):
        cure = "Build them with batch_first=True; the weights are the same."
        return refusal("layers with batch_first=False, which take the length first", cure)
    if refused:
        return refused[0]
    if any(isinstance(part, nn.RNNBase) and part.num_layers > 1 for part in module.modules()):
        cure = "Put modules of one layer each into an nn.ModuleList."
        return refusal("a recurrent module that runs its layers inside", cure)
    kinds = [type(child) for child in module.children()]
    if names := [name for name, child in module.named_children() if kinds.count(type(child)) > 1]:
        cure = f"Put them into a list: self.layers = nn.ModuleList([self.{names[0]}, …])."
        return refusal(f"layers that are attributes: {', '.join(names)}", cure)
    return refusal(f"a {type(module).__name__} without such a list", "Put its layers into an nn.ModuleList.")
