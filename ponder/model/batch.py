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
from typing import Any

import torch
from torch import Tensor, nn

from ponder._utils.trees import Tree
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.model.steps import Steps, parameters_of

__all__ = ["ArgumentNames", "Batch", "read_batch"]

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
        parts = [part for part in (stem, steps.fns[0]) if isinstance(part, nn.Module)]
        listed = [_names_of(part) for part in parts]
        main = main_input or next((names[0] for names in listed if names), "inputs")
        context: list[str] = []
        for place, names in enumerate(listed):
            is_stem = place == 0 and stem is not None
            others = [name for name in names if name != main] if is_stem else names[1:]
            context += [name for name in others if name not in context]
        return cls(main, tuple(context))

    @classmethod
    def of_call(cls, module: nn.Module) -> ArgumentNames:
        """Read them from the forward pass of a module that is called as a whole."""
        names = [name for name in _names_of(module) if name != "labels"]
        return cls(names[0], tuple(names[1:])) if names else cls("inputs")

    def by_name(self, values: Sequence[Any]) -> dict[str, Any]:
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
    """

    inputs: Tree
    context: dict[str, Any]
    labels: Any = None

    def labelled(self) -> Batch:
        """Return the batch, which training reads; raise if it has no labels, a tensor."""
        if not isinstance(self.labels, Tensor):
            names = ", ".join(["inputs", *self.context])
            raise ArgumentError(
                "loader",
                expected="batches with labels: tuples whose last item are labels, or dicts with "
                "the labels, a tensor, under 'labels'",
                got=f"{names} without labels"
                if self.labels is None
                else type(self.labels).__name__,
                remedy="Let the data set, or the collate function of the DataLoader, give the "
                "labels too.",
            )
        return self


def read_batch(batch: Any, names: ArgumentNames | None = None) -> Batch:
    """Return the inputs, context and labels of a batch, or of a row.

    Args:
        batch: A batch in one of the forms of this module.
        names: The names of the arguments of the model. A dict that holds the name of the inputs, or
            labels, is read by name; its first entry is the inputs if that name is not among them.
            Any other dict is the inputs.

    Raises:
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
    names = ArgumentNames("inputs") if names is None else names
    if isinstance(batch, Mapping):
        return _read_names(batch, names.inputs)
    if not (isinstance(batch, tuple) or _is_collated(batch)):
        return Batch(batch, {})
    inputs, *others = batch
    labels = None
    if others and not isinstance(others[-1], Mapping):
        labels = others.pop()
    by_position = [value for value in others if not isinstance(value, Mapping)]
    if _is_mask(labels) and len(by_position) < len(names.context):
        raise ArgumentError(
            "batch",
            expected="labels as the last item of a tuple",
            got="booleans, which look like a mask",
            remedy=f"Pass a mask by its name, (inputs, {{{names.context[0]!r}: mask}}); labels as "
            "numbers.",
        )
    context = names.by_name(by_position)
    for value in others:
        if isinstance(value, Mapping):
            context |= {name: each for name, each in value.items() if each is not None}
    own = _take_labels(context)
    return Batch(inputs, context, own if labels is None else labels)


def _is_collated(batch: Any) -> bool:
    """Return whether a list is a batch of a `DataLoader`, and not rows of numbers."""
    return isinstance(batch, list) and any(isinstance(part, Tensor | Mapping) for part in batch)


def _is_mask(labels: Any) -> bool:
    return isinstance(labels, Tensor) and labels.dtype is torch.bool


def _read_names(batch: Mapping[str, Any], main_input: str) -> Batch:
    entries = {name: value for name, value in batch.items() if value is not None}
    labels = _take_labels(entries)
    if not entries or (labels is None and main_input not in entries):
        return Batch(batch, {})
    first = main_input if main_input in entries else next(iter(entries))
    return Batch(entries.pop(first), entries, labels)


def _take_labels(entries: dict[str, Any]) -> Any:
    """Take the labels out of the entries of a batch; those of a span become `(batch, 2)`."""
    if all(name in entries for name in _SPAN):
        places = [torch.as_tensor(entries.pop(name)) for name in _SPAN]
        flat = [place.reshape(-1) if place.dim() else place for place in places]
        entries["labels"] = torch.stack(flat, dim=-1)
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
