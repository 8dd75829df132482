"""The rows of a data set, and batches of them: read, put in the order of their lengths, and cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from ponder._utils.trees import Tree, tensors
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.inference.collating import collate, read_example
from ponder.parts.padding import Padding

__all__ = [
    "Collate",
    "Limits",
    "Reader",
    "Row",
    "as_tensors",
    "batches",
    "by_length",
    "make_limits",
    "read",
    "refuse",
    "rows_of",
]

Collate = Callable[[list[Any]], Any]


def rows_of(dataset: Any) -> Iterator[Any]:
    """The examples of a data set that can be iterated, or indexed from 0 to its length.

    Raises:
        ArgumentTypeError: It is a batch, or no data set.
    """
    if isinstance(dataset, Mapping) or not (isinstance(dataset, Iterable) or _can_be_indexed(dataset)):
        raise ArgumentTypeError(
            "dataset",
            expected="a sequence or iterable of examples",
            got=type(dataset).__name__,
            remedy="Pass one example a row; a batch, a dict of tensors, is for a call of the model.",
        )
    if isinstance(dataset, Iterable):
        return iter(dataset)
    return (dataset[position] for position in range(len(dataset)))


def as_tensors(tree: Tree) -> Tree:
    """Lists of numbers, and arrays, as tensors; everything else stays.

    Example:
        >>> as_tensors({"input_ids": [5, 6, 7], "scale": 2.0})
        {'input_ids': tensor([5, 6, 7]), 'scale': 2.0}
    """
    if isinstance(tree, Tensor):
        return tree
    if isinstance(tree, Mapping):
        return {key: as_tensors(value) for key, value in tree.items()}
    if isinstance(tree, list) and tree and _is_number(tree):
        return torch.tensor(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(as_tensors(value) for value in tree))
    if isinstance(tree, list | tuple):
        return type(tree)(as_tensors(value) for value in tree)
    return torch.as_tensor(tree) if hasattr(tree, "__array__") else tree


@dataclass(frozen=True)
class Limits:
    """How large a batch may be.

    Args:
        rows: Rows, or None.
        tokens: Rows times the longest, or None.
    """

    rows: int | None
    tokens: int | None

    def allow(self, rows: int, longest: int) -> bool:
        """Whether so many rows, of which the longest is so long, may be one batch."""
        return (self.rows is None or rows <= self.rows) and (self.tokens is None or rows * longest <= self.tokens)


@dataclass(frozen=True, eq=False)
class Row:
    """An example of the data set that was read.

    Args:
        position: Where it stands.
        example: The example: as it came where there is a collator, else an `Example`.
        length: Its length; 0 where that is not known.
        signature: Rows with the same one may share a batch.
    """

    position: int
    example: Any
    length: int
    signature: Any


@dataclass(frozen=True)
class Reader:
    """How examples become rows, and rows a batch.

    Args:
        padding: Where the model's lengths lie.
        collate: The caller's collator, or None.
        use_lengths: Whether lengths are asked for.
    """

    padding: Padding | None
    collate: Collate | None
    use_lengths: bool

    def row(self, position: int, example: Any) -> Row:
        """An example as a row."""
        if self.collate is None:
            read = read_example(_without_labels(as_tensors(example)), self.padding)
            return Row(position, read, read.length, read.signature)
        length = 0
        if self.padding is not None and self.use_lengths:
            length = _length(*_as_call(self.collate([example])), self.padding)
        return Row(position, example, length, None)

    def batch(self, rows: Sequence[Row]) -> tuple[Tree, dict[str, Any]]:
        """Inputs and context of a call."""
        examples = [row.example for row in rows]
        return collate(examples, self.padding) if self.collate is None else _as_call(self.collate(examples))


def make_limits(batch_size: int | None, max_tokens: int | None, padding: Padding | None) -> Limits:
    """Check the limits that a caller gives; 32 rows where he gives none."""
    for name, limit in (("batch_size", batch_size), ("max_tokens", max_tokens)):
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise ArgumentError(name, expected="a whole number ≥ 1", got=repr(limit), remedy=f"Pass {name}=32, say.")
    if max_tokens is not None and padding is None:
        raise ArgumentError(
            "max_tokens",
            expected="None for a model without lengths",
            got=max_tokens,
            remedy="Build the model with padding=ponder.Padding(…), or limit rows with batch_size.",
        )
    return Limits(32 if batch_size is None and max_tokens is None else batch_size, max_tokens)


def read(examples: Iterator[Any], reader: Reader) -> Iterator[Row]:
    """The rows of a data set, one after the other; one that cannot be read is refused by its position."""
    position = 0
    while True:
        try:
            example = next(examples)
            row = reader.row(position, example)
        except StopIteration:
            return
        except Exception as error:
            refuse(position, error)
        yield row
        position += 1


def by_length(rows: Iterable[Row]) -> list[Row]:
    """Rows that may share a batch together, in the order of their first; among them the longest first."""
    rows = list(rows)
    place: dict[Any, int] = {}
    for row in rows:
        place.setdefault(row.signature, len(place))
    return sorted(rows, key=lambda row: (place[row.signature], -row.length))


def batches(rows: Iterable[Row], limits: Limits) -> Iterator[list[Row]]:
    """Cut rows, in their order, into batches within the limits; a row that is beyond them runs alone."""
    batch: list[Row] = []
    longest = 0
    for row in rows:
        longest = max(longest, row.length)
        if batch and (row.signature != batch[0].signature or not limits.allow(len(batch) + 1, longest)):
            yield batch
            batch, longest = [], row.length
        batch.append(row)
    if batch:
        yield batch


def refuse(position: int, error: Exception) -> NoReturn:
    """Say which example is bad, and why."""
    told = str(error) if isinstance(error, ArgumentError) else f"{type(error).__name__}: {error}"
    raise ArgumentError(
        f"dataset[{position}]",
        expected="an example that the model can read and run",
        got=told.rstrip("."),
        remedy="Repair this example, or leave it out.",
    ) from error


def _as_call(batch: Any) -> tuple[Tree, dict[str, Any]]:
    """Inputs and context from what a collator gives."""
    inputs, context = batch if _is_pair(batch) else (batch, {})
    return inputs, {name: value for name, value in context.items() if name != "labels"}


def _without_labels(example: Any) -> Any:
    return _as_call(example) if _is_pair(example) else example


def _is_pair(example: Any) -> bool:
    return isinstance(example, tuple) and len(example) == 2 and isinstance(example[1], dict)


def _length(inputs: Tree, context: Mapping[str, Any], padding: Padding) -> int:
    """The length of a batch of one."""
    lengths = padding.lengths(context)
    if lengths is not None:
        return int(lengths.max())
    along = (tensor for _, tensor in tensors(inputs) if padding.of_inputs(tensor) is not None)
    return next((tensor.shape[padding.inputs.dims[0]] for tensor in along), 0)


def _is_number(value: Any) -> bool:
    """Whether a value is a number, or nested lists of numbers."""
    if isinstance(value, list):
        return all(_is_number(item) for item in value)
    return isinstance(value, bool | int | float)


def _can_be_indexed(dataset: Any) -> bool:
    return isinstance(dataset, Sized) and hasattr(dataset, "__getitem__")
