"""One pass over a data set: it is read, put in the order of its lengths, cut into batches, and each is run.

`ponder.predict` and `PonderWrapper.record` are passes that differ in what they do with a batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set, Sized
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from ponder._utils.modes import evaluating
from ponder._utils.progress import progress_bar
from ponder._utils.trees import Tree, check_given
from ponder._utils.validation import check_type
from ponder.errors import ArgumentError, ArgumentTypeError, PonderError
from ponder.inference.batching import BatchLimits, batches, by_length
from ponder.inference.examples import (
    Example,
    ExampleReader,
    as_batch_of_one,
    examples_in,
    is_pair,
    length_of,
    placed,
)
from ponder.parts.padding import Padding, named_in

__all__ = [
    "Collate",
    "DatasetPass",
    "blank_padding",
    "check_order",
    "check_row_count",
    "check_sizes",
    "row_context",
    "rows_at",
]

Collate = Callable[[list[Any]], Any]
_End = object()
_Result = TypeVar("_Result")


@dataclass
class DatasetPass:
    """How a data set goes through a model.

    Args:
        owner: The module whose modes are switched, and whose device is used.
        padding: Where the model's lengths lie, or None.
        limits: How large a batch may be.
        label: What the progress bar is called.
        progress: Whether it is shown.
        collate: The caller's collator, or None.
        sort_by_length: Whether rows of similar length stand together.
        dtype: The precision of `torch.autocast`, or None.
        sizes: How many rows the caller gave of what goes with the data set, by the name of the argument.
    """

    owner: nn.Module
    padding: Padding | None
    limits: BatchLimits
    label: str
    progress: bool = False
    collate: Collate | None = None
    sort_by_length: bool = True
    dtype: torch.dtype | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)

    def run(
        self, dataset: Any, call: Callable[[Tree, dict[str, Any], Sequence[Example]], _Result]
    ) -> tuple[list[_Result], Tensor]:
        """Run every batch in evaluation mode, without gradients.

        Args:
            dataset: The data set.
            call: What is done with a batch: with its inputs, its context (with labels, where its own collator gave
                some), and its examples.

        Returns:
            What `call` gave for the batches, and where the rows of their concatenation stand in the order of the data.
        """
        if self.collate is not None and isinstance(dataset, DataLoader):
            raise ArgumentError(
                "collate",
                expected="None with a DataLoader, which makes batches by itself",
                got="both",
                remedy="Pass the loader's data set, or its collator to the loader.",
            )
        if isinstance(dataset, DataLoader):
            check_order(dataset, self.sizes)
        self._reader = ExampleReader(self.padding)
        self._device = next((parameter.device for parameter in self.owner.parameters()), None)
        examples: Iterable[Example] = self._read(examples_in(dataset))
        if self.sort_by_length:
            examples = by_length(examples)
            check_sizes(self.sizes, len(examples))
        counted = examples if self.sort_by_length else dataset
        total = len(counted) if isinstance(counted, Sized) and not isinstance(counted, DataLoader) else None
        kind = "cpu" if self._device is None else self._device.type
        if self.dtype is not None:
            check_type("dtype", self.dtype, torch.dtype, remedy="Pass dtype=torch.bfloat16, say.")
        precision = nullcontext() if self.dtype is None else torch.autocast(kind, dtype=self.dtype)
        bar = progress_bar(self.label, total) if self.progress else nullcontext(_unseen)
        results: list[_Result] = []
        positions: list[int] = []
        # Not in inference mode: what a module makes on its first call, and keeps, must serve training too.
        with evaluating(self.owner), torch.no_grad(), precision, bar as advance:
            for batch in batches(examples, self.limits):
                results.append(self._run(batch, call))
                positions += [example.position for example in batch]
                advance(len(batch))
        check_sizes(self.sizes, len(positions))
        return results, torch.argsort(torch.tensor(positions, dtype=torch.long))

    def _read(self, examples: Iterator[Any]) -> Iterator[Example]:
        """The rows of a data set, one after the other; one that cannot be read is refused by its position."""
        position = 0
        while True:
            try:
                example = next(examples, _End)
                if example is _End:
                    return
                row = self._reader.read(example, position) if self.collate is None else self._raw(example, position)
            except Exception as error:
                _refuse(position, None, error)
            yield row
            position += 1

    def _raw(self, example: Any, position: int) -> Example:
        """An example that the caller's collator will read; for its length, it is collated alone first."""
        length = 0
        if self.padding is not None and (self.sort_by_length or self.limits.tokens is not None):
            inputs, context = self._collated([example])
            lengths = self.padding.lengths(named_in(inputs, context))
            length = int(lengths.max()) if lengths is not None else length_of(inputs, self.padding)[0]
        return Example(example, {}, length, position=position)

    def _collated(self, examples: list[Any]) -> tuple[Tree, dict[str, Any]]:
        assert self.collate is not None
        batch = self.collate(examples)
        inputs, context = batch if is_pair(batch) else (batch, {})
        return inputs, dict(context)

    def _run(
        self, examples: Sequence[Example], call: Callable[[Tree, dict[str, Any], Sequence[Example]], _Result]
    ) -> _Result:
        """A batch; an error is told with the row that raises it alone, too."""
        try:
            return self._call(examples, call)
        except Exception as error:
            if len(examples) == 1:
                _refuse(examples[0].position, examples[0], error)
            for example in examples:
                try:
                    self._call([example], call)
                except Exception as own:
                    _refuse(example.position, example, own)
            positions = [example.position for example in examples]
            told = f"in a batch of the rows {positions} of the data set, none of which fails alone"
            if isinstance(error, StopIteration):  # in a generator of the caller's it would end that, without a word
                raise PonderError(f"collate raised StopIteration {told}.") from error
            error.add_note(told)
            raise

    def _call(
        self, examples: Sequence[Example], call: Callable[[Tree, dict[str, Any], Sequence[Example]], _Result]
    ) -> _Result:
        if self.collate is None:
            inputs, context = self._reader.batch(examples)
        else:
            inputs, context = self._collated([example.inputs for example in examples])
        inputs, context = placed(inputs, context, self._device)
        return call(inputs, context, examples)


def check_sizes(sizes: Mapping[str, int], rows: int) -> None:
    """Refuse arguments, by name with their number of rows, that have another number than there were examples."""
    for argument, size in sizes.items():
        if size != rows:
            raise ArgumentError(
                argument,
                expected=f"a row for each of the {rows} examples",
                got=f"{size} rows",
                remedy="Give one row an example, in the order of the data set.",
            )


def check_row_count(argument: str, tree: Mapping[str, Any] | None) -> dict[str, int]:
    """`DatasetPass.sizes` of a dict of tensors with a row for each example; empty where there is none."""
    if tree is None or (isinstance(tree, Mapping) and not tree):
        return {}
    return {argument: check_given(argument, tree)}


def row_context(tree: Mapping[str, Tensor] | None, examples: Sequence[Example], device: torch.device | None) -> Any:
    """The rows of `tree` that belong to the examples of a batch; None where there is none."""
    if tree is None:
        return None
    index = torch.tensor([example.position for example in examples])
    rows = {}
    for name, value in tree.items():
        if int(index.max()) >= len(value):
            raise ArgumentError(
                f"policy_context[{name!r}]",
                expected="a row for each example",
                got=f"{len(value)} rows",
                remedy="Give one row an example, in the order of the data set.",
            )
        rows[name] = value[index.to(value.device)].to(device)
    return rows


def by_position(argument: str, values: Any) -> Any:
    """Values that are read by position: a column of pandas, whose index may say otherwise, is taken as its array.

    Raises:
        ArgumentTypeError: They are in no order, or cannot be iterated at all.
    """
    indexed = isinstance(values, Sized) and hasattr(values, "__getitem__")
    if isinstance(values, Mapping | Set | str | bytes) or not (isinstance(values, Iterable) or indexed):
        raise ArgumentTypeError(
            argument,
            expected="a sequence with a value for each example",
            got=type(values).__name__,
            remedy="Give one value an example, in the order of the data set.",
        )
    if hasattr(values, "iloc"):
        return cast("Any", values).to_numpy()
    return values if indexed else list(values)


def rows_at(labels: Any, examples: Sequence[Example]) -> list[Tensor | None]:
    """The labels of a batch's examples out of those of the whole data set, each as a batch of one."""
    return [label_of(labels[example.position]) if example.position < len(labels) else None for example in examples]


def label_of(value: Any) -> Tensor | None:
    """A label, or the labels of a row, as a batch of one; None stays.

    Raises:
        ArgumentError: It is no number, so that nothing could be compared with it.
    """
    try:
        label = as_batch_of_one(value)
    except (TypeError, ValueError):  # an array of text, or of rows of other lengths
        label = None
    if label is None and value is not None:
        raise no_label(type(value).__name__)
    return label


def no_label(kind: str) -> ArgumentError:
    """The error for something of this kind in the place of a label."""
    return ArgumentError(
        "labels",
        expected="a number, or tensors or lists of numbers",
        got=f"a {kind}",
        remedy="Map names of classes to 0, 1, …, or leave labels out.",
    )


def blank_padding(outputs: Tensor, real: Tensor | None, dim: int = 1, blank: float = 0.0) -> Tensor:
    """`outputs` with `blank` beyond the end of every row, where a mask tells where that is.

    Args:
        outputs: Batch first, with positions in the dimension `dim`.
        real: Which positions are no padding, `(batch, length)` bool; one of another length is of other positions, and
            tells nothing.
        dim: The dimension.
        blank: What is to stand at padding.
    """
    if real is None or outputs.dim() <= dim or real.shape[1] != outputs.shape[dim]:
        return outputs
    beyond = real.flip(1).long().cumsum(1).flip(1) == 0  # no real position from there on
    beyond = beyond.to(outputs.device).view(len(beyond), *[1] * (dim - 1), outputs.shape[dim])
    return outputs.masked_fill(beyond.view(*beyond.shape, *[1] * (outputs.dim() - dim - 1)), blank)


def _unseen(count: int) -> None:
    """Stand in for a progress bar that is not shown."""


def _refuse(position: int, example: Example | None, error: Exception) -> NoReturn:
    """Say which example is bad, and why."""
    told = str(error) if isinstance(error, ArgumentError) else f"{type(error).__name__}: {error}"
    remedy = "Repair this example, or leave it out."
    if example is not None and isinstance(example.inputs, tuple | list):
        remedy += (
            f" It was read as inputs of {len(example.inputs)} parts; where one of them is a label, "
            "pass (inputs, {'labels': label})."
        )
    raise ArgumentError(
        f"dataset[{position}]",
        expected="an example that the model can read and run",
        got=told.rstrip("."),
        remedy=remedy,
    ) from error


def check_order(dataset: DataLoader[Any], sizes: Mapping[str, int]) -> None:
    """Refuse what goes with the data by position where a loader gives them in an order of its own; else warn of it."""
    if isinstance(dataset.dataset, IterableDataset):
        return
    sampler: Any = dataset.sampler if dataset.batch_sampler is None else dataset.batch_sampler
    while type(sampler) is BatchSampler or hasattr(sampler, "batch_sampler"):  # of accelerate, around another
        sampler = sampler.sampler if type(sampler) is BatchSampler else sampler.batch_sampler
    if isinstance(sampler, SequentialSampler) or (isinstance(sampler, range) and sampler == range(len(sampler))):
        return
    if sizes:
        raise ArgumentError(
            "dataset",
            expected=f"a loader in the order of its data set, since {' and '.join(sizes)} are given by position",
            got=f"one that draws its order ({type(sampler).__name__})",
            remedy="Pass the loader's data set, or a loader with shuffle=False.",
        )
    warnings.warn(
        "The loader draws the order of its data: rows are told in that order, which nobody knows afterwards. Pass the "
        "loader's data set, or a loader with shuffle=False.",
        stacklevel=2,
    )
