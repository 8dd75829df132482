"""The answers to batches in the order of the examples, those of shorter rows filled up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ponder.errors import PonderError
from ponder.export.examples import Batch
from ponder.export.manifest import Manifest

__all__ = ["masks_in_order", "outputs_in_order"]

Array = NDArray[Any]


def outputs_in_order(found: Sequence[Array], batches: Sequence[Batch], manifest: Manifest) -> Array:
    """The outputs of all rows, `(rows, …)`, with the task's `blank` beyond the end of each, where they have positions.

    Args:
        found: Outputs of each batch, `(rows, …)`.
        batches: The batches, of at least one row together.
        manifest: What outputs are.

    Raises:
        PonderError: Outputs of several shapes, of a task that says nothing of positions.
    """
    rows = sum(map(len, found))
    if not manifest.per_position:
        shapes = sorted({part.shape[1:] for part in found})
        if len(shapes) > 1:
            raise PonderError(
                f"outputs of the task {manifest.task!r} have several shapes: {shapes}. Where a model answers at each "
                "position, name its task, task='token_classification', and export it again."
            )
        outputs: Array = np.empty((rows, *found[0].shape[1:]), dtype=found[0].dtype)
        for part, batch in zip(found, batches, strict=True):
            outputs[batch.positions] = part
        return outputs
    longest = max(part.shape[1] for part in found)
    outputs = np.full((rows, longest, *found[0].shape[2:]), manifest.blank, dtype=found[0].dtype)
    for part, batch in zip(found, batches, strict=True):
        lengths = np.full(len(part), part.shape[1]) if batch.lengths is None else batch.lengths
        for row, own, length in zip(batch.positions, part, lengths, strict=True):
            outputs[row, :length] = own[:length]
    return outputs


def masks_in_order(batches: Sequence[Batch], manifest: Manifest) -> Array | None:
    """Which positions of all rows are no padding, `(rows, longest)` bool; None where outputs have no positions."""
    masks = [batch.mask for batch in batches if batch.mask is not None]
    if not manifest.per_position or not masks:
        return None
    known = np.zeros((sum(map(len, masks)), max(mask.shape[1] for mask in masks)), dtype=bool)
    for batch, mask in zip(batches, masks, strict=True):
        known[batch.positions, : mask.shape[1]] = mask
    return known
