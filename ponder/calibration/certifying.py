"""Choose a kind of policy on some rows, and certify its threshold on others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple, TypeAlias

import numpy as np

from ponder._utils.checks import check_real, check_share
from ponder.calibration.bounds import binomial_cdf, upper_bound
from ponder.calibration.control import RiskControl, control_risk
from ponder.calibration.families import Family, FamilyLike, family_of
from ponder.calibration.records import Floats, Record, at_exits, check_record
from ponder.calibration.repeats import check_fresh
from ponder.calibration.risks import RiskLike, loss_at, losses_of
from ponder.calibration.statement import CONFIDENCE, LEVEL
from ponder.calibration.sweeps import as_costs
from ponder.policies.base import FixedStep, ThresholdPolicy
from ponder.policies.certainty import Confidence, Entropy, Margin

__all__ = [
    "Candidate",
    "candidates",
    "certainties",
    "certify",
    "counted_losses",
    "most_failures",
    "with_later_starts",
]

Candidate: TypeAlias = tuple[FamilyLike, Iterable[float]]
"""A class of policies, or a policy whose threshold is moved, and the values that are tried."""
_VALUES = 141
_SAMPLES = 100


def candidates(record: Record) -> list[Candidate]:
    """Return the kinds of policy for these outputs: fixed steps and certainties, early or late."""
    fixed: Candidate = (FixedStep, range(record.num_steps, 0, -1))
    kinds = certainties(record)
    return [fixed, *kinds, *with_later_starts(kinds, record.num_steps)]


def certainties(record: Record) -> list[tuple[ThresholdPolicy, Floats]]:
    """Return confidence, margin and entropy with their values; empty if answers are not classes.

    Values are dense at high certainties, and do not depend on data.
    """
    if record.width == 1 or not record.meaning.classes:
        return []
    sure = 1.0 / (1.0 + np.exp(-np.linspace(12.0, -2.0, _VALUES)))
    unsure = np.logspace(-6.0, math.log10(math.log(record.width)), _VALUES)
    return [(Confidence(0.5), sure), (Margin(0.5), sure), (Entropy(0.5), unsure)]


def with_later_starts(
    kinds: Sequence[tuple[ThresholdPolicy, Floats]], num_steps: int
) -> list[Candidate]:
    """Return each kind with no exit before step 2, 3, … N − 1.

    Early steps that are sure and wrong spoil a whole kind, so each is also tried from every later
    step on.
    """
    starts = range(2, num_steps)
    return [(kind.after(start), values) for kind, values in kinds for start in starts]


def certify(
    choosing: Record,
    certifying: Record,
    policies: Iterable[Candidate] | None = None,
    *,
    risk: RiskLike = "disagreement",
    level: float = LEVEL,
    confidence: float = CONFIDENCE,
    speed_up: float | None = None,
    costs: Sequence[float] | None = None,
) -> RiskControl:
    """Choose the kind of policy on some rows, and certify its threshold on others.

    The kind is chosen whose certificate is the cheapest on average, over bootstrap samples of the
    choosing rows: a step that just passes on those, and fails on others, leaves the much more
    expensive step behind it.

    Args:
        choosing: A full-depth run over rows that choose the kind of policy (and, for a speed-up,
            its threshold).
        certifying: The same over rows on which nothing was chosen.
        policies: The kinds and their values. By default `candidates`.
        risk: A risk whose losses are 0 or 1, as for `control_risk`.
        level: Upper limit of the risk, in (0, 1); ignored if a speed-up is given.
        confidence: Probability with which the promise holds, in (0, 1).
        speed_up: Aim at so many times lower cost instead, > 1; the promise is then about the risk
            of that.
        costs: Cost of exiting after each step, `(steps,)`. By default n.

    Example:
        >>> from dataclasses import replace
        >>> certifying = replace(trajectory, row_ids=torch.arange(300, 600))  # should be other rows
        >>> found = ponder.calibration.certify(trajectory, certifying, level=0.02)
        >>> type(found.policy.policy).__name__, found.mean_exit_step
        ('Confidence', 2.0)
    """
    check_share("confidence", confidence)
    check_share("level", level)
    check_record(choosing, "choosing")
    check_fresh(certifying, choosing, "certifying")
    by_step = as_costs(costs, choosing.num_steps)
    losses = counted_losses(risk, choosing)
    likes = candidates(choosing) if policies is None else list(policies)
    families = [family_of(like, values, choosing) for like, values in likes]
    if speed_up is None:
        most = partial(most_failures, level=level, confidence=confidence)
        place = _cheapest(choosing, families, losses, by_step, len(certifying), most)
        values = families[place].values
    else:
        fastest = by_step[-1] / by_step[0] if by_step[0] else math.inf
        check_real("speed_up", speed_up, 1.0, fastest, open_low=True)
        best = _least_risk(choosing, families, losses.losses, by_step, by_step[-1] / speed_up)
        place = best.family
        values = (best.value,)
        steps = certifying.exit_steps(families[place].build(best.value))
        lost = loss_at(risk, certifying)(steps[None])[0]
        level = min(upper_bound(int(lost.sum()), len(lost), confidence), 1.0 - 1e-9)
    return control_risk(
        certifying,
        likes[place][0],
        risk=risk,
        level=level,
        confidence=confidence,
        bound="exact_binomial",
        grid=values,
        costs=costs,
    )


@cache
def most_failures(rows: int, level: float, confidence: float) -> int:
    """Return how many rows may lose at a certified level; −1 if the level needs more rows."""
    return int(np.searchsorted(binomial_cdf(rows, level), 1.0 - confidence, side="right")) - 1


@dataclass(frozen=True)
class CountedLosses:
    """Return losses of the choosing rows, `(rows, steps)`, and which rows count, `(rows,)`."""

    losses: Floats
    counting: Floats


def counted_losses(risk: RiskLike, record: Record) -> CountedLosses:
    """Return the losses of a record, with 0 in the rows that do not count."""
    losses, rows = losses_of(risk, record)
    counting = np.ones(len(record)) if rows is None else rows * 1.0
    return CountedLosses(losses * counting[:, None], counting)


def _cheapest(
    record: Record,
    families: Sequence[Family],
    losses: CountedLosses,
    costs: Floats,
    certifying: int,
    most_failures: Callable[[int], int],
) -> int:
    """Return the place of the family with the lowest certified cost over bootstrap samples.

    Args:
        record: The choosing rows.
        families: The families.
        losses: Losses of the choosing rows.
        costs: Cost of exiting after each step, `(steps,)`.
        certifying: Number of rows that will certify, which is the size of a sample.
        most_failures: How many of so many rows may lose.
    """
    shares = np.full(len(record), 1 / len(record))
    samples = np.random.default_rng(0).multinomial(certifying, shares, size=_SAMPLES)
    drawn = samples.T.astype(np.float64)
    allowed = np.array([most_failures(int(rows)) for rows in losses.counting @ drawn])
    each = [
        _certified_cost(record, family, losses.losses, costs, drawn, allowed) for family in families
    ]
    return int(np.argmin(each))


def _certified_cost(
    record: Record, family: Family, losses: Floats, costs: Floats, drawn: Floats, allowed: Floats
) -> float:
    """Return the mean certified cost of bootstrap samples, given how often each holds a row."""
    failures = list[Floats]()
    totals = list[Floats]()
    for _, steps in family.exit_steps(record, family.late_first()):
        failures.append(at_exits(losses, steps) @ drawn)
        totals.append(at_exits(costs, steps) @ drawn)
    passes = np.logical_and.accumulate(np.concatenate(failures) <= allowed, axis=0)
    certified = np.where(passes, np.concatenate(totals) / drawn.sum(0), costs[-1])
    return float(certified.min(0).mean())


class _Tried(NamedTuple):
    """A value of a family, ordered by its risk, and then its cost."""

    risk: float
    cost: float
    family: int
    value: float


def _least_risk(
    record: Record, families: Sequence[Family], losses: Floats, costs: Floats, at_most: float
) -> _Tried:
    """Return the value with the least risk, and then cost, of those that are cheap enough."""
    tried = list[_Tried]()
    for number, family in enumerate(families):
        for places, steps in family.exit_steps(record):
            risks = at_exits(losses, steps).mean(1).tolist()
            spent = at_exits(costs, steps).mean(1).tolist()
            for risk, cost, place in zip(risks, spent, places, strict=True):
                if cost <= at_most * (1 + 1e-9):
                    tried.append(_Tried(risk, cost, number, family.values[place]))
    return min(tried)
