"""One example as the engine reads it, and a batch of several."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ponder._utils.trees import Shared, Tree, map_tensors, tensors
from ponder.errors import ArgumentError
from ponder.parts.joining import Lengths, join_rows, with_lengths
from ponder.parts.padding import Padding, check_masks

__all__ = ["Example", "collate", "read_example"]


@dataclass(frozen=True, eq=False)
class Example:
    """One row.

    Args:
        inputs: Inputs of a call, as a batch of one.
        context: Context of the call, as a batch of one.
        length: Length of the row; 0 where the model declares none.
        signature: Rows with the same signature may share a batch.
    """

    inputs: Tree
    context: Mapping[str, Any]
    length: int
    signature: Hashable


def read_example(example: Any, padding: Padding | None) -> Example:
    """Read what a caller may call an example.

    Args:
        example: Inputs of one row, or a pair (inputs, context) whose second item is a dict; tensors as in a dataset,
            without a batch dimension.
        padding: Where the model's lengths lie, or None.

    Raises:
        ArgumentError: There is nothing to compute on.

    Example:
        >>> read_example((torch.tensor([5, 6, 7]), {"gain": torch.tensor(2.0)}), Padding()).length
        3
    """
    is_pair = isinstance(example, tuple) and len(example) == 2 and isinstance(example[1], dict)
    inputs, context = example if is_pair else (example, {})
    inputs, context = map_tensors(lambda tensor: tensor[None], (inputs, dict(context)))
    first = next((tensor for _, tensor in tensors(inputs)), None)
    if first is None:
        raise ArgumentError(
            "example",
            expected="inputs with a tensor in them, or a pair (inputs, context)",
            got=type(example).__name__,
            remedy="Give one row, without a batch dimension.",
        )
    length = 0
    if padding is not None:
        length, context = _with_mask(inputs, context, padding)
    check_masks(context)
    return Example(inputs, context, length, _signature(inputs, context, padding))


def collate(examples: Sequence[Example], padding: Padding | None) -> tuple[Tree, dict[str, Any]]:
    """Inputs and context of a call with one row for each example, padded on the right to the longest."""
    sizes, length = [1] * len(examples), max(example.length for example in examples)
    of_inputs = with_lengths(None) if padding is None else padding.of_inputs
    inputs = join_rows([e.inputs for e in examples], sizes, lengths=of_inputs, length=length, path="inputs")
    return inputs, join_context([e.context for e in examples], sizes, None, padding, length)


def join_context(
    contexts: Sequence[Mapping[str, Any]],
    sizes: Sequence[int],
    keep: Sequence[Tensor | None] | None,
    padding: Padding | None,
    length: int,
) -> dict[str, Any]:
    """`join_rows` for contexts, whose lengths are declared by name."""
    joined: dict[str, Any] = {}
    for name in {name: None for context in contexts for name in context}:
        along = None if padding is None else padding.of_context(name)
        values = [context.get(name) for context in contexts]
        joined[name] = join_rows(
            values, sizes, keep, lengths=with_lengths(along), length=length, path=f"context[{name!r}]"
        )
    return joined


def _with_mask(inputs: Tree, context: dict[str, Any], padding: Padding) -> tuple[int, dict[str, Any]]:
    """The length of a row, and its context with a mask."""
    lengths = padding.lengths(context)
    if lengths is not None:
        return max(int(lengths), 1), context
    for _, tensor in tensors(inputs):
        if padding.of_inputs(tensor) is not None:
            length = tensor.shape[padding.inputs.dims[0]]
            return length, {**context, padding.mask: torch.full((1, length), padding.real, device=tensor.device)}
    raise ArgumentError(
        "example",
        expected="inputs with a length, since the model declares ponder.Padding",
        got="none with two dimensions or more in a batch",
        remedy="Give sequences, or a model without padding.",
    )


def _signature(inputs: Tree, context: Mapping[str, Any], padding: Padding | None) -> Hashable:
    of_inputs = with_lengths(None) if padding is None else padding.of_inputs
    parts: list[Hashable] = [_kind(inputs, of_inputs)]
    for name in sorted(context):
        along = None if padding is None else padding.of_context(name)
        parts.append((name, _kind(context[name], with_lengths(along))))
    return tuple(parts)


def _kind(tree: Tree, lengths: Lengths) -> Hashable:
    """What two values must have in common to stand in one batch."""
    if isinstance(tree, Tensor):
        along = lengths(tree)
        shape: list[int | None] = list(tree.shape[1:])
        for dim in along.dims if along else ():
            shape[dim - 1 if dim > 0 else dim] = None
        return (tree.dtype, *shape)
    if isinstance(tree, Shared):
        return ("shared", id(tree.value))
    if isinstance(tree, Mapping):
        return tuple((key, _kind(value, lengths)) for key, value in tree.items())
    if isinstance(tree, list | tuple):
        return (type(tree), *(_kind(value, lengths) for value in tree))
    return tree if isinstance(tree, Hashable) else id(tree)
