"""One example: how `predict`, `record` and streams read it, and how several of them become one call of the model."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ponder._utils.trees import Shared, Tree, check_rows, map_tensors, tensors
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.parts.joining import join_rows, with_lengths
from ponder.parts.padding import Along, Lengths, Padding, check_masks, lengths_in, named_in
from ponder.parts.tasks.base import IGNORED_LABEL

__all__ = [
    "Example",
    "ExampleReader",
    "as_batch_of_one",
    "as_tensors",
    "examples_in",
    "is_pair",
    "join_context",
    "join_labels",
    "length_of",
    "placed",
]

_NUMBERS = frozenset({bool, int, float})


@dataclass(eq=False)
class Example:
    """One example of a data set or a stream, read as a batch of one row.

    Args:
        inputs: Inputs of a call, as a batch of one; what the caller gave, where he collates himself.
        context: Context of the call, as a batch of one.
        length: Length of the row; 0 where the model declares none.
        signature: Rows with the same signature may share a batch.
        labels: What the context held under ``"labels"``, as a batch of one, or None; the model does not see it.
        position: Where the example stands in its data set.
        unread: What stood there in the place of labels that can be read: the name of its type; None where nothing did.
    """

    inputs: Any
    context: Mapping[str, Any]
    length: int = 0
    signature: Hashable = None
    labels: Tensor | None = None
    position: int = 0
    unread: str | None = None


class ExampleReader:
    """Reads examples for one model, and makes the inputs and the context of a call from several.

    An example is the inputs of one row, or a pair (inputs, context) whose second item is a dict; tensors as in a data
    set, without a batch dimension. Lists of numbers and arrays are read as tensors, and ``"labels"`` in the context
    are kept apart.

    Args:
        padding: Where the model's lengths lie, or None.
        one_length: Whether only rows of one length may share a batch, although the model declares its padding.
        check: Whether to look at the masks of every example; not where the call that follows does.

    Example:
        >>> reader = ExampleReader(Padding())
        >>> rows = [reader.read(torch.tensor([5, 6, 7])), reader.read([8, 9])]
        >>> reader.batch(rows)[1]["attention_mask"]
        tensor([[1, 1, 1],
                [1, 1, 0]])
    """

    def __init__(self, padding: Padding | None, *, one_length: bool = False, check: bool = False) -> None:
        self.padding, self._one_length, self._check = padding, one_length and padding is not None, check
        self._along: dict[str, Along | None] = {}

    def read(self, example: Any, position: int = 0) -> Example:
        """Read an example as a batch of one.

        Raises:
            ArgumentError: There is nothing to compute on.
        """
        inputs, given = example if is_pair(example) else (example, {})
        inputs, context, labels, unread = _batch_of_one(inputs), {}, None, None
        for name, value in given.items():
            if name == "labels":
                labels = as_batch_of_one(value)
                unread = type(value).__name__ if labels is None and value is not None else None
            else:
                context[name] = _batch_of_one(value)
        if not isinstance(inputs, Tensor) and not tensors(inputs):
            raise ArgumentError(
                "example",
                expected="inputs with a tensor in them, or a pair (inputs, context)",
                got=type(example).__name__,
                remedy="Give one row, without a batch dimension.",
            )
        length = 0 if self.padding is None else self._measure(inputs, context, self.padding)
        if self._check:
            check_masks(context if isinstance(inputs, Tensor) else named_in(inputs, context), self.padding)
        signature = self._signature(inputs, context, length)
        return Example(inputs, context, length, signature, labels, position, unread)

    def batch(self, examples: Sequence[Example]) -> tuple[Tree, dict[str, Any]]:
        """Inputs and context of a call with one row for each example, padded on the right to the longest.

        The tensors are new ones: a step that works in place does not change what the caller gave.
        """
        rows, contexts = [example.inputs for example in examples], [example.context for example in examples]
        if len(examples) == 1:  # of several, what is joined is new
            rows[0], contexts[0] = map_tensors(Tensor.clone, (rows[0], dict(contexts[0])))
        of_inputs: Lengths
        if self.padding is None:
            of_inputs = with_lengths(None)
        else:
            plain = isinstance(rows[0], Tensor)  # nearly always
            of_inputs = self.padding.of_inputs if plain else self.padding.lengths_of_inputs(rows[0])
        sizes, length = [1] * len(examples), max([example.length for example in examples])
        inputs = join_rows(rows, sizes, lengths=of_inputs, length=length, path="inputs")
        return inputs, join_context(contexts, sizes, None, self.padding, length)

    def _measure(self, inputs: Tree, context: dict[str, Any], padding: Padding) -> int:
        """The length of a row, whose context is given a mask where it has none."""
        dims = padding.inputs.dims
        device: torch.device | None
        if isinstance(inputs, Tensor) and dims and inputs.dim() > max(dims[0], 1):  # nearly always
            length, device = inputs.shape[dims[0]], inputs.device
        else:
            length, device = length_of(inputs, padding)
            _check_lengths("inputs", inputs, padding.lengths_of_inputs(inputs), length)
        for name, value in context.items():
            if name not in self._along:
                self._along[name] = padding.of_context(name)
            along = self._along[name]
            if along is None:
                continue
            if not isinstance(value, Tensor) or value.dim() != 2 or value.shape[1] != length:  # nearly never
                _check_lengths(f"context[{name!r}]", value, with_lengths(along), length)
        named = context if isinstance(inputs, Tensor) else named_in(inputs, context)
        if named.get(padding.mask) is not None:
            lengths = padding.lengths(named)
            if lengths is None:
                raise ArgumentError(
                    f"{'context' if named is context else 'inputs'}[{padding.mask!r}]",
                    expected="a mask with one number a position, by which rows of several lengths are joined",
                    got=getattr(named[padding.mask], "shape", type(named[padding.mask]).__name__),
                    remedy="Call the model itself for masks of pairs of positions, and for shared ones.",
                )
            return max(int(lengths), 1)
        if not length:
            raise ArgumentError(
                "example",
                expected="inputs with a length, since the model declares ponder.Padding",
                got="none with two dimensions or more in a batch, or nothing in it",
                remedy="Give sequences, or a model without padding.",
            )
        context[padding.mask] = torch.full((1, length), padding.real, device=device)
        return length

    def _signature(self, inputs: Tree, context: Mapping[str, Any], length: int) -> Hashable:
        parts: list[Hashable] = [length if self._one_length else 0, _kind(inputs, self.padding)]
        for name in sorted(context):
            if name not in self._along:
                self._along[name] = None if self.padding is None else self.padding.of_context(name)
            parts.append((name, _kind(context[name], self._along[name])))
        return tuple(parts)


def _check_lengths(place: str, tree: Tree, lengths: Lengths, length: int) -> None:
    """Refuse an example whose parts are of several lengths: joined, it would be cut, or padding count as real."""
    for path, tensor, along in lengths_in(tree, lengths, place):
        for dim in along.dims if length and along is not None else ():
            if -tensor.dim() <= dim < tensor.dim() and tensor.dim() > 1 and tensor.shape[dim] != length:
                raise ArgumentError(
                    path,
                    expected=f"one length in all parts of an example, as in the inputs ({length})",
                    got=f"{tensor.shape[dim]}",
                    remedy="Cut or pad them alike.",
                )


def length_of(inputs: Tree, padding: Padding) -> tuple[int, torch.device | None]:
    """The length of the inputs of a call, by the first tensor that has one, and where it is; 0 where none has."""
    dims = padding.inputs.dims
    for tensor in [inputs] if isinstance(inputs, Tensor) else [tensor for _, tensor in tensors(inputs)]:
        if dims and tensor.dim() > max(dims[0], 1):
            return tensor.shape[dims[0]], tensor.device
    return 0, None


def examples_in(dataset: Any) -> Iterator[Any]:
    """The examples of a data set that can be iterated, or indexed from 0 to its length.

    The batches of a `torch.utils.data.DataLoader` are taken apart into their rows.

    Raises:
        ArgumentTypeError: It is a batch, a table, or no data set.
    """
    indexed = isinstance(dataset, Sized) and hasattr(dataset, "__getitem__")
    if isinstance(dataset, Mapping) or not (isinstance(dataset, Iterable) or indexed):
        raise ArgumentTypeError(
            "dataset",
            expected="a sequence or iterable of examples",
            got=type(dataset).__name__,
            remedy="Pass one example a row; a batch, a dict of tensors, is for a call of the model.",
        )
    if hasattr(dataset, "columns") and hasattr(dataset, "iloc"):  # a loop over it gives the names of its columns
        raise ArgumentTypeError(
            "dataset",
            expected="a sequence or iterable of examples",
            got=f"{type(dataset).__name__}, a table",
            remedy="Pass its rows as tensors: torch.tensor(table.to_numpy(), dtype=torch.float32), say.",
        )
    if isinstance(dataset, DataLoader):
        if dataset.batch_sampler is None:  # it does not batch, but makes lists of tuples all the same
            return (_tuple_if_pair(example) for example in dataset)
        return (row for batch in dataset for row in _rows_of(batch))
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


def as_batch_of_one(value: Any) -> Tensor | None:
    """The label of one example, or its labels, as a batch of one; None where there are none."""
    if isinstance(value, bool | int | float):
        return torch.tensor([value])
    value = as_tensors(value)
    return value[None] if isinstance(value, Tensor) else None


def is_pair(example: Any) -> bool:
    """Whether something is a pair (inputs, context)."""
    return isinstance(example, tuple) and len(example) == 2 and isinstance(example[1], dict)


def join_context(
    contexts: Sequence[Mapping[str, Any]],
    sizes: Sequence[int],
    keep: Sequence[Tensor | None] | None,
    padding: Padding | None,
    length: int,
) -> dict[str, Any]:
    """`join_rows` for contexts, whose lengths are declared by name."""
    names = contexts[0].keys() if len(contexts) == 1 else {name: None for context in contexts for name in context}
    joined: dict[str, Any] = {}
    for name in names:
        lengths = with_lengths(None if padding is None else padding.of_context(name))
        values = [context.get(name) for context in contexts]
        joined[name] = join_rows(values, sizes, keep, lengths=lengths, length=length, path=f"context[{name!r}]")
    return joined


def join_labels(labels: Sequence[Tensor | None], per_token: bool, length: int | None) -> Tensor | None:
    """The labels of rows, as those of a batch; None where no row has any.

    Args:
        labels: Labels of each row, as a batch of one; None where it has none.
        per_token: Whether a row has a label at each of its positions: those at padding are then ignored.
        length: The length of the batch; that of the longest labels where None.
    """
    present = [label for label in labels if label is not None]
    if not present:
        return None
    if len(present) < len(labels):
        raise ArgumentError(
            "labels",
            expected="labels for every example, or for none",
            got=f"none for {len(labels) - len(present)} of {len(labels)} rows of a batch",
            remedy="Label all examples, or pass labels= to the call.",
        )
    if per_token:
        if any(label.dim() < 2 for label in present):
            raise ArgumentError(
                "labels",
                expected="one for each position of a row, where each token has its answer",
                got="a single number",
                remedy=f"Label tokens: {IGNORED_LABEL} where a token has no label.",
            )
        length = length or max([label.shape[1] for label in present])
        along = with_lengths(Along((1,), fill=IGNORED_LABEL))
        joined: Tensor = join_rows(present, [1] * len(present), lengths=along, length=length, path="labels")
        return joined
    if len({label.shape[1:] for label in present}) > 1:
        raise ArgumentError(
            "labels",
            expected="labels of one shape",
            got=[tuple(label.shape[1:]) for label in present],
            remedy="Where there is one at each position, name the task: task='token_classification'.",
        )
    return torch.cat(present)


def placed(inputs: Tree, context: Mapping[str, Any], device: torch.device | None) -> tuple[Tree, dict[str, Any]]:
    """A call's tensors on the device, and made in inference mode: compiled steps are compiled again for others."""

    def place(tensor: Tensor) -> Tensor:
        if device is not None and tensor.device != device:
            tensor = tensor.to(device, non_blocking=True)
        return tensor if tensor.is_inference() else tensor.clone()

    moved = {}
    for name, value in context.items():
        moved[name] = place(value) if isinstance(value, Tensor) else map_tensors(place, value)
    return place(inputs) if isinstance(inputs, Tensor) else map_tensors(place, inputs), moved


def _rows_of(batch: Any) -> Iterator[Any]:
    """The rows of a batch of a `DataLoader`, each as the examples of its data set were."""
    batch = as_tensors(_tuple_if_pair(batch))
    size = check_rows("a batch of the DataLoader", batch)
    for row in range(size):
        yield _row_of(batch, row, size)


def _row_of(batch: Any, row: int, size: int) -> Any:
    """A row of what `as_tensors` gave: of tensors, and of texts, of which PyTorch's collator makes a list."""
    if isinstance(batch, Tensor):
        return batch[row]
    if isinstance(batch, dict):
        return {name: _row_of(value, row, size) for name, value in batch.items()}
    if not isinstance(batch, list | tuple):
        return batch
    of_texts = all(isinstance(value, str | bytes) for value in batch)
    of_rows = all(isinstance(value, list) and value and isinstance(value[0], str | bytes) for value in batch)
    if len(batch) == size and (of_texts or of_rows):  # of words in each example PyTorch's own makes tuples
        return batch[row]
    parts = [_row_of(value, row, size) for value in batch]
    return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)


def _tuple_if_pair(value: Any) -> Any:
    """A pair (inputs, context) that PyTorch's collator has made a list; everything else as it is."""
    return tuple(value) if isinstance(value, list) and is_pair(tuple(value)) else value


def _batch_of_one(value: Any) -> Any:
    """What stands in an example, read as `as_tensors` does, with a batch dimension."""
    return value[None] if isinstance(value, Tensor) else map_tensors(lambda tensor: tensor[None], as_tensors(value))


def _kind(tree: Tree, along: Along | Padding | None) -> Hashable:
    """What two values must have in common to stand in one batch."""
    if isinstance(tree, Tensor):
        if isinstance(along, Padding):
            along = along.of_inputs(tree)
        if along is None:
            return (tree.dtype, tree.shape[1:])
        shape: list[int | None] = list(tree.shape[1:])
        for dim in along.dims:
            shape[dim - 1 if dim > 0 else dim] = None
        return (tree.dtype, *shape)
    if isinstance(tree, Shared):
        return ("shared", id(tree.value))
    if isinstance(tree, Mapping):
        masks = {key: along.of_context(key) for key in tree} if isinstance(along, Padding) else {}
        return tuple((key, _kind(value, masks.get(key) or along)) for key, value in tree.items())
    if isinstance(tree, list | tuple):
        return (type(tree), *(_kind(value, along) for value in tree))
    return tree if isinstance(tree, Hashable) else id(tree)


def _is_number(value: Any) -> bool:
    """Whether a value is a number, or nested lists of numbers."""
    if isinstance(value, list):
        return _NUMBERS.issuperset(map(type, value)) or all(_is_number(item) for item in value)
    return isinstance(value, bool | int | float)
