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
        length = part.shape[1]
        if batch.lengths is not None:
            beyond = np.arange(length) >= batch.lengths[:, None]
            part = np.where(
                beyond.reshape(*beyond.shape, *[1] * (part.ndim - 2)), outputs.dtype.type(manifest.blank), part
            )
        outputs[batch.positions, :length] = part
    return outputs


def masks_in_order(found: Sequence[Array], batches: Sequence[Batch], manifest: Manifest) -> Array | None:
    """Which positions of all rows are no padding, `(rows, longest)` bool.

    None where outputs have no positions, or where all rows are of one length and nothing tells of padding.

    Args:
        found: As for `outputs_in_order`.
        batches: As for `outputs_in_order`.
        manifest: What outputs are.
    """
    lengths = {part.shape[1] for part in found} if manifest.per_position else set()
    if not lengths or (len(lengths) == 1 and all(batch.mask is None for batch in batches)):
        return None
    known = np.zeros((sum(map(len, found)), max(lengths)), dtype=bool)
    for part, batch in zip(found, batches, strict=True):
        known[batch.positions, : part.shape[1]] = True if batch.mask is None else batch.mask
    return known
