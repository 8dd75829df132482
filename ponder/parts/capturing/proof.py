"""The proof of a captured module: its steps compute what it computes, whoever leaves, however narrow batches get."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ponder._utils.trees import Tree, distance, leaves, map_leaves, map_tensors, take_rows, tensors, unwrap
from ponder.errors import ArgumentError
from ponder.parts.capturing.closeness import close
from ponder.parts.capturing.growth import (
    grown_lengths,
    is_long,
    merge_rows,
    one_more_column,
    one_row_less,
    reversed_rows,
    split_rows,
)
from ponder.parts.capturing.layered import PLAN, LayeredModule
from ponder.parts.capturing.notes import CodeBetweenError
from ponder.parts.padding import REAL, Along, Padding

__all__ = ["LearnedPadding", "learned_padding", "prove", "reads_numbers", "refusal"]

Arguments = Mapping[str | int, Any]

_FAILURES = (RuntimeError, IndexError, ValueError, CodeBetweenError)
"""What a module raises where it is called with what it cannot take."""


def prove(layered: LayeredModule, given: Arguments, rows: int, expected: Any, reads: Callable[[Any], Any]) -> None:
    """Full depth is the module's own output bit for bit; rows may leave; the state of every step can be read.

    Rows may leave where others are not felt: neither in the steps, nor before them, nor in what is read behind them.

    Args:
        layered: What was learned of the module, in evaluation mode.
        given: The example.
        rows: How many rows it has.
        expected: The module's own output for it.
        reads: A function from the module's output to what readouts read of it.

    Raises:
        ArgumentError: One of them does not hold.
        CodeBetweenError: The layers are not called as was learned.
    """
    fewer, turned, shorter = one_row_less(given, rows), reversed_rows(given, rows), _first_shorter(layered, given)
    start, context = layered.stem(given)
    kept = torch.arange(1, rows, device=_device(start))
    before: tuple[Tree, Mapping[str, Any]] = take_rows((start, context), kept)  # copies: layers may write into it
    backwards: tuple[Tree, Mapping[str, Any]] = take_rows(
        (start, context), torch.arange(rows - 1, -1, -1, device=_device(start))
    )
    states = _states(layered, start, context)
    features = _check_depth(layered, states[-1], context, expected, reads)
    few, last, there = take_rows((states[1], states[-1], context), kept)
    try:
        for number in range(1, layered.num_steps):
            few = layered.step(number, few, unwrap(there))
    except (RuntimeError, IndexError) as error:
        raise refusal("layers that can be called with fewer rows than the one before", str(error)) from error
    for (_, part), (_, whole) in zip(tensors(few), tensors(last), strict=True):
        _check_alone(part, whole, "states of the rows that stay when the first row leaves")
    try:
        for state in states[:2]:
            layered.read(reads, state, unwrap(context))
        left = layered.read(reads, last, unwrap(there))
    except _FAILURES as error:
        raise refusal("an end that can read the state of every step", str(error)) from error
    for (_, part), (_, whole) in zip(tensors(left), tensors(features), strict=True):
        if part.is_floating_point() and part.shape == (rows - 1, *whole.shape[1:]):
            _check_alone(part, whole[1:], "outputs for the states of the rows that stay when the first row leaves")
    _check_before(layered, fewer, *before, what="rows that are given without the first")
    _check_before(layered, turned, *backwards, what="rows that are given in another order")
    if shorter is not None:
        _check_order(layered, shorter, kept, before[0])


def reads_numbers(layered: LayeredModule, given: Arguments, reads: Callable[[Any], Any]) -> bool:
    """Whether numbers that layers hand on are read by others, or behind them: with others, answers are others."""

    def another(leaf: Any) -> Any:
        if isinstance(leaf, bool):
            return not leaf
        return leaf + 1 if isinstance(leaf, int | float) else leaf

    if not any(isinstance(leaf, int | float) for call in layered.calls for leaf in leaves(call.answer)):
        return False
    changed = copy(layered)
    changed.calls = tuple(replace(call, answer=map_leaves(another, call.answer)) for call in layered.calls)
    own = tensors(_features(layered, map_tensors(torch.clone, dict(given)), reads))
    try:
        other = tensors(_features(changed, given, reads))
    except Exception:  # of its own, which takes no such number
        return True
    return any(not torch.equal(mine, theirs) for (_, mine), (_, theirs) in zip(own, other, strict=True))


def _first_shorter(layered: LayeredModule, given: Arguments) -> dict[str | int, Any] | None:
    """The example with its first row shorter by one position, by its mask; None where nothing tells that."""
    mask = given.get(layered.mask) if layered.mask is not None else None
    real = _real(str(layered.mask), mask) if isinstance(mask, Tensor) and mask.dim() == 2 else None
    if mask is None or real is None:
        return None
    is_real = (mask[0] != 0) == bool(real)
    if int(is_real.sum()) < 2:
        return None
    changed: dict[str | int, Any] = map_tensors(torch.clone, dict(given))
    changed[str(layered.mask)][0, is_real.nonzero()[-1]] = 0 if real else 1
    return changed


def _all_shorter(layered: LayeredModule, given: Arguments) -> dict[str | int, Any] | None:
    """The example with all its rows shorter by one position, by its mask; None where one would be empty.

    Whole numbers there become what stands at padding, since a module may read lengths off its token ids, too. Another
    mask stays: of a second sequence, it says that its position is there.
    """
    name = str(layered.mask)
    mask = given[name]
    real = _real(name, mask)
    is_real = (mask != 0) == bool(real)
    if real is None or int(is_real.sum(1).min()) < 2 or bool(is_real.all()):
        return None
    row, column = (~is_real).nonzero()[0].tolist()
    changed: dict[str | int, Any] = map_tensors(torch.clone, dict(given))
    for key, value in changed.items():
        like_ids = isinstance(value, Tensor) and value.shape == mask.shape and not value.is_floating_point()
        if like_ids and (key == name or not torch.equal(value, mask)):
            at_padding = value[row, column].clone()
            for own, filled in zip(value, is_real, strict=True):
                own[filled.nonzero()[-1]] = at_padding
    return changed


def _check_order(layered: LayeredModule, given: Arguments, kept: Tensor, hidden: Tree) -> None:
    """The other rows stay in their places where the first is shorter than it was: none is sorted by its length."""
    try:
        notes = layered.dry(given)
        mine = take_rows(split_rows(notes.hidden, layered.axis, len(kept) + 1), kept)
    except Exception:  # of its own, or a state of another size
        return
    own = hidden["hidden"] if isinstance(hidden, dict) else hidden
    if mine.shape == own.shape:
        _check_alone(mine, own, "states of the other rows before the layers where the first row is shorter")


def _check_before(
    layered: LayeredModule, given: Arguments, hidden: Tree, context: Mapping[str, Any], what: str
) -> None:
    """For rows that are given otherwise, layers are called with what they were called with before.

    Compared is what has the same shape: a stem may cut its rows to the longest of them.
    """
    try:
        notes = layered.dry(given)
    except Exception:  # of its own: so few rows are nothing that it takes
        return
    plan: Any = unwrap(context)[PLAN]
    numbers = [leaf for leaf in leaves(list(plan.calls[: len(notes.calls)])) if isinstance(leaf, int | float)]
    mine = [leaf for leaf in notes.arguments if isinstance(leaf, int | float)]
    if len(mine) == len(numbers) and mine != numbers:
        told = next((a, b) for a, b in zip(numbers, mine, strict=True) if a != b)
        raise refusal(
            "rows that do not affect one another", f"layers that are told {told[0]}, and {told[1]} for {what}"
        )
    pairs = [(notes.hidden, layered.merged(hidden))]
    if len(notes.tensors) == len(plan.names):
        noted = [(context[name], axis) for name, axis in zip(plan.names, plan.rows, strict=True)]
        own = [value.value if axis is None else merge_rows(value, axis) for value, axis in noted]
        pairs += zip(notes.tensors, own, strict=True)
    for mine, theirs in pairs:
        if mine.shape == theirs.shape:
            _check_alone(mine, theirs, f"arguments of the layers for {what}")


def _check_alone(mine: Tensor, own: Tensor, what: str) -> None:
    if not close(mine, own):
        raise refusal("rows that do not affect one another", f"other {what}: they differ by {distance(mine, own)}")


def refusal(expected: str, got: str) -> ArgumentError:
    """The error that says why a module cannot be captured."""
    return ArgumentError(
        "module",
        expected=expected,
        got=got,
        remedy="It cannot be captured; give PonderWrapper its stem, steps and readout yourself.",
    )


def learned_padding(
    layered: LayeredModule, given: Arguments, rows: int, reads: Callable[[Any], Any]
) -> LearnedPadding | None:
    """Where lengths lie, if the example has a mask that hides the ends of rows and narrower batches are proved."""
    mask = given.get(layered.mask) if layered.mask is not None else None
    if layered.mask is None or not isinstance(mask, Tensor) or mask.dim() != 2:
        return None
    real, length = _real(layered.mask, mask), mask.shape[1]
    if real is None:
        return None
    try:
        longer_call = one_more_column(given, rows, length)
        hidden, longer = (layered.stem(call) for call in (given, longer_call))
    except _FAILURES:  # no call with one column more
        return None
    along: dict[int, Along] = {}
    for (_, small), (_, large) in zip(tensors(hidden[0]), tensors(longer[0]), strict=True):
        if dims := grown_lengths(small, large, length):
            along[small.dim()] = Along(dims)
    layered.lengths.update(
        {f"given_{key}": Along() for key, value in given.items() if is_long(value, rows, length)}
        | {name: Along(fill=not real) for name in (layered.mask, f"given_{layered.mask}")}
    )
    try:
        features, more = (tensors(_features(layered, call, reads)) for call in (given, longer_call))
    except _FAILURES:  # layers that remember the length of the call before
        return None
    padding = LearnedPadding(
        mask=layered.mask,
        real=real,
        context=layered.lengths,
        pooled=features[0][1].shape == more[0][1].shape,
        state=along,
    )
    if not along or not _narrows(layered, padding, given, reads, features):
        return None
    shorter = _all_shorter(layered, given)  # a second sequence of the same length would still be read to its end
    alone = shorter is None or _narrows(layered, padding, shorter, reads, tensors(_features(layered, shorter, reads)))
    return padding if alone else None


def _real(name: str, mask: Tensor) -> int | bool | None:
    """What stands at real positions of a mask, by its name, or at the start of all rows; None where rows differ."""
    if name in REAL:
        return REAL[name]
    first = mask[:, 0] != 0
    if mask.shape[1] == 0 or not bool((first == first[0]).all()):
        return None
    return bool(first[0])


def _narrows(
    layered: LayeredModule,
    padding: Padding,
    given: Arguments,
    reads: Callable[[Any], Any],
    features: list[tuple[str, Tensor]],
) -> bool:
    """Whether shorter rows keep their states, and what is read of them, when the longest and their columns leave."""
    lengths = padding.lengths(dict(given))  # type: ignore[arg-type]
    if lengths is None or not bool((lengths < lengths.max()).any()):
        return False
    states, context = _run(layered, given)
    kept = (lengths < lengths.max()).nonzero().flatten()
    longest = int(lengths[kept].max())
    if longest == 0:  # of such rows nothing could be compared
        return False
    real = torch.arange(longest) < lengths[kept][:, None]
    kept = kept.to(_device(states[0]))
    state, there = padding.trim(states[1], context, longest)
    state, there = take_rows((state, there), kept)
    try:
        for number in range(1, layered.num_steps):
            state = layered.step(number, state, unwrap(there))
        read = layered.read(reads, state, unwrap(there))
    except _FAILURES:
        return False
    whole, _ = padding.trim(take_rows(states[-1], kept), {}, longest)
    return all(
        close(mine[real.to(mine.device)], own[real.to(own.device)])
        for (_, mine), (_, own) in zip(tensors(state), tensors(whole), strict=True)
        if mine.shape[:2] == real.shape
    ) and all(
        _read_alike(mine, own[kept], real)
        for (_, mine), (_, own) in zip(tensors(read), features, strict=True)
        if mine.is_floating_point() and own.shape[:1] == lengths.shape
    )


def _read_alike(mine: Tensor, own: Tensor, real: Tensor) -> bool:
    """Whether narrowed rows are read as whole ones are: at real positions, where what is read of them has positions."""
    if mine.shape != own.shape:
        if mine.shape[:2] != real.shape:
            return False
        mine, own = mine[real.to(mine.device)], own[:, : real.shape[1]][real.to(own.device)]
    return close(mine, own)


@dataclass(frozen=True)
class LearnedPadding(Padding):
    """`Padding` of a captured module, in whose state the length need not be in one place.

    Args:
        state: The dimension of the length in a tensor of the state, by the number of the tensor's dimensions.
    """

    state: Mapping[int, Along] = field(default_factory=dict)

    def of_hidden(self, tensor: Tensor) -> Along | None:
        """See `Padding.of_hidden`."""
        return self.state.get(tensor.dim())

    def trim(self, hidden: Tree, context: Mapping[str, Any], length: int) -> tuple[Tree, dict[str, Any]]:
        """See `Padding.trim`; nothing is cut off in calls of which it is not known where their lengths lie."""
        plan = context.get(PLAN)
        if plan is not None and not unwrap({PLAN: plan})[PLAN].narrows:
            return hidden, dict(context)
        _, context = super().trim((), context, length)

        def narrow(tensor: Tensor) -> Tensor:
            along = self.of_hidden(tensor)
            return tensor if along is None else along.narrow(tensor, length)

        return map_tensors(narrow, hidden), context


def _features(layered: LayeredModule, given: Arguments, reads: Callable[[Any], Any]) -> Any:
    states, context = _run(layered, given)
    return layered.read(reads, states[-1], unwrap(context))


def _run(layered: LayeredModule, given: Arguments) -> tuple[list[Tree], dict[str, Any]]:
    """Run the example through all steps: its states h_0 … h_N, and the context."""
    state, context = layered.stem(given)
    return _states(layered, state, context), context


def _states(layered: LayeredModule, state: Tree, context: Mapping[str, Any]) -> list[Tree]:
    states = [state]
    for number in range(layered.num_steps):
        states.append(layered.step(number, states[-1], unwrap(context)))
    return states


def _check_depth(
    layered: LayeredModule, last: Tree, context: Mapping[str, Any], expected: Any, reads: Callable[[Any], Any]
) -> Any:
    """What is read of the last state, which is the module's own output."""
    got = layered.read(reads, last, unwrap(context))
    for mine, own in zip(leaves(got), leaves(reads(expected)), strict=True):
        if isinstance(own, Tensor) and (mine.shape != own.shape or not torch.equal(mine, own)):
            raise refusal(
                "layers between which nothing but the hidden state is handed on",
                f"other outputs than the module's: they differ by {distance(mine, own)}",
            )
    return got


def _device(state: Tree) -> torch.device:
    return next(tensor.device for _, tensor in tensors(state))
