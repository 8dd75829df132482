"""Whether data are fresh: a policy must not be judged on the rows that chose it."""

from __future__ import annotations

import torch

from ponder._utils.numerics import at_least_float32
from ponder.errors import ArgumentError
from ponder.parts.recording import Recording

__all__ = ["check_fresh", "check_once"]


def check_once(trajectory: Recording, argument: str = "trajectory") -> None:
    """Refuse a calibration set in which a row is twice, with its id and all that was recorded: it would count twice.

    Raises:
        ArgumentError: Rows are there more than once.
    """
    ids = trajectory.row_ids
    by_record = trajectory.outputs[:, -1].reshape(len(ids), -1)[:, 0].argsort()  # equal records side by side
    order = by_record[ids[by_record].argsort(stable=True)]
    pairs = (ids[order[1:]] == ids[order[:-1]]).nonzero().flatten()
    twice = _same_record(trajectory, order[pairs], trajectory, order[pairs + 1])
    if bool(twice.any()):
        raise ArgumentError(
            argument,
            expected="each row once: the bounds are about rows that are independent",
            got=f"{int(twice.sum())} of {len(ids)} rows a second time, with the same id and the same record",
            remedy="Record each row once, and join different rows: model.record(others, first_row=len(trajectory)).",
        )


def check_fresh(test: Recording, calibration: Recording, argument: str = "test") -> None:
    """Refuse a test set that holds rows of the calibration set.

    Ids alone prove nothing, since by default they are positions, which start anew in every call; nor does the record,
    since texts repeat. A row is the same where its id is, and all that was recorded of it: outputs and hazards.

    Args:
        test: The rows that are to be fresh.
        calibration: The rows on which something was chosen.
        argument: What the test set is called in the message.

    Raises:
        ArgumentError: Rows of one are in the other.

    Example:
        >>> check_fresh(trajectory, trajectory)
        Traceback (most recent call last):
            ...
        ponder.errors.ArgumentError: test: expected rows that the calibration has not seen; got 300 rows with ...
    """
    seen, known = test.outputs, calibration.outputs
    if test.meaning.per_position and seen.dim() == known.dim() == 4:
        length = min(seen.shape[2], known.shape[2])  # each is as wide as its own longest row
        seen, known = seen[:, :, :length], known[:, :, :length]
    if seen.shape[1:] != known.shape[1:]:
        return
    ids, places = calibration.row_ids.sort()
    if not len(ids) or not len(test):
        return
    first, end = (torch.searchsorted(ids, test.row_ids, right=right) for right in (False, True))
    same = torch.zeros_like(first, dtype=torch.bool)
    one, other = (each[:, -1].reshape(len(each), -1)[:, 0] for each in (seen, known))  # tells most rows apart
    for twin in range(int((end - first).max())):
        rows = (~same & (first + twin < end)).nonzero().flatten()
        twins = places[first[rows] + twin]
        alike = _equal_rows(one[rows, None], other[twins, None])
        rows, twins = rows[alike], twins[alike]
        same[rows] = _same_record(test, rows, calibration, twins)
    if bool(same.any()):
        shown = test.row_ids[same][:5].tolist()
        raise ArgumentError(
            argument,
            expected="rows that the calibration has not seen",
            got=f"{int(same.sum())} rows with the same id and the same record, for example ids {shown}",
            remedy="Split the data first, and calibrate on one part only. Other rows that happen to give the same are "
            "recorded with ids of their own: model.record(others, first_row=len(calibration)), or to_trajectory of an "
            "export's record with such a first_row.",
        )


def _same_record(one: Recording, rows: torch.Tensor, other: Recording, twins: torch.Tensor) -> torch.Tensor:
    """Whether what was recorded of rows is what was recorded of others, `(rows,)` bool."""
    seen, known = one.outputs, other.outputs
    if one.meaning.per_position and seen.dim() == known.dim() == 4:
        length = min(seen.shape[2], known.shape[2])  # each is as wide as its own longest row
        seen, known = seen[:, :, :length], known[:, :, :length]
    equal = _equal_rows(seen[rows], known[twins])
    if one.mask is not None and other.mask is not None:
        equal &= one.mask[rows].sum(1) == other.mask[twins].sum(1)
    if one.hazard_logits is not None and other.hazard_logits is not None:
        equal &= _equal_rows(one.hazard_logits[rows], other.hazard_logits[twins])
    return equal


def _equal_rows(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (
        torch.isclose(at_least_float32(a), at_least_float32(b), rtol=1e-4, atol=1e-5, equal_nan=True).flatten(1).all(1)
    )
