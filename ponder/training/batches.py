"""A batch of a training loader: inputs, labels and context of a call, whichever way the loader gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ponder._utils.trees import Tree, map_tensors
from ponder.errors import ArgumentError, ArgumentTypeError

__all__ = ["Batch", "read_batch"]

_LABELS = ("labels", "label")
_SPAN = ("start_positions", "end_positions")


@dataclass(frozen=True, eq=False)
class Batch:
    """What a model is called with.

    Args:
        inputs: The inputs.
        labels: The labels, batch first.
        context: The other arguments, by name.
    """

    inputs: Tree
    labels: Tensor
    context: dict[str, Any]

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return Batch(map_tensors(move, self.inputs), move(self.labels), map_tensors(move, self.context))


def read_batch(batch: Any, main_input: str | None = None, argument: str = "loader") -> Batch:
    """Read a batch.

    Args:
        batch: A pair (inputs, labels); a pair (inputs, dict), whose dict holds the labels under ``"labels"`` (those of
            spans under ``"start_positions"`` and ``"end_positions"``) and context; or one dict, with the inputs under
            `main_input`, or else as its first entry.
        main_input: The name of the inputs in a dict, where the model has one.
        argument: What the loader is called in messages.

    Raises:
        ArgumentError: There are no labels.
        ArgumentTypeError: It is none of these.

    Example:
        >>> read_batch({"pixels": torch.zeros(2, 4), "labels": torch.tensor([0, 1])}).inputs.shape
        torch.Size([2, 4])
    """
    pair = isinstance(batch, tuple | list) and len(batch) == 2
    if pair and isinstance(batch[1], Tensor):
        return Batch(batch[0], batch[1], {})
    if isinstance(batch, Mapping):
        given = {name: value for name, value in batch.items() if value is not None}
        name = next((key for key in (main_input, *given) if key in given and key not in _LABELS), None)
        if name is None:
            raise _refusal(batch, argument)
        inputs = given.pop(name)
    elif pair and isinstance(batch[1], Mapping):
        inputs, given = batch[0], dict(batch[1])
    else:
        raise _refusal(batch, argument)
    found = [given.pop(name) for name in _LABELS if name in given]
    if len(found) > 1:
        raise ArgumentError(
            argument,
            expected="batches with labels once",
            got="a dict with both 'labels' and 'label'",
            remedy="Keep the labels under 'labels', and call the other entry something else, or leave it out.",
        )
    if not found and all(
        isinstance(given.get(name), Tensor) for name in _SPAN
    ):  # of a span, as Transformers names them
        found = [torch.stack([given.pop(name).reshape(-1) for name in _SPAN], dim=1)]
    if not found or not isinstance(found[0], Tensor):
        raise _refusal(batch, argument)
    return Batch(inputs, found[0], given)


def _refusal(batch: Any, argument: str) -> ArgumentError | ArgumentTypeError:
    known = isinstance(batch, Tensor | Mapping | tuple | list)
    if isinstance(batch, Mapping):
        got = f"a dict with {', '.join(map(str, batch)) or 'nothing'}"
    elif isinstance(batch, tuple | list):
        got = f"a {type(batch).__name__} of {', '.join(type(part).__name__ for part in batch) or 'nothing'}"
    else:
        got = f"a {type(batch).__name__}" + (" alone" if known else "")
    return (ArgumentError if known else ArgumentTypeError)(
        argument,
        expected="batches with labels: pairs (inputs, labels), or dicts with the labels, a tensor, under 'labels'",
        got=got,
        remedy="Let the data set, or the collate function of the DataLoader, give the labels too.",
    )
