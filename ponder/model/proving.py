"""Proofs, on an example, that a captured module computes what the module computes.

`prove` runs the parts and the module itself on private copies, with and without gradients, and
compares them bit for bit; then it lets a row exit, and compares within rounding. `prove_padding`
does the same with rows of two lengths in one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from ponder._utils.modes import evaluating
from ponder._utils.trees import Tree, alike, take_rows, unwrap
from ponder.model.captured import CapturedReadout, CapturedStem, CapturedStep, has_size
from ponder.model.padding import REAL, Padding, join_rows
from ponder.model.twins import (
    Arguments,
    WatchedCall,
    first_tensor_or_slot,
    private_copy,
    refusal,
)

__all__ = ["prove", "prove_padding", "weights_of"]


def prove(
    module: nn.Module, order: list[str], arguments: Arguments, calls: Sequence[WatchedCall]
) -> CapturedStem:
    """Return the stem of a module, proved on an example.

    Without gradients the proof is of the module with other numbers for the parameters that are
    constant, as new biases and gates are: with a gate of 0, what it multiplies would not be seen.

    Args:
        module: The module.
        order: The paths of the layers, in the order in which they are called.
        arguments: The arguments of the example.
        calls: The calls of all modules in it.

    Raises:
        ArgumentError: The proof fails.
    """
    _check_costs(module, order, [call.path for call in calls])
    stem = CapturedStem(module, arguments, [call for call in calls if call.path in order])
    stem.module = private_copy(module, training=True)
    stem(arguments)  # learns how layers are called in training
    for twin, grad in ((private_copy(module), True), (_varied(module), False)):
        stem.module = twin
        with torch.set_grad_enabled(grad):
            _prove_rows(stem, arguments)
    stem.module = module
    return stem


def prove_padding(stem: CapturedStem, arguments: Arguments) -> Padding | None:
    """Return where lengths lie, if the example proves that batches of several lengths are right.

    Rows of the example are made shorter. A short row must give the same once its batch gets
    narrower, and if it joins a long one after its stem ran on it alone.
    """
    mask = arguments.get(stem.mask)
    if mask is None or mask.dim() != 2 or len(stem.contract.handed) > 1:
        return None
    padding = Padding(mask=stem.mask, real=REAL[stem.mask], context=stem.lengths, optional=True)
    # The module's own code may refuse such inputs: then rows of several lengths do not meet.
    with evaluating(stem.module), suppress(Exception):
        unpadded = torch.full_like(mask, padding.real)
        stem({**arguments, stem.mask: unpadded})  # learns calls in which nothing is hidden
        if _lengths_mix(stem, padding, arguments, mask):
            return padding
    return None


def weights_of(modules: Sequence[nn.Module]) -> int:
    """Return the number of parameters of some modules, shared ones once."""
    return sum([weight.numel() for weight in nn.ModuleList(modules).parameters()])


def _check_costs(module: nn.Module, order: list[str], paths: list[str]) -> None:
    """Refuse layers with fewer weights than the modules behind them, which run at every exit."""
    layers = [module.get_submodule(path) for path in order]
    last_call = len(paths) - paths[::-1].index(order[-1])
    ended_after = [module.get_submodule(path) for path in paths[last_call:]]
    behind = [part for part in ended_after if layers[-1] not in set(part.modules())]
    if weights_of(behind) > weights_of(layers):
        raise refusal("layers that cost less than what follows them, which runs at every exit")


def _prove_rows(stem: CapturedStem, arguments: Arguments) -> None:
    """Prove full depth bit for bit, and that the rows that remain are the same after one exited."""
    hidden, context = stem(arguments)
    states, features = _run(hidden, context)
    expected = first_tensor_or_slot(stem.module(**arguments))
    if not alike(features[-1], expected):
        raise refusal(
            "another output at full depth: code of its own around the layers, or random numbers"
        )
    if any(each.shape != expected.shape for each in features):
        raise refusal("layers whose states differ in shape", "Pass layers=… that keep the shape.")
    kept = torch.arange(1, expected.shape[0], device=expected.device)
    _, of_kept = _run(take_rows(states[0], kept), take_rows(context, kept), start=1)
    if not _close(of_kept[-1], expected[1:]):
        raise refusal("rows that affect one another", "Keep rows apart, with the batch first.")


def _lengths_mix(stem: CapturedStem, padding: Padding, arguments: Arguments, mask: Tensor) -> bool:
    """Whether a long row (row 0) and short rows answer in one batch as in separate ones."""
    rows, length = mask.shape
    first = torch.zeros(1, dtype=torch.long)
    rest = torch.arange(1, rows)

    def join(parts: Sequence[tuple[Tree, Arguments]], length: int) -> tuple[Tree, Arguments]:
        states = [state for state, _ in parts]
        contexts = [context for _, context in parts]
        return (
            join_rows(states, padding.of_hidden, length),
            join_rows(contexts, padding.of_context, length),
        )

    def without_padding(features: Tensor) -> Tensor:
        return features[:, : length - 2] if features.shape[1] == length else features

    long = _padded(arguments, stem.mask, padding)
    short = _shortened(stem, long, length, padding)
    # The short rows, padded, in one batch with the long one.
    _, of_long = _run(*stem(long))
    # The same rows as they come from two calls, joined after the stem.
    parts = [take_rows(stem(long), first), take_rows(stem(short), rest)]
    state, context = join(parts, length)
    states, of_joined = _run(state, context)
    # The short rows alone and narrower, after the long one has exited at the first step.
    narrow = join([take_rows((states[0], context), rest)], length - 2)
    _, of_narrow = _run(*narrow, start=1)
    # The short rows by the module's own forward.
    of_module = first_tensor_or_slot(stem.module(**short))
    if not _close(of_joined[-1][:1], of_long[-1][:1]):
        return False
    expected = without_padding(of_long[-1][1:])
    others = (of_joined[-1][1:], of_narrow[-1], of_module[1:])
    return all(_close(without_padding(each), expected) for each in others)


def _padded(arguments: Arguments, name: str, padding: Padding) -> dict[str, Any]:
    """Return a call in which the last two positions of all rows but the first are padding."""
    mask = torch.full_like(arguments[name], padding.real)
    mask[1:, -2:] = not padding.real
    return {**arguments, name: mask}


def _shortened(
    stem: CapturedStem, long: Arguments, length: int, padding: Padding
) -> dict[str, Any]:
    """Return a call without the last two positions, in which row 0 is a spare one.

    `ExampleReader` adds such a row: row 1 once more, with a mask that hides all but one position,
    so that the mask of the batch is never left out.
    """
    short = {
        name: value[:, :-2] if has_size(value, length, 1) else value for name, value in long.items()
    }
    spare_first = torch.tensor([1, *range(1, len(long[stem.mask]))])
    for name in stem.names_with_rows(short):
        short[name] = short[name][spare_first]
    short[stem.mask][0, 1:] = not padding.real
    return short


def _varied(module: nn.Module) -> nn.Module:
    """Return a copy whose constant parameters have other numbers."""
    twin = private_copy(module)
    generator = torch.Generator().manual_seed(0)
    for part in twin.modules():
        for name, weight in part._parameters.items():
            if weight is not None and _is_constant(weight):
                noise = torch.randn(weight.shape, generator=generator).to(weight)
                scale = weight.abs().clamp(min=1.0)
                part._parameters[name] = nn.Parameter(weight.detach() + 0.05 * noise * scale)
    return twin


def _is_constant(weight: Tensor) -> bool:
    """Return whether all numbers are the same, without sorting them: an embedding has millions."""
    if not weight.is_floating_point() or weight.numel() == 0:
        return False
    first = weight.flatten()[0]
    return bool((weight == first).all())


def _run(hidden: Tree, context: Arguments, start: int = 0) -> tuple[list[Tree], list[Tensor]]:
    """Run the steps behind `start`; return the states and the features after each."""
    call = unwrap(context)
    states: list[Tree] = []
    for number in range(start, len(call["captured"].calls)):
        hidden = CapturedStep(number)(hidden, **call)
        states.append(hidden)
    read = CapturedReadout(first_tensor_or_slot).bind(call)
    return states, [read(state) for state in states]


def _close(one: Tensor, other: Tensor) -> bool:
    return alike(one, other, 1e-3 if one.dtype.itemsize >= 4 else 0.1)
