"""The reader of examples for `predict`, `record` and streams: from data sets to batches.

An example is a batch without its first dimension, in any form of `ponder.model.batch`: tensors,
arrays or lists of numbers. The model does not see its labels.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader

from ponder._utils.modes import HasModes
from ponder._utils.rows import check_rows
from ponder._utils.trees import Tree, first_tensor, map_tensors
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.model.batch import ArgumentNames, not_labels, read_batch
from ponder.model.padding import Along, Lengths, Padding, join_rows, last_position
from ponder.model.source import ModelSource
from ponder.model.steps import Context, ContextDict, Steps
from ponder.policies.base import ModelSpec
from ponder.running.source import Start, SteppedModel
from ponder.tasks import IGNORED_LABEL
from ponder.trajectory import Trajectory

__all__ = [
    "DataSet",
    "Example",
    "ExampleReader",
    "Labels",
    "SteppedModule",
    "UserExample",
    "examples_in",
    "join_labels",
]

UserExample: TypeAlias = Any
"""An example as the user gives it, in one of the forms of `ponder.model.batch`."""
Labels: TypeAlias = Any
"""The label of an example: a number, or an array or list of numbers."""


class Indexed(Protocol):
    """A data set that gives its examples by position, as those of PyTorch do."""

    def __len__(self) -> int:
        """Return the number of examples."""

    def __getitem__(self, position: int, /) -> UserExample:
        """Return one example."""


DataSet: TypeAlias = Iterable[UserExample] | Indexed
"""Examples, one a row; or a `DataLoader`, whose batches are taken apart."""


class SteppedModule(SteppedModel, HasModes, Protocol):
    """A stepped model in PyTorch, for data sets and streams; a `ponder.PonderWrapper` is one."""

    @property
    def padding(self) -> Padding | None:
        """The lengths of the model's tensors, with which rows of several lengths share a batch."""

    @property
    def argument_names(self) -> ArgumentNames:
        """The names of the inputs and of the context."""

    @property
    def spec(self) -> ModelSpec:
        """The facts of the model that policies look at."""

    @property
    def steps(self) -> Steps:
        """The steps, whose schedule says which weights each needs."""

    @property
    def training(self) -> bool:
        """Whether the model is in training mode."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the weights."""

    def start(
        self,
        inputs: Tree,
        needs: Container[str] = (),
        num_steps: int | None = None,
        /,
        *,
        row_ids: Tensor | None = None,
        policy_context: Mapping[str, Tensor] | None = None,
        **context: Any,
    ) -> Start[ModelSource]:
        """Return a batch before its first step; see `SteppedModel`."""

    def unroll(
        self,
        inputs: Tree,
        *,
        num_steps: int | None = None,
        keep_features: bool = False,
        **call: Any,
    ) -> Trajectory:
        """Run all steps for all rows and record them."""


@dataclass(eq=False)
class Example:
    """One row, read as a batch of one."""

    inputs: Tree
    context: ContextDict
    length: int = 0  # also where the model declares no padding
    signature: Hashable = None  # rows of equal signature may share a batch
    labels: Tensor | None = None  # `(1, …)`
    in_place_of: str | None = None  # see `Batch`


class ExampleReader:
    """Reader of examples for one model.

    Args:
        model: A `ponder.PonderWrapper`; rows of several lengths share a batch if it declares its
            padding.

    Example:
        >>> from ponder.inference.examples import ExampleReader
        >>> model = PonderWrapper([nn.Identity()], head=nn.Linear(4, 2), padding=ponder.Padding())
        >>> reader = ExampleReader(model)
        >>> rows = [reader.read(torch.tensor([5, 6, 7])), reader.read([8, 9])]
        >>> reader.batch(rows)[1]["attention_mask"]
        tensor([[1, 1, 1],
                [1, 1, 0]])
    """

    def __init__(self, model: SteppedModule) -> None:
        self.model = model
        self.names = model.argument_names
        self.padding = model.padding
        weight = next(model.parameters(), None)
        task = model.task
        self.device: torch.device | None = None
        if weight is not None:
            self.device = weight.device
        self.regroups = task is None or not task.per_position
        """Whether rows of several lengths may share a batch between steps."""
        self.spares = self.regroups and self.padding is not None and self.padding.optional
        """Whether every batch that is regrouped needs a spare row (see `Padding.optional`)."""

    def read(self, example: UserExample) -> Example:
        """Read one example."""
        row = read_batch(example, self.names)
        inputs = _batch_of_one(row.inputs)
        context = {name: _batch_of_one(value) for name, value in row.context.items()}
        length = 0
        if self.padding is not None:
            length = self._length(inputs, context)
        kinds = [(name, _kind(value, self.padding)) for name, value in context.items()]
        signature = (_kind(inputs, self.padding), *kinds)
        labels = None
        if row.labels is not None:
            labels = torch.as_tensor(row.labels)[None]
        return Example(inputs, context, length, signature, labels, row.in_place_of)

    def batch(
        self, examples: Sequence[Example], *, spare: bool = False
    ) -> tuple[Tree, ContextDict]:
        """Return inputs and context of a call, one row an example, padded on the right.

        Args:
            examples: The examples.
            spare: Add a row of length 1, beside which a mask hides something: the first once more,
                under a mask that shows its first position alone. So a module that looks for an end
                of text in each row finds one.
        """
        longest = max(example.length for example in examples)
        if spare:
            longest = max(longest, 2)

        def joined(trees: list[Tree], lengths: Lengths | None, path: str) -> Tree:
            if spare:
                trees = [*trees, join_rows(trees[:1], self._mask_alone, 1, path=path)]
            return join_rows(trees, lengths, longest, path=path)

        lengths_of_inputs: Lengths | None = None
        lengths_of_context: Lengths | None = None
        if self.padding is not None:
            lengths_of_inputs = self.padding.of_inputs
            lengths_of_context = self.padding.of_context
        inputs = joined([example.inputs for example in examples], lengths_of_inputs, "inputs")
        contexts = [example.context for example in examples]
        context = joined(contexts, lengths_of_context, "context")
        placed: tuple[Tree, ContextDict] = self.placed((inputs, context))
        return placed

    def refuse_masks(self, rows: Sequence[Example]) -> None:
        """Refuse rows that all have a mask in the place of labels, which would be ignored.

        A mask has 0 and 1 in the shape of the inputs, and its ones come before or after all zeros.
        Labels of tokens may be so in some rows of a data set, but not in all. If a label is one
        class, labels never have that shape, and the order does not matter.

        Args:
            rows: The rows of a data set, or one of a stream.

        Raises:
            ArgumentError: They have.
        """
        in_order = self.model.task is None or not self.model.task.one_class
        masks: list[Tensor] = []
        for row in rows:
            mask = _mask_in_labels(row, in_order)
            if mask is None:
                return
            masks.append(mask)
        # A mask of ones or of zeros alone hides nothing, so that its loss changes no answer.
        if any(bool(mask.any()) and not bool(mask.all()) for mask in masks):
            raise not_labels("0 and 1 for each position", str(rows[0].in_place_of))

    def _mask_alone(self, name: str, tensor: Tensor) -> Along | None:
        """Return the lengths of the mask of a row; other tensors keep their length."""
        assert self.padding is not None
        if name != self.padding.mask:
            return None
        return self.padding.of_context(name, tensor)

    def placed(self, tree: Tree) -> Tree:
        """Bring tensors to the device of the model."""
        if self.device is None:
            return tree
        return map_tensors(lambda tensor: tensor.to(self.device, non_blocking=True), tree)

    def _length(self, inputs: Tree, context: ContextDict) -> int:
        """Return the length of a row, whose context is given a mask if it has none."""
        assert self.padding is not None
        real = self.padding.positions(inputs, context)
        if real is not None:
            return max(int(last_position(real)), 1)
        tensor = first_tensor(inputs)
        dim = self.padding.inputs.dims[0]
        if tensor.dim() <= dim:
            raise ArgumentError(
                "example",
                expected="a sequence, since the model declares ponder.Padding",
                got=f"a row of shape {tuple(tensor.shape[1:])}",
                remedy="Give rows (length, …) without a batch dimension.",
            )
        length = tensor.shape[dim]
        sign = self.padding.real or False  # masks that mark padding are bool, as in PyTorch
        context[self.padding.mask] = torch.full((1, length), sign, device=tensor.device)
        return length


def _mask_in_labels(row: Example, in_order: bool) -> Tensor | None:
    """Return the labels of a row if they look like the mask of its inputs.

    Args:
        row: The row.
        in_order: Whether only those that are ones before or after all zeros look like one.
    """
    labels = row.labels
    if row.in_place_of is None or labels is None or labels.dim() < 2:
        return None
    if labels.shape != first_tensor(row.inputs).shape[: labels.dim()]:
        return None
    ones = labels == 1
    if not bool((ones | (labels == 0)).all()):
        return None
    changes = (ones[..., 1:] != ones[..., :-1]).sum(-1)
    if in_order and bool((changes > 1).any()):
        return None
    return ones


def examples_in(dataset: DataSet, context: Context | None = None) -> Iterator[UserExample]:
    """Return the examples of an iterable; batches, also those of a `DataLoader`, are taken apart.

    Args:
        dataset: The data set: an iterable of examples, a tensor with a row for each, or a batch
            ``(inputs, {"mask": mask})``.
        context: Context of all rows by name, beside a tensor.
    """
    if context:
        return _rows_of((_rows_with(dataset, context), dict(context)))
    if _is_batch(dataset):
        return _rows_of(dataset)
    if isinstance(dataset, Mapping) or hasattr(dataset, "iloc"):
        raise ArgumentError(
            "dataset",
            expected="a sequence or iterable of examples, one a row",
            got=f"a {type(dataset).__name__}",
            remedy="Call the model itself with a batch; give the rows of a table as tensors.",
        )
    check_rows("dataset", dataset)
    if isinstance(dataset, DataLoader) and dataset.batch_size is not None:
        return (row for batch in dataset for row in _rows_of(batch))
    if isinstance(dataset, Iterable):
        return iter(dataset)
    return (dataset[position] for position in range(len(dataset)))


def _is_batch(dataset: DataSet) -> bool:
    """Return whether a data set is one batch with its context, ``(inputs, {"mask": mask})``."""
    return isinstance(dataset, tuple) and len(dataset) > 1 and isinstance(dataset[-1], Mapping)


def _rows_with(dataset: DataSet, context: Context) -> Tensor:
    """Return a data set beside which context is given by name, if both have a row an example."""
    if not isinstance(dataset, Tensor):
        raise ArgumentTypeError(
            next(iter(context)),
            expected="context by name only if the data set is a tensor",
            got=f"a {type(dataset).__name__}",
            remedy="Give the context with each example: (inputs, {name: value}).",
        )
    for name, value in context.items():
        if not isinstance(value, Tensor) or value.shape[:1] != dataset.shape[:1]:
            got = type(value).__name__
            if isinstance(value, Tensor):
                got = f"a tensor of shape {tuple(value.shape)}"
            raise ArgumentTypeError(
                name,
                expected=f"an option, or context: a tensor with {len(dataset)} rows",
                got=got,
                remedy="Pass a row for each example, by a name that the model takes.",
            )
    return dataset


def join_labels(labels: Sequence[Tensor | None], per_token: bool, length: int) -> Tensor | None:
    """Return the labels of a batch from those of its rows, `(1, …)` each; None without labels."""
    present = [label for label in labels if label is not None]
    if not present:
        return None
    if len(present) < len(labels):
        raise ArgumentError(
            "labels",
            expected="labels of every example, or of none",
            got=f"none of {len(labels) - len(present)} of {len(labels)} rows",
            remedy="Label all examples, or pass labels= to the call.",
        )
    along = None
    if per_token:
        along = Along(fill=IGNORED_LABEL)
    joined: Tensor = join_rows(present, lambda *_: along, length)
    return joined


def _as_tensors(tree: Tree) -> Tree:
    """Return a tree with lists of numbers and arrays as tensors; texts and other values stay."""

    def read(leaf: object) -> object:
        if isinstance(leaf, list) or hasattr(leaf, "__array__"):
            return torch.as_tensor(leaf)
        return leaf

    return tree_map(read, tree, is_leaf=lambda part: isinstance(part, list))


def _batch_of_one(value: Tree) -> Tree:
    """Return a value of one row with a batch dimension."""
    if isinstance(value, list):  # as tokenizers give them: no tree
        value = torch.as_tensor(value)
    if isinstance(value, Tensor):
        return value[None]
    return map_tensors(lambda tensor: tensor[None], _as_tensors(value))


def _rows_of(batch: Tree) -> Iterator[UserExample]:
    """Yield the rows of a batch of a `DataLoader`, each in the form of the batch."""
    if isinstance(batch, list):
        batch = tuple(batch)
    batch = _as_tensors(batch)
    for row in range(first_tensor(batch).shape[0]):
        yield map_tensors(itemgetter(row), batch)


def _kind(tree: Tree, padding: Padding | None) -> Hashable:
    """Return the structure, types and shapes that values of one batch share, but for lengths."""
    if isinstance(tree, Tensor):
        sizes = tree.shape[1:]
        if padding is not None and tree.dim() > 1:
            sizes = tree.shape[2:]  # rows of several lengths may share a batch
        return (tree.dtype, tree.dim(), *sizes)
    if isinstance(tree, Mapping):
        return tuple((key, _kind(value, padding)) for key, value in tree.items())
    if isinstance(tree, list | tuple):
        return tuple(_kind(value, padding) for value in tree)
    return tree if isinstance(tree, Hashable) else id(tree)
