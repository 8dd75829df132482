"""Whether data are fresh, and of one model: what chose a policy must not judge it, nor may a run of another model."""

from __future__ import annotations

import torch
from torch import Tensor

from ponder.errors import ArgumentError
from ponder.parts.recording import Recording, coarse_rounding, equal_rows, numbers_of_step, same_record, too_alike

__all__ = ["check_fresh", "check_same_weights", "other_model"]


def check_same_weights(run: Recording, other: Recording, argument: str = "test") -> None:
    """Refuse runs of two models: what is chosen on one of them says nothing of the other.

    Args:
        run: A run; one without a digest of its weights, of which nobody knows the model, is taken as it is.
        other: The run with which it goes.
        argument: What the first is called in the message.

    Raises:
        ArgumentError: The weights were others.

    Example:
        >>> from dataclasses import replace
        >>> check_same_weights(replace(trajectory, weights="a"), replace(trajectory, weights="b"))
        Traceback (most recent call last):
            ...
        ponder.errors.ArgumentError: test: expected a run of the same model, weights 'b'; got weights 'a'. Record ...
    """
    if run.weights != other.weights and None not in (run.weights, other.weights):
        also = " Or judge weights of another precision knowingly: dataclasses.replace(test, weights=None)."
        raise other_model(argument, "weights", run.weights, other.weights, also if argument == "test" else "")


def other_model(argument: str, what: str, got: object, expected: object, also: str = "") -> ArgumentError:
    """The error of a run that is of another model than the one with which it goes.

    Args:
        argument: What the run is called.
        what: In what the models differ.
        got: That of the run.
        expected: That of the other.
        also: What else can be done about it.
    """
    return ArgumentError(
        argument,
        expected=f"a run of the same model, {what} {expected!r}",
        got=f"{what} {got!r}",
        remedy=f"Record both with one model: model.record(rows).{also}",
    )


def check_fresh(test: Recording, calibration: Recording, argument: str = "test") -> None:
    """Refuse a test set that holds rows of the calibration set.

    Ids alone prove nothing, since by default they are positions, which start anew in every call; nor does the record,
    since texts repeat. A row is the same where its id is, and all that was recorded of it: outputs and hazards, padding
    aside, at the steps that both runs have. In half precision, where a run that is repeated gives other numbers, rows
    are the same where nearly all nearly are.

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
    free = 3 if test.meaning.per_position and seen.dim() == known.dim() == 4 else 2  # rows, steps and positions
    if seen.shape[free:] != known.shape[free:]:
        return
    ids = calibration.row_ids
    if not len(ids) or not len(test):
        return
    shared = torch.isin(test.row_ids, ids)
    same = _same(test, calibration, 0.0)
    if rounding := coarse_rounding(seen, known):  # other rows are alike by chance there: as many as rows of other ids
        others = _same(test, calibration, 0.0, shift=1)
        if int(same.sum()) <= 2 * int(others.sum()) + 3:
            same = _same(test, calibration, rounding)
            others = _same(test, calibration, rounding, shift=1)
            if not too_alike(int(same.sum()), int(others.sum()), int(shared.sum())):
                return
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


def _same(test: Recording, calibration: Recording, rounding: float, shift: int = 0) -> Tensor:
    """Which rows of the test are rows of the calibration with their id, or one of a shifted id, `(rows,)` bool."""
    ids, places = calibration.row_ids.sort()
    places = places.roll(shift)
    first, end = (torch.searchsorted(ids, test.row_ids, right=right) for right in (False, True))
    same = torch.zeros_like(first, dtype=torch.bool)
    last = min(test.num_steps, calibration.num_steps)
    one, other = (numbers_of_step(each, last)[:, 0] for each in (test, calibration))  # tells most rows apart
    for twin in range(int((end - first).max())):
        rows = (~same & (first + twin < end)).nonzero().flatten()
        twins = places[first[rows] + twin]
        if not rounding:
            alike = equal_rows(one[rows, None], other[twins, None])
            rows, twins = rows[alike], twins[alike]
        same[rows] = same_record(test, rows, calibration, twins, rounding)
    return same
