"""The rows on which a policy was fitted: it must not be judged on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from ponder._utils.numerics import at_least_float32
from ponder.errors import ArgumentError
from ponder.parts.recording import Recording
from ponder.policies.base import ExitPolicy

__all__ = ["check_unfitted", "some_rows"]

_KEPT = 64
_BY_CHANCE = 4  # of 64 rows, so many may have the id and, to four digits, the number of another set's


def some_rows(trajectory: Recording) -> tuple[tuple[int, float], ...]:
    """At most 64 rows, evenly spread, each as its id and the first number of its record: so many tell it again."""
    places = torch.arange(0, len(trajectory), max(1, -(-len(trajectory) // _KEPT)))
    first = _first_numbers(trajectory)[places]
    return tuple(zip(trajectory.row_ids[places].tolist(), first.tolist(), strict=True))


def check_unfitted(trajectory: Recording, policies: Iterable[ExitPolicy], argument: str = "trajectory") -> None:
    """Refuse rows on which a policy, or one within it, was fitted: there it is right more often than on others.

    A fitted policy keeps some of its rows as `fitted_on`, so that the set, or a good part of it, is known again.

    Args:
        trajectory: The rows by which a threshold is to be chosen, or a policy judged.
        policies: The policies.
        argument: What the rows are called in the message.

    Raises:
        ArgumentError: Rows of the two are the same: five of those that are kept, or all.

    Example:
        >>> check_unfitted(trajectory, [ponder.calibration.fit_gate(trajectory, "error")])
        Traceback (most recent call last):
            ...
        ponder.errors.ArgumentError: trajectory: expected rows on which the policy was not fitted: ...
    """
    numbers = _first_numbers(trajectory).cpu()
    for kept in {kept for policy in policies for kept in _fitted_on(policy) if kept}:
        ids, fitted = torch.tensor([key for key, _ in kept]), torch.tensor([number for _, number in kept])
        rows = torch.isin(trajectory.row_ids.cpu(), ids).nonzero().flatten()
        same = trajectory.row_ids.cpu()[rows, None] == ids
        same &= torch.isclose(numbers[rows, None], fitted, rtol=1e-4, atol=1e-5)
        many = int(same.any(0).sum())
        if many > min(_BY_CHANCE, len(kept) - 1):
            raise ArgumentError(
                argument,
                expected="rows on which the policy was not fitted: it is right there more often than on others",
                got=f"{many} of the {len(kept)} of its rows that it keeps",
                remedy="Fit on one part of the rows, and choose, measure and certify on another, recorded with ids of "
                "its own: model.record(others, first_row=len(fitted)).",
            )


def _fitted_on(policy: ExitPolicy) -> Iterator[tuple[tuple[int, float], ...]]:
    """What a policy and those within it were fitted on."""
    yield getattr(policy, "fitted_on", ())
    for part in policy.parts():
        yield from _fitted_on(part)


def _first_numbers(trajectory: Recording) -> torch.Tensor:
    """The first number of the last step's output, `(batch,)` float32; NaN as 0, which JSON has."""
    first = trajectory.outputs[:, -1].reshape(len(trajectory), -1)[:, 0]
    return torch.nan_to_num(at_least_float32(first).float())
