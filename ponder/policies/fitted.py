"""The rows on which a policy was fitted: it must not be judged on them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ponder.errors import ArgumentError
from ponder.parts.recording import Recording, coarse_rounding, too_alike
from ponder.parts.tasks.base import fits_positions
from ponder.policies.base import ExitPolicy, all_within

__all__ = ["check_unfitted", "some_rows"]

_KEPT = 200
_DIGITS = 7  # of a sum, which is known again by six
_ALL = -1  # the id under which all rows are kept as one, where none can be told from the others
_FEW = 8  # of more rows, one may have the id and the sum of another by chance
_ROUNDING = 1e-6  # by which the sum of a row may differ where it is recorded again, relative to its numbers
_APART = 10.0 * _ROUNDING  # by how much it has to differ from those of all other rows


def some_rows(trajectory: Recording) -> tuple[tuple[float, ...], ...]:
    """At most 200 rows, each as its id and a weighted sum of its record, by which to know it again.

    Which they are is drawn by the digits of the sums, since of rows at regular places every second row may have none.
    In half precision there is a third number: by how much the sum may differ where the row is recorded again. Rows of
    which another has nearly the same sum tell nothing, and are not among them. Where that is so of every row, all are
    kept as one, by their ids and sums.
    """
    sums, sizes = (of_steps[:, -1] for of_steps in _sums(trajectory, steps=[0, -1]))
    ordered, order = sums.sort()
    gaps = torch.full((len(sums) + 1,), torch.inf, dtype=sums.dtype)
    gaps[1:-1] = ordered.diff()
    alone = torch.minimum(gaps[:-1], gaps[1:]) > _APART * sizes[order]
    places = order[alone].sort().values
    if not len(places):
        return ((_ALL, float(_by_id(trajectory) @ sums)),)
    drawn = (sums[places].frexp().mantissa.abs() * 2.0**20).frac().argsort()  # digits that are as good as random
    places = places[drawn[:_KEPT]].sort().values
    rounding = coarse_rounding(trajectory.outputs)
    known = [float(f"{each:.{_DIGITS}g}") for each in sums[places].tolist()]
    kept = zip(trajectory.row_ids.cpu()[places].tolist(), known, strict=True)
    return tuple((*row, rounding) if rounding else row for row in kept)


def check_unfitted(trajectory: Recording, policies: Iterable[ExitPolicy], argument: str = "trajectory") -> None:
    """Refuse rows on which a policy, or one within it, was fitted: there it is right more often than on others.

    A fitted policy keeps some of its rows as `fitted_on`. Few rows in common may not be among them.

    Args:
        trajectory: The rows by which a threshold is to be chosen, or a policy judged.
        policies: The policies.
        argument: What the rows are called in the message.

    Raises:
        ArgumentError: Rows of the one are rows of the other: their ids are the same, and their records.

    Example:
        >>> record = Trajectory(torch.randn(90, 4, 3), None, torch.arange(90), labels=torch.randint(3, (90,)))
        >>> check_unfitted(record, [policies.Expected.fit(record)])
        Traceback (most recent call last):
            ...
        ponder.errors.ArgumentError: trajectory: expected rows on which the policy was not fitted: ...
    """
    inside = [part for policy in policies for part in all_within(policy)]
    fitted_on: set[tuple[tuple[float, ...], ...]] = {getattr(part, "fitted_on", ()) for part in inside}
    for kept in fitted_on - {()}:
        ids = torch.tensor([int(key) for key, *_ in kept])
        if ids.tolist() == [_ALL]:
            sums, sizes = (_by_id(trajectory) @ each for each in _sums(trajectory))
            if bool(((sums - kept[0][1]).abs() <= _ROUNDING * sizes.abs()).any()):
                raise _fitted_there(argument, "all of its rows, of which none differs from all others")
            continue
        fitted = torch.tensor([of_row for _, of_row, *_ in kept], dtype=torch.float64)
        known = trajectory.row_ids.cpu()
        rows = torch.isin(known, ids).nonzero().flatten()
        sums, sizes = (each[:, None] for each in _sums(trajectory, rows))  # the policy may have seen fewer steps
        twins = known[rows, None] == ids
        apart = ((sums - fitted[:, None]).abs() / sizes.clamp(min=1e-12)).amin(2)
        many = int((twins & (apart <= _ROUNDING)).any(0).sum())
        rounding = max(coarse_rounding(trajectory.outputs), *(row[2] if len(row) > 2 else 0.0 for row in kept))
        by_chance, near = 1 if len(kept) > _FEW else 0, 0
        fits = many > by_chance
        if rounding and not fits:
            near, others = (int((pairs & (apart <= rounding)).any(0).sum()) for pairs in (twins, twins.roll(1, 0)))
            fits = too_alike(near, others, int(twins.any(0).sum()))
        if fits:
            raise _fitted_there(argument, f"{max(many, near)} of the {len(kept)} of its rows that it keeps")


def _fitted_there(argument: str, rows: str) -> ArgumentError:
    return ArgumentError(
        argument,
        expected="rows on which the policy was not fitted: it is right there more often than on others",
        got=rows,
        remedy="Fit on one part of the rows, and choose, measure and certify on another, recorded with ids of "
        "its own: model.record(others, first_row=len(fitted)).",
    )


def _by_id(trajectory: Recording) -> Tensor:
    """A weight in [1, 2) for each row, by its id, `(rows,)` float64."""
    return 1.0 + (trajectory.row_ids.cpu().double() * 0.6180339887498949).frac()


def _sums(
    trajectory: Recording, rows: Tensor | None = None, steps: list[int] | slice = slice(None)
) -> tuple[Tensor, Tensor]:
    """Weighted sums of what the first step and each step gave, and the sums of their sizes, `(rows, steps)` float64."""
    outputs, mask = trajectory.outputs[:, steps], trajectory.mask
    if rows is not None:
        of_device = rows.to(outputs.device)
        outputs, mask = outputs[of_device], None if mask is None else mask[rows.to(mask.device)]
    each = outputs.cpu().double().nan_to_num(0.0, 0.0, 0.0)
    each = each.asinh()  # or -1e9, which masks a class, would hide all others
    if mask is not None and trajectory.meaning.per_position and fits_positions(mask, each[:, 0]):
        inside = mask.cpu().reshape(len(mask), 1, -1, *[1] * (each.dim() - 3))
        each = torch.where(inside, each, 0.0).sum(2)  # rows are as wide as the longest beside them
    each = each.flatten(2) if each.dim() > 2 else each.unsqueeze(2)
    width = each.shape[2]
    weights = torch.arange(1, 2 * width + 1, dtype=torch.float64).cos()
    sizes = each.abs().sum(2)
    return each[:, :1] @ weights[:width] + each @ weights[width:], sizes[:, :1] + sizes
