"""Batches: the inputs, the context of the steps, and labels, in each form of data sets.

Training, `ponder.predict`, `record` and streams read batches with this module, and a call takes
the same arguments. A row is a batch without its first dimension.

=====================================  ====================================================
``inputs``                             a tensor, or a tree of tensors
``(inputs, labels)``
``(inputs, mask, labels)``             context in the order in which the model takes it
``(inputs, {"mask": mask}, labels)``   context by name; the labels may be in the dict too
``{"x": inputs, "mask": mask, "labels": labels}``
=====================================  ====================================================

So the last item of a tuple is labels unless it is a dict; inputs that are a tuple themselves stand
in a pair with a dict: ``((position, velocity), {})``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from ponder._utils.trees import Tree
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.model.steps import Context, ContextDict, Steps, parameters_of

__all__ = ["ArgumentNames", "Batch", "not_labels", "read_batch"]

_LABELS = ("labels", "label")
_SPAN = ("start_positions", "end_positions")
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class ArgumentNames:
    """The names of the arguments of a model: of its inputs, and of the context in its order.

    Args:
        inputs: Name of the inputs.
        context: Names of the context.

    Example:
        >>> from ponder.model.batch import ArgumentNames
        >>> def step(hidden, mask):
        ...     return hidden * mask
        >>> ArgumentNames.of(None, ponder.Steps.of(step, 3))
        ArgumentNames(inputs='hidden', context=('mask',))
    """

    inputs: str
    context: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        stem: Callable[..., Tree] | None,
        steps: Steps,
        main_input: str | None = None,
    ) -> ArgumentNames:
        """Read them from the stem, and from the first step, whose first argument is the state."""
        of_stem: list[str] = []
        if isinstance(stem, nn.Module):
            of_stem = _names_of(stem)
        of_step = _names_of(steps.fns[0])
        main = main_input or [*of_stem, *of_step[:1], "inputs"][0]
        names = [name for name in of_stem if name != main] + of_step[1:]
        return cls(main, tuple(dict.fromkeys(names)))

    @classmethod
    def of_call(cls, module: nn.Module) -> ArgumentNames:
        """Read them from the forward pass of a module that is called as a whole."""
        names = [name for name in _names_of(module) if name != "labels"]
        if not names:
            return cls("inputs")
        return cls(names[0], tuple(names[1:]))

    def by_name(self, values: Sequence[object]) -> ContextDict:
        """Return context that was given by position as a dict by name."""
        if len(values) > len(self.context):
            taken = ", ".join(self.context) or "none"
            raise ArgumentTypeError(
                "context",
                expected=f"at most {len(self.context)} by position: {taken}",
                got=f"{len(values)}",
                remedy="Pass others by name; labels are the last item of a tuple.",
            )
        pairs = zip(self.context, values, strict=False)
        return {name: value for name, value in pairs if value is not None}


@dataclass(frozen=True)
class Batch:
    """A batch, or a row, as it was read.

    Args:
        inputs: The argument of the stem, or h_0.
        context: Context of the stem and the steps, by name.
        labels: Labels; None without any.
        in_place_of: The name of the context that the labels would be if they were not the last
            item of a tuple; None if the model takes no more context.
    """

    inputs: Tree
    context: ContextDict
    labels: Any = None
    in_place_of: str | None = None

    def labelled(self) -> Batch:
        """Return the batch, which training reads; raise if it has no labels, a tensor."""
        if not isinstance(self.labels, Tensor):
            got = f"labels of type {type(self.labels).__name__}"
            if self.labels is None:
                got = f"{', '.join(['inputs', *self.context])} without labels"
            raise ArgumentError(
                "loader",
                expected="batches with labels: tuples whose last item are labels, or dicts with "
                "the labels, a tensor, under 'labels'",
                got=got,
                remedy="Let the data set, or the collate function of the DataLoader, give the "
                "labels too.",
            )
        return self


def read_batch(batch: object, names: ArgumentNames | None = None) -> Batch:
    """Return the inputs, context and labels of a batch, or of a row.

    Args:
        batch: A batch in one of the forms of this module.
        names: The names of the arguments of the model. A dict that holds the name of the inputs, or
            labels, is read by name; its first entry is the inputs if that name is not among them.
            Any other dict is the inputs.

    Raises:
        ArgumentError: The last item of a tuple is a mask of booleans.
        ArgumentTypeError: More context by position than the model takes.

    Example:
        >>> from ponder.model.batch import ArgumentNames, read_batch
        >>> x, mask, y = torch.zeros(2, 4), torch.ones(2, 4), torch.tensor([0, 1])
        >>> names = ArgumentNames("x", ("mask",))
        >>> named = {"x": x, "mask": mask, "labels": y}
        >>> forms = [(x, mask, y), (x, {"mask": mask, "labels": y}), named]
        >>> batches = [read_batch(form, names) for form in forms]
        >>> [batch.labels is y and "mask" in batch.context for batch in batches]
        [True, True, True]
    """
    if names is None:
        names = ArgumentNames("inputs")
    if isinstance(batch, Mapping):
        return _read_mapping(batch, names.inputs)
    if isinstance(batch, tuple) or _is_collated(batch):
        return _read_tuple(batch, names)
    return Batch(batch, {})


def _is_collated(batch: object) -> TypeGuard[list[object]]:
    """Return whether a list is a batch of a `DataLoader`, and not rows of numbers."""
    return isinstance(batch, list) and any(isinstance(part, Tensor | Mapping) for part in batch)


def _read_tuple(batch: Sequence[object], names: ArgumentNames) -> Batch:
    """Read the inputs, context by position or in dicts, and labels: the last item, unless a dict.

    If the last item is a dict, the labels may be in it.
    """
    inputs, *others = batch
    labels = None
    if others and not isinstance(others[-1], Mapping):
        labels = others.pop()
    by_position = [value for value in others if not isinstance(value, Mapping)]
    context = names.by_name(by_position)
    for value in others:
        if isinstance(value, Mapping):
            context |= _present(value)
    named_labels = _take_labels(context)
    if labels is None:
        return Batch(inputs, context, named_labels)
    in_place_of = _first_missing(names.context[len(by_position) :], context)
    if in_place_of and isinstance(labels, Tensor) and labels.dtype is torch.bool:
        raise not_labels("booleans", in_place_of)
    return Batch(inputs, context, labels, in_place_of)


def _first_missing(names: Sequence[str], context: Context) -> str | None:
    """Return the first of some names that a context lacks; None if it has all."""
    return next((name for name in names if name not in context), None)


def not_labels(noun: str, name: str) -> ArgumentError:
    """Return the error about a mask that is the last item of a tuple.

    Args:
        noun: What it is.
        name: The context that it should be.
    """
    return ArgumentError(
        "batch",
        expected="labels as the last item of a tuple",
        got=f"{noun}, which look like a mask",
        remedy=f"Pass a mask by its name, (inputs, {{{name!r}: mask}}); labels as numbers, or by "
        "theirs, (inputs, {'labels': labels}).",
    )


def _read_mapping(batch: Context, main_input: str) -> Batch:
    """Read a batch by names; a dict that names neither the inputs nor labels is the inputs."""
    entries = _present(batch)
    labels = _take_labels(entries)
    if not entries or (labels is None and main_input not in entries):
        return Batch(batch, {})
    first = main_input
    if main_input not in entries:
        first = next(iter(entries))
    return Batch(entries.pop(first), entries, labels)


def _present(values: Context) -> ContextDict:
    """Return the values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def _take_labels(entries: ContextDict) -> Tree:
    """Take the labels out of the entries of a batch; those of a span become `(batch, 2)`."""
    if all(name in entries for name in _SPAN):
        first, last = (torch.as_tensor(entries.pop(name)) for name in _SPAN)
        if first.dim():  # of a batch; Transformers gives (batch,) or (batch, 1)
            first = first.reshape(-1)
            last = last.reshape(-1)
        entries["labels"] = torch.stack([first, last], dim=-1)
    for name in _LABELS:
        if name in entries:
            return entries.pop(name)
    return None


def _names_of(part: nn.Module) -> list[str]:
    """Return the names of a part's positional arguments, of a captured module in its order."""
    captured: Sequence[str] = getattr(part, "argument_names", ())
    if captured:
        return list(captured)
    parameters = parameters_of(part).values()
    return [parameter.name for parameter in parameters if parameter.kind in _POSITIONAL]
