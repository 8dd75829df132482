"""Rows of several lengths in one batch of a captured module: learned from what stands at its padding, and proved.

Two things keep such rows apart. A module may build no mask where nothing is padded, so that rows of another batch have
none to join: `JoinableStem` puts one row more into the call, whose last position is hidden. And what stands at padding
in a tensor that layers are called with is not known: it is read off the ends of the example's shorter rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ponder._utils.trees import Tree, map_tensors, take_rows, tensors, unwrap
from ponder.errors import ArgumentError
from ponder.parts.capturing.closeness import close
from ponder.parts.capturing.layered import LayeredModule
from ponder.parts.capturing.notes import CodeBetweenError
from ponder.parts.capturing.proof import LearnedPadding
from ponder.parts.joining import join_rows, with_lengths
from ponder.parts.padding import Along, Padding

__all__ = ["JoinableStem", "joinable"]

Arguments = Mapping[str | int, Any]
_FAILURES = (RuntimeError, IndexError, ValueError, TypeError, CodeBetweenError, ArgumentError)


class JoinableStem:
    """A stem whose context has a mask, whether or not anything is padded.

    Args:
        stem: The stem.
        mask: The name of the mask `(batch, length)` among its arguments.
        real: Its value at real positions.
    """

    borrows_modules = True

    def __init__(self, stem: Callable[..., tuple[Tree, dict[str, Any]]], mask: str, real: bool | int) -> None:
        self.stem, self.mask, self.real = stem, mask, real

    def __call__(self, inputs: Tree, **context: Any) -> tuple[Tree, dict[str, Any]]:
        """h_0 and the context of the steps, of the rows that were given."""
        named = {**context, **inputs} if isinstance(inputs, Mapping) else context
        rows = named[self.mask].shape[0]
        more = {**map_tensors(_first_row_again, context)}
        inputs = map_tensors(_first_row_again, inputs)
        masks: Any = inputs if isinstance(inputs, dict) and self.mask in inputs else more
        masks[self.mask][-1, -1] = not self.real
        given = take_rows(self.stem(inputs, **more), torch.arange(rows, device=named[self.mask].device))
        hidden, noted = given
        return hidden, noted


def joinable(
    layered: LayeredModule, padding: LearnedPadding, given: Arguments, reads: Callable[[Any], Any]
) -> LearnedPadding:
    """`padding` with a stem for streams, where rows of several lengths were seen to share a batch.

    Elsewhere it says that they may not: a module that makes no mask where nothing is padded would show the padding of
    such rows to its layers, in silence.

    Args:
        layered: What was learned of the module; the lengths that it knows are given what stands at padding.
        padding: Where lengths lie.
        given: The example, whose mask hides the ends of some rows.
        reads: A function from the module's output to what readouts read of it.
    """
    lengths = padding.lengths(dict(given))  # type: ignore[arg-type]
    assert lengths is not None  # `learned_padding` gives none without a mask
    stem = JoinableStem(layered.stem, padding.mask, padding.real)
    before = dict(layered.lengths)
    try:
        hidden, context = stem(dict(given))
        for name, along in before.items():
            if isinstance(tensor := context.get(name), Tensor) and name.startswith("noted"):
                layered.lengths[name] = Along(along.dims, fill=_at_padding(tensor, along, lengths.tolist()))
        if _joins(layered, padding, stem, given, lengths.tolist(), (hidden, context), reads):
            return replace(padding, stem=stem)
    except _FAILURES:
        pass
    layered.lengths.update(before)
    return replace(padding, mixed=False)


def _joins(
    layered: LayeredModule,
    padding: Padding,
    stem: JoinableStem,
    given: Arguments,
    lengths: list[int],
    whole: tuple[Tree, dict[str, Any]],
    reads: Callable[[Any], Any],
) -> bool:
    """Whether rows that were given alone, at their own lengths, have in one batch the states that they had in it.

    And whether what is read of these states is what was read of those.
    """
    longest, sizes = max(lengths), [1] * len(lengths)
    alone = [stem(_row(given, row, length, longest)) for row, length in enumerate(lengths)]
    state = join_rows([hidden for hidden, _ in alone], sizes, lengths=padding.of_hidden, length=longest)
    context = {
        name: join_rows(
            [there[name] for _, there in alone], sizes, lengths=with_lengths(padding.of_context(name)), length=longest
        )
        for name in alone[0][1]
    }
    own, around = whole
    for number in range(layered.num_steps):
        state, own = layered.step(number, state, unwrap(context)), layered.step(number, own, unwrap(around))
    pairs = zip(tensors(state), tensors(own), strict=True)
    if not all(
        bool(mine.isfinite().all()) and _same(mine, theirs, padding.of_hidden(mine), lengths)
        for (_, mine), (_, theirs) in pairs
    ):
        return False
    read, expected = (
        tensors(layered.read(reads, each, unwrap(there))) for each, there in ((state, context), (own, around))
    )
    return all(
        _same(mine, theirs, Along() if mine.shape[1:2] == (longest,) else None, lengths)
        for (_, mine), (_, theirs) in zip(read, expected, strict=True)
        if mine.is_floating_point() and mine.shape[:1] == (len(lengths),)
    )


def _same(mine: Tensor, theirs: Tensor, along: Along | None, lengths: list[int]) -> bool:
    """Whether two states or outputs agree at real positions, and the first is finite wherever the second is."""
    if mine.shape != theirs.shape or not bool((mine.isfinite() | ~theirs.isfinite()).all()):
        return False

    def real(tensor: Tensor) -> Tensor:
        rows = [tensor[row : row + 1] for row in range(len(lengths))]
        if along is not None:
            rows = [along.narrow(row, length) for row, length in zip(rows, lengths, strict=True)]
        return torch.cat([row.flatten() for row in rows])

    return close(real(mine), real(theirs))


def _row(given: Arguments, row: int, length: int, longest: int) -> dict[str | int, Any]:
    """One row of the example, at its own length."""

    def cut(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.dim():
            return value
        one = value[row : row + 1]
        return one[:, :length] if one.dim() > 1 and one.shape[1] == longest else one

    return {key: cut(value) for key, value in given.items()}


def _at_padding(tensor: Tensor, along: Along, lengths: list[int]) -> Any:
    """What stands behind the ends of rows: one value, or 0 where there are several, which nobody may then read."""
    place = along.dims[-1] - 1
    ends = [
        tensor[row].narrow(place, length, tensor.shape[place + 1] - length).flatten()
        for row, length in enumerate(lengths)
        if length < tensor.shape[place + 1]
    ]
    values = torch.cat(ends).unique()
    if len(values) != 1:
        return 0
    value = values[0].item()
    if tensor.is_floating_point() and value == torch.finfo(tensor.dtype).min:
        return _lowest
    return value if not isinstance(value, float) or math.isfinite(value) else _minus_infinity


def _lowest(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).min


def _minus_infinity(tensor: Tensor) -> float:
    return -math.inf


def _first_row_again(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor[:1]])
